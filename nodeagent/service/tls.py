"""The TLS side of listening: a given certificate or a self-made one, taken anew while the service runs.

New handshakes use what is in the files; connections that exist go on with what they began with.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

import structlog

from nodeagent.service.certificates import SelfMade, ensure_certificates
from nodeagent.service.settings import ServiceSettings

_FOLDER = "tls"
LOOK_SECONDS = 3600.0
"""How often the files are looked at: a given certificate may be replaced, one of our own may near its end."""
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_log = structlog.get_logger()


class CertificateError(RuntimeError):
    """A given certificate and key cannot be used; the text names the settings and the reason."""


class Tls:
    """The server's TLS context, made by `opened` and kept fresh by `watch`."""

    def __init__(self, settings: ServiceSettings, folder: Path, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._folder = folder / _FOLDER
        self._clock = clock
        self._loaded: tuple[object, ...] = ()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.set_alpn_protocols(["http/1.1"])
        self.ca: Path | None = None
        """What clients must trust; None for a given certificate, whose authority they know."""

    async def opened(self) -> ssl.SSLContext:
        """Load the certificate. Raises CertificateError, OSError (the folder cannot be written)."""
        await asyncio.to_thread(self._load)
        return self._context

    async def watch(self) -> None:
        """Take the certificate anew when its files have changed, and renew a self-made one before its end; for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Take the certificate anew if it must be; one that cannot be used changes nothing and is told in the log."""
        try:
            await asyncio.to_thread(self._load)
        except (CertificateError, OSError) as error:
            # the present one goes on to work, and the next look may find both files in place
            _log.warning("certificate_not_renewed", why=str(error))

    def _load(self) -> None:
        certificate, key = self._files()
        try:
            stamp = (certificate, _stamp(certificate), key, key and _stamp(key))
            if stamp == self._loaded:
                return
            # a pair that does not fit must not leave the context with half of it
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
            self._context.load_cert_chain(certificate, key, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise CertificateError(_told(certificate, key, error)) from None
        if self._loaded:
            _log.info("certificate_renewed", certificate=str(certificate))
        self._loaded = stamp

    def _files(self) -> tuple[Path, Path | None]:
        given, key = self._settings.tls_certificate, self._settings.tls_key
        if given is not None:
            return given, key
        made: SelfMade = ensure_certificates(self._folder, server_names(self._settings), self._clock())
        self.ca = made.ca
        return made.server, None


def server_names(settings: ServiceSettings) -> list[str]:
    """Return the names and addresses that a self-made certificate is for: this host's, and those of the settings."""
    names = [*_LOCAL_NAMES, socket.gethostname(), *settings.tls_names]
    try:
        if not ip_address(settings.host).is_unspecified:
            names.append(settings.host)
    except ValueError:
        names.append(settings.host)
    return [name for name in dict.fromkeys(names) if name and name.isascii()]


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _told(certificate: Path, key: Path | None, error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        why = "no certificate and key in PEM that belong together"
    elif isinstance(error, OSError):
        why = f"{error.filename or certificate}: {error.strerror or type(error).__name__}"
    else:
        why = str(error)
    files = certificate if key is None else f"{certificate} and {key}"
    return f"service.tls_certificate and service.tls_key: {files} cannot be used: {why}"
