"""Certificates: self-made ones are kept, renewed in time and for their own names only; given ones are taken anew."""

import asyncio
import base64
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID
from pydantic import SecretStr
from structlog.testing import capture_logs

from nodeagent.service import tls
from nodeagent.service.certificates import ensure_certificates
from nodeagent.service.settings import ServiceSettings
from nodeagent.service.tls import CertificateError, Tls, server_names

NAMES = ("localhost", "127.0.0.1", "::1", "Box-7")
PEM = serialization.Encoding.PEM


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _handshake(server: ssl.SSLContext, ca: Path, name: str) -> bytes:
    """Let a client that trusts `ca` connect to a server as `name`; return the server's certificate (DER)."""
    client = ssl.create_default_context(cafile=ca)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(down, up, server_hostname=name)
    far = server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    found = near.getpeercert(binary_form=True)
    assert found is not None
    return found


def _serving(chain: Path, key: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "box-7"])
def test_a_strict_client_accepts_every_name(tmp_path: Path, name: str) -> None:
    """Names and addresses, also by the stricter rules of later Pythons."""
    made = ensure_certificates(tmp_path, NAMES, _now())
    assert _handshake(_serving(made.server), made.ca, name)


def test_the_authority_is_good_for_its_own_names_only(tmp_path: Path) -> None:
    """Whoever gets hold of its key cannot be another site for those who trust it."""
    made = ensure_certificates(tmp_path, NAMES, _now())
    authority = (tmp_path / "authority.pem").read_bytes()
    forged = _certificate(tmp_path, "bank.example", signed_by=authority)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        _handshake(_serving(*forged), made.ca, "bank.example")


def test_nothing_is_made_twice(tmp_path: Path) -> None:
    """A restart changes no file."""
    ensure_certificates(tmp_path, NAMES, _now())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ensure_certificates(tmp_path, tuple(reversed(NAMES)), _now() + timedelta(days=200))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert sorted(before) == ["authority.pem", "ca.pem", "server.pem"]


@pytest.mark.parametrize(("days", "renewed"), [(264, False), (266, True), (400, True)])
def test_the_server_is_renewed_when_a_third_is_left(tmp_path: Path, days: int, renewed: bool) -> None:  # noqa: FBT001
    """Clients go on to trust the same authority."""
    first = ensure_certificates(tmp_path, NAMES, _now())
    server, ca = first.server.read_bytes(), first.ca.read_bytes()
    again = ensure_certificates(tmp_path, NAMES, _now() + timedelta(days=days))
    assert (again.server.read_bytes() != server) is renewed
    assert again.ca.read_bytes() == ca


def test_an_authority_that_would_end_before_its_server_is_made_anew(tmp_path: Path) -> None:
    """In its last year there is another one."""
    first = ensure_certificates(tmp_path, NAMES, _now() - timedelta(days=3640)).ca.read_bytes()
    made = ensure_certificates(tmp_path, NAMES, _now())
    assert made.ca.read_bytes() != first
    assert _handshake(_serving(made.server), made.ca, "localhost")


def test_other_names_need_another_authority(tmp_path: Path) -> None:
    """The old one may not sign for them."""
    first = ensure_certificates(tmp_path, NAMES, _now()).ca.read_bytes()
    made = ensure_certificates(tmp_path, (*NAMES, "batch.example"), _now())
    assert made.ca.read_bytes() != first
    assert _handshake(_serving(made.server), made.ca, "batch.example")


@pytest.mark.parametrize("broken", ["server.pem", "authority.pem", "ca.pem"])
@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN"])
def test_a_missing_or_broken_file_is_made_anew(tmp_path: Path, broken: str, content: bytes | None) -> None:
    """Whatever is left, afterwards all three fit, and what a crash left aside is no obstacle."""
    ensure_certificates(tmp_path, NAMES, _now())
    path = tmp_path / broken
    path.unlink() if content is None else path.write_bytes(content)
    path.with_suffix(".tmp").write_bytes(b"half")
    made = ensure_certificates(tmp_path, NAMES, _now())
    assert _handshake(_serving(made.server), made.ca, "localhost")
    assert {entry.name: entry.stat().st_mode & 0o077 for entry in tmp_path.glob("*r*.pem")} == {
        "authority.pem": 0,
        "server.pem": 0,
    }


def test_a_server_of_another_authority_is_not_kept(tmp_path: Path) -> None:
    """A crash between the two files leaves the old server beside the new authority."""
    ensure_certificates(tmp_path / "old", NAMES, _now())
    made = ensure_certificates(tmp_path / "new", NAMES, _now())
    made.server.write_bytes((tmp_path / "old" / "server.pem").read_bytes())
    made = ensure_certificates(tmp_path / "new", NAMES, _now())
    assert _handshake(_serving(made.server), made.ca, "localhost")


