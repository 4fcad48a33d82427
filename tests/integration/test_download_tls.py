"""Downloads over TLS: whom the node trusts, and that nothing leads from https to http."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nodeagent.transfer.base import TransferFailedError
from nodeagent.transfer.http_download import Downloads, Fetched
from tests.integration.azurite import free_port
from tests.integration.downloading import Connect, CountedMeter, details

pytest_plugins = ["tests.integration.download_fixtures"]
pytestmark = pytest.mark.usefixtures("short_pauses")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate and its key."""

    chain: Path
    key: Path


def _certificate(folder: Path, *, address: str = "127.0.0.1", expired: bool = False) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    begins = datetime.now(UTC) - timedelta(days=10)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=1 if expired else 100))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    made = Certificate(folder / "chain.pem", folder / "key.pem")
    made.chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    made.key.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return made


@asynccontextmanager
async def _server(certificate: Certificate) -> AsyncIterator[str]:
    """Run a server with this certificate, give its URL."""

    async def file(_request: web.Request) -> web.Response:
        return web.Response(body=b"content", headers={"ETag": '"one"'})

    async def leave(_request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "http://127.0.0.1:9/file?sig=SECRET"})

    async def stay(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": str(request.url.with_path("/file"))})

    app = web.Application()
    app.add_routes([web.get("/file", file), web.get("/leave", leave), web.get("/stay", stay)])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.chain, certificate.key)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    try:
        yield f"https://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def _failed(downloads: Downloads, url: str) -> dict[str, str]:
    with pytest.raises(TransferFailedError) as raised:
        await downloads.fetch(url, path="data/file", meter=CountedMeter())
    assert raised.value.failure.code == "BlobDownloadMiscError"
    return details(raised.value)


async def test_a_certificate_that_nobody_vouches_for(tmp_path: Path, connect: Connect) -> None:
    """One try, and the reason in OpenSSL's words."""
    async with _server(_certificate(tmp_path)) as url, connect() as downloads:
        found = await _failed(downloads, f"{url}/file?sig=SECRET")
    assert found["Message"].startswith("the certificate of 127.0.0.1 is not trusted: self-signed certificate")
    assert found["Attempts"] == "1"


@pytest.mark.parametrize(
    ("made", "why"), [({"expired": True}, "certificate has expired"), ({"address": "127.0.0.2"}, "IP address mismatch")]
)
async def test_a_trusted_certificate_that_does_not_fit(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch, made: dict[str, str], why: str
) -> None:
    """Trusting its issuer does not make it this server's, or young."""
    certificate = _certificate(tmp_path, **made)  # type: ignore[arg-type]
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.chain))
    async with _server(certificate) as url, connect() as downloads:
        found = await _failed(downloads, f"{url}/file?sig=SECRET")
    assert why in found["Message"]


async def test_certificates_of_the_environment_are_trusted(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSL_CERT_FILE is OpenSSL's own way to say whom to trust; redirects from https to https are followed."""
    certificate = _certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.chain))
    async with _server(certificate) as url, connect() as downloads:
        for name in ("file", "stay"):
            fetched = await downloads.fetch(f"{url}/{name}", path="p", meter=CountedMeter())
            assert isinstance(fetched, Fetched)
            assert fetched.path.read_bytes() == b"content"
        found = await _failed(downloads, f"{url}/leave?sig=SECRET")
    assert found["Message"] == "a redirect from https to http is not followed"
    assert found["Attempts"] == "1"


async def test_what_does_not_speak_tls(connect: Connect, tmp_path: Path) -> None:
    """An https URL of an http server."""
    runner = web.AppRunner(web.Application())
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        async with connect() as downloads:
            found = await _failed(downloads, f"https://127.0.0.1:{port}/file?sig=SECRET")
    finally:
        await runner.cleanup()
    assert found["Message"].startswith("no TLS connection to 127.0.0.1: ")
    assert found["Attempts"] == "5"
