"""The settings of the service."""

import base64
import binascii
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator


def _blob_endpoint(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        _ = parts.port
    except ValueError:
        good = False
    if not good or "@" in value:
        raise ValueError("must be the URL of an account's blob endpoint, as https://account.blob.core.windows.net")
    return value.rstrip("/")


def _base64(value: SecretStr) -> SecretStr:
    try:
        base64.b64decode(value.get_secret_value(), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("must be base64 text") from None
    return value


class ServiceSettings(BaseModel):
    """How the service runs; each field is one key of the `[service]` table of the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address to listen on; loopback unless other machines shall reach the service."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8190
    """TCP port to listen on; 0 takes a free one."""
    account: Annotated[str, Field(pattern=r"^[a-z0-9]{3,24}$")] = "devaccount"
    """Name of the Batch account that clients sign with."""
    key: SecretStr
    """Shared key of the account, base64."""
    bearer_token: SecretStr | None = None
    """A token that clients may show instead of a signature; none is accepted if not given."""
    state_dir: Path
    """Folder of the database and the event log; made if it is missing, used by one service at a time."""
    node_key_file: Path | None = None
    """File with the key that agents show; `node.key` in the state folder if not given, made if it is missing."""
    ephemeral: bool = False
    """Keep the state in a temporary folder inside the state folder and remove it at the end."""
    synchronous: Literal["full", "normal"] = "full"
    """`full` survives a power cut; `normal` is faster, survives kill -9, but a power cut may take the last commits."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 5.0
    """How often agents send a heartbeat."""
    lease_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A node that was silent for so long is unknown, and its tasks run elsewhere."""
    events_file: Path | None = None
    """JSON-lines file of diagnostic events; `events.jsonl` in the state folder if not given."""
    events_kept: Annotated[int, Field(ge=1000)] = 100_000
    """How many events the HTTP stream can go back; the file keeps all."""
    auto_storage_url: Annotated[str, AfterValidator(_blob_endpoint)] | None = None
    """Blob endpoint of the storage account that `autoStorageContainerName` means; no such account if not given."""
    auto_storage_key: Annotated[SecretStr, AfterValidator(_base64)] | None = None
    """Key of that account, base64: it stays at the service, nodes get a SAS of the container."""
    package_bytes: Annotated[int, Field(ge=1 << 20)] = 16 << 30
    """An application package whose zip file is larger is refused."""
    loose: bool = False
    """Accept and log properties that this version does not support, instead of refusing them by name."""

    @property
    def secrets(self) -> list[str]:
        """What no log may hold."""
        kept = (self.key, self.bearer_token, self.auto_storage_key)
        return [secret.get_secret_value() for secret in kept if secret is not None]

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.auto_storage_url is None) != (self.auto_storage_key is None):
            raise ValueError("auto_storage_url and auto_storage_key must be given together or not at all")
        return self
