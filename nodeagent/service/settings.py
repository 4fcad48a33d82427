"""The settings of the service."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr


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
    loose: bool = False
    """Accept and log properties that this version does not support, instead of refusing them by name."""
