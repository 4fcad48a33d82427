"""A small managed-identity endpoint for tests: it answers as the instance metadata service does, or as it is told."""

import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from uuid import uuid4

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
PATH = "/metadata/identity/oauth2/token"
LASTS = 86400


@dataclass
class Endpoint:
    """A running endpoint."""

    url: str
    key: rsa.RSAPrivateKey
    known: set[str | None] = field(default_factory=lambda: {None})
    """Resource ids of the identities of the node; None is its own."""
    lasts: float = LASTS
    """Seconds that its tokens are good for."""
    script: list[Answer] = field(default_factory=list)
    """Answers to the next requests, before it answers as usual."""
    asked: list[web.Request] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    """Tokens."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer as the instance metadata service does."""
        self.asked.append(request)
        if self.script:
            return await self.script.pop(0)(request)
        if request.headers.get("Metadata") != "true" or request.query.get("api-version") != "2018-02-01":
            return error(400, "bad_request", "Required metadata header not specified")
        if request.query.get("msi_res_id") not in self.known:
            return error(400, "invalid_request", "Identity not found")
        token = storage_token(self.key, self.lasts)
        self.given.append(token)
        return web.json_response(
            {
                "access_token": token,
                "expires_in": str(int(self.lasts)),
                "expires_on": str(int(time.time() + self.lasts)),
                "resource": request.query["resource"],
                "token_type": "Bearer",
            }
        )


def error(status: int, code: str, description: str) -> web.Response:
    """Return an error as the instance metadata service gives it."""
    return web.json_response({"error": code, "error_description": description}, status=status)


def answering(status: int) -> Answer:
    """Return an answer with that status and no content."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    return answer


@asynccontextmanager
async def running_endpoint() -> AsyncIterator[Endpoint]:
    """Run an endpoint on a free port of this machine."""
    endpoint = Endpoint("", rsa.generate_private_key(65537, 2048))
    application = web.Application()
    application.router.add_get(PATH, endpoint.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        endpoint.url = f"http://127.0.0.1:{runner.addresses[0][1]}{PATH}"
        yield endpoint
    finally:
        await runner.cleanup()


def storage_token(key: rsa.RSAPrivateKey, lasts: float) -> str:
    """Return a token (JWT) as Entra ID makes it for storage."""
    now, tenant = int(time.time()), str(uuid4())
    claims = {
        "aud": "https://storage.azure.com",
        "iss": f"https://sts.windows.net/{tenant}/",
        "iat": now - 5,
        "nbf": now - 5,
        "exp": int(now + max(lasts, 60)),
        "oid": str(uuid4()),
        "tid": tenant,
        "ver": "1.0",
    }
    signed = b".".join(_part(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "RS256"}, claims))
    return (signed + b"." + _part(key.sign(signed, padding.PKCS1v15(), hashes.SHA256()))).decode()


def _part(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate of 127.0.0.1, signed by itself, and its key; return their files."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file