def _certificate(folder: Path, name: str, *, signed_by: bytes | None = None) -> tuple[Path, Path]:
    """Make a certificate and its key, signed by itself or by a key and certificate in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, issuer = key, subject
    if signed_by is not None:
        loaded = load_pem_private_key(signed_by, None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer, issuer = loaded, x509.load_pem_x509_certificate(signed_by).subject
    san: x509.GeneralName = x509.DNSName(name) if name[0].isalpha() else x509.IPAddress(ip_address(name))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - timedelta(days=1))
        .not_valid_after(_now() + timedelta(days=10))
        .add_extension(x509.SubjectAlternativeName([san]), critical=False)
        .add_extension(x509.BasicConstraints(ca=signed_by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    chain, path = folder / f"{name}.pem", folder / f"{name}.key"
    chain.write_bytes(certificate.public_bytes(PEM))
    form, no = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(PEM, form, no))
    return chain, path


def _settings(folder: Path, **given: object) -> ServiceSettings:
    key = SecretStr(base64.b64encode(b"k" * 32).decode())
    return ServiceSettings.model_validate({"key": key, "state_dir": folder / "state", **given})


async def test_a_given_certificate_is_taken_anew_while_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next handshake has the new one; a pair that does not fit changes nothing."""
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.01)
    chain, key = _certificate(tmp_path, "a.example")
    made = Tls(_settings(tmp_path, tls_certificate=chain, tls_key=key), tmp_path, _now)
    context = await made.opened()
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(chain.read_bytes())
    assert made.ca is None
    first = _handshake_loosely(context, trusted)
    other_chain, other_key = _certificate(tmp_path, "b.example")
    trusted.write_bytes(chain.read_bytes() + other_chain.read_bytes())
    key.write_bytes(other_key.read_bytes())
    with capture_logs() as lines:
        await made.look()  # at half of the new pair
    assert [line["event"] for line in lines] == ["certificate_not_renewed"]
    assert _handshake_loosely(context, trusted) == first
    chain.write_bytes(other_chain.read_bytes())
    watching = asyncio.create_task(made.watch())
    end = asyncio.get_running_loop().time() + 10
    while _handshake_loosely(context, trusted) == first:
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def _handshake_loosely(server: ssl.SSLContext, trusted: Path) -> bytes:
    """Do a handshake whatever the name is; return the certificate."""
    client = ssl.create_default_context(cafile=trusted)
    client.check_hostname = False
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near, far = client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return near.getpeercert(binary_form=True) or b""


async def test_a_pair_that_does_not_fit_is_told_with_its_settings(tmp_path: Path) -> None:
    """One line with both files and the reason, and nothing of the key."""
    chain, _ = _certificate(tmp_path, "a.example")
    _, key = _certificate(tmp_path, "b.example")
    with pytest.raises(CertificateError, match=r"tls_certificate and service\.tls_key.*a\.example.*belong together"):
        await Tls(_settings(tmp_path, tls_certificate=chain, tls_key=key), tmp_path, _now).opened()
    with pytest.raises(CertificateError, match="No such file"):
        await Tls(_settings(tmp_path, tls_certificate=chain, tls_key=tmp_path / "none"), tmp_path, _now).opened()


def test_the_names_are_the_hosts_and_those_of_the_settings(tmp_path: Path) -> None:
    """An address that means every address is no name."""
    names = server_names(_settings(tmp_path, host="0.0.0.0", tls=True, tls_names=("batch.example",)))
    assert {"localhost", "127.0.0.1", "::1", "batch.example"} <= set(names)
    assert "0.0.0.0" not in names
    assert "10.0.0.5" in server_names(_settings(tmp_path, host="10.0.0.5", tls=True))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"no_auth": True, "host": "0.0.0.0"}, "no_auth is only possible if host is loopback"),
        ({"no_auth": True, "host": "batch.example"}, "no_auth is only possible if host is loopback"),
        ({"tls_certificate": "/a"}, "must be given together"),
        ({"tls": True, "tls_certificate": "/a", "tls_key": "/b"}, "choose"),
        ({"oidc_issuer": "https://issuer.example"}, "must be given together"),
        ({"oidc_subjects": ["me"]}, "need oidc_issuer"),
        ({"oidc_issuer": "http://issuer.example", "oidc_audience": "a"}, "must be an https URL"),
        ({"oidc_issuer": "https://u:p@issuer.example", "oidc_audience": "a"}, "must be an https URL"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, given: dict[str, object], told: str) -> None:
    """Each names what is wrong."""
    with pytest.raises(ValueError, match=told):
        _settings(tmp_path, **given)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_no_auth_is_possible_on_every_loopback(tmp_path: Path, host: str) -> None:
    """By address or by name."""
    assert _settings(tmp_path, no_auth=True, host=host).no_auth
