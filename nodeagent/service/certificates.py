"""Self-made certificates: an authority of this service's own, and the server's certificate that it signs.

<folder>/authority.pem  key and certificate of the authority (0600), 10 years
<folder>/server.pem     key and certificate of the server (0600), 397 days, renewed in the last third of them
<folder>/ca.pem         the authority's certificate alone: what clients are told to trust

Each is written aside and renamed, with key and certificate in one file: after a crash there is a whole pair or none.
The authority may sign for the names of its service only, so who trusts it trusts it with nothing else.
"""

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_CA_NAME = "ca.pem"
_AUTHORITY_NAME = "authority.pem"
_SERVER_NAME = "server.pem"
_AUTHORITY_LIFE = timedelta(days=3650)
_SERVER_LIFE = timedelta(days=397)
"""Some clients refuse more than 398 days."""
_EARLIER = timedelta(hours=1)
"""So much before now a certificate begins: clocks differ."""
_PEM = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class SelfMade:
    """Where the files lie: `server` holds key and certificate, `ca` is for clients."""

    server: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class _Pair:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def pem(self) -> bytes:
        key = self.key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return key + self.certificate.public_bytes(_PEM)


def ensure_certificates(folder: Path, names: Sequence[str], now: datetime) -> SelfMade:
    """Make what is missing, broken, about to end or made for other names; leave the rest as it is.

    `names` are DNS names and IP addresses under which clients reach the service. Blocks. Raises OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = frozenset(_general_name(name) for name in names)
    authority = _read(folder / _AUTHORITY_NAME)
    if authority is None or not _serves(authority, wanted, now, _SERVER_LIFE):
        authority = _make_authority(wanted, now)
        _write(folder / _AUTHORITY_NAME, authority.pem(), 0o600)
    server = _read(folder / _SERVER_NAME)
    if server is None or not _signed_by(server, authority) or not _serves(server, wanted, now, _SERVER_LIFE / 3):
        server = _make_server(authority, wanted, now)
        _write(folder / _SERVER_NAME, server.pem(), 0o600)
    public = authority.certificate.public_bytes(_PEM)
    ca = folder / _CA_NAME
    if not ca.exists() or ca.read_bytes() != public:
        _write(ca, public, 0o644)
    return SelfMade(folder / _SERVER_NAME, ca)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name.lower())


def _read(path: Path) -> _Pair | None:
    """Return what a file holds; None if it is missing or cannot be used."""
    try:
        text = path.read_bytes()
        key = load_pem_private_key(text, None)
        certificate = x509.load_pem_x509_certificate(text)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        return None
    return _Pair(key, certificate)


def _serves(pair: _Pair, wanted: frozenset[x509.GeneralName], now: datetime, at_least: timedelta) -> bool:
    """Tell whether a certificate is for just these names and lasts long enough."""
    begins, ends = pair.certificate.not_valid_before_utc, pair.certificate.not_valid_after_utc
    return begins <= now and now + at_least < ends and _names(pair.certificate) == wanted


def _names(certificate: x509.Certificate) -> frozenset[x509.GeneralName]:
    """Return the names that a server's certificate is for, or that an authority may sign for."""
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            return frozenset(value)
        if isinstance(value, x509.NameConstraints):
            return frozenset(_alone(name) for name in value.permitted_subtrees or ())
    return frozenset()


def _alone(name: x509.GeneralName) -> x509.GeneralName:
    """Return the address of a network that is one."""
    value = name.value
    return x509.IPAddress(value.network_address) if isinstance(value, IPv4Network | IPv6Network) else name


def _signed_by(server: _Pair, authority: _Pair) -> bool:
    try:
        server.certificate.verify_directly_issued_by(authority.certificate)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, another one is made
        return False
    return True


def _make_authority(names: frozenset[x509.GeneralName], now: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"nodeagent authority {secrets.token_hex(4)}")])
    permitted = [
        x509.IPAddress(ip_network(name.value)) if isinstance(name, x509.IPAddress) else name for name in _sorted(names)
    ]
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(subject, subject, key.public_key(), now, _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _Pair(key, certificate)


def _make_server(authority: _Pair, names: frozenset[x509.GeneralName], now: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nodeagent service")])
    issuer = authority.certificate.subject
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    certificate = (
        _builder(subject, issuer, key.public_key(), now, _SERVER_LIFE)
        .add_extension(x509.SubjectAlternativeName(_sorted(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(signer, critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return _Pair(key, certificate)


def _sorted(names: frozenset[x509.GeneralName]) -> list[x509.GeneralName]:
    return sorted(names, key=lambda name: str(name.value))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now - _EARLIER + life)
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)  # left by a crash, perhaps with another mode
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
