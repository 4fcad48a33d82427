"""The settings of the service."""

import base64
import binascii
from ipaddress import ip_address
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


def is_loopback(host: str) -> bool:
    """Tell whether a name or an address leads to this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _issuer_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = bool(parts.hostname) and not (parts.query or parts.fragment) and "@" not in value
        _ = parts.port
        good = good and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")))
    except ValueError:
        good = False
    if not good:
        raise ValueError("must be an https URL (http only on loopback), without query")
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
    oidc_issuer: Annotated[str, AfterValidator(_issuer_url)] | None = None
    """Issuer (URL) of OpenID Connect tokens that clients may show; none is accepted if not given."""
    oidc_audience: str | None = None
    """Audience (`aud`) that such a token must be for; required with `oidc_issuer`."""
    oidc_jwks_url: Annotated[str, AfterValidator(_issuer_url)] | None = None
    """Where the issuer's keys are; the issuer's discovery document says it if not given."""
    oidc_subjects: tuple[str, ...] = ()
    """Subjects (`sub`) whose tokens are accepted; those of every subject of the issuer if none is given."""
    no_auth: bool = False
    """Ask clients for nothing: whoever reaches the port may do everything. Only if `host` is loopback."""
    tls: bool = False
    """Serve HTTPS with a certificate that the service makes and renews itself, in `tls` of the state folder."""
    tls_certificate: Path | None = None
    """Serve HTTPS with this certificate chain (PEM); it is read again when the file changes."""
    tls_key: Path | None = None
    """Key (PEM, not encrypted) of `tls_certificate`."""
    tls_names: tuple[str, ...] = ()
    """More host names and addresses that a self-made certificate is for."""
    trace_http: bool = False
    """Log one line per request: who, what, status, bytes and milliseconds, without secrets."""
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

    @property
    def serves_tls(self) -> bool:
        """Whether the service speaks HTTPS."""
        return self.tls or self.tls_certificate is not None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.no_auth and not is_loopback(self.host):
            raise ValueError("no_auth is only possible if host is loopback: anybody could run commands")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be given together or not at all")
        if self.tls and self.tls_certificate is not None:
            raise ValueError("tls makes a certificate, tls_certificate gives one: choose")
        if (self.oidc_issuer is None) != (self.oidc_audience is None):
            raise ValueError("oidc_issuer and oidc_audience must be given together or not at all")
        if self.oidc_issuer is None and (self.oidc_jwks_url is not None or self.oidc_subjects):
            raise ValueError("oidc_jwks_url and oidc_subjects need oidc_issuer")
        if (self.auto_storage_url is None) != (self.auto_storage_key is None):
            raise ValueError("auto_storage_url and auto_storage_key must be given together or not at all")
        return self
