"""OpenID Connect tokens, from a real issuer on loopback, against a running service."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import jwt
import pytest
from aiohttp import web
from azure.batch import models
from azure.batch.aio import BatchClient
from azure.core.credentials import AccessToken
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from pydantic import SecretStr

from nodeagent.service.app import Service
from nodeagent.service.rest.bearer import Issuer, IssuerUnreachableError, OidcTokens, TokenRefusedError
from nodeagent.service.settings import ServiceSettings

AUDIENCE = "https://batch.core.windows.net/"
RSA = rsa.generate_private_key(65537, 2048)
WEAK_RSA = rsa.generate_private_key(65537, 1024)  # noqa: S505 - it is to be refused
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())


@dataclass
class IssuerServer:
    """An issuer: its discovery document, its keys, and how often it was asked for them."""

    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=list)
    claimed: str | None = None
    asked: int = 0
    status: int = 200

    async def discovery(self, _: web.Request) -> web.Response:
        """Answer where the keys are."""
        return web.json_response({"issuer": self.claimed or self.url, "jwks_uri": f"{self.url}/keys"})

    async def jwks(self, _: web.Request) -> web.Response:
        """Answer with the keys."""
        self.asked += 1
        return web.json_response({"keys": self.keys}, status=self.status)

    def publish(self, key_id: str, key: PrivateKeyTypes, **more: str) -> None:
        """Add the public half of a key."""
        self.keys.append(_jwk(key) | {"kid": key_id, "use": "sig"} | more)


def _jwk(key: PrivateKeyTypes) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey):
        return dict(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True))
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return dict(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True))


@asynccontextmanager
async def _issuer() -> AsyncIterator[IssuerServer]:
    server = IssuerServer()
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", server.discovery)
    app.router.add_get("/keys", server.jwks)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    server.publish("rsa", RSA)
    server.publish("ec", P256)
    try:
        yield server
    finally:
        await runner.cleanup()


@pytest.fixture
async def issuer() -> AsyncIterator[IssuerServer]:
    """Return a running issuer with an RSA and an EC key."""
    async with _issuer() as server:
        yield server


def token(issuer: IssuerServer, key: Any = RSA, key_id: str | None = "rsa", alg: str = "RS256", **claims: Any) -> str:  # noqa: ANN401
    """Return a signed token; a claim of None is left out."""
    now = int(time.time())
    known = {"iss": issuer.url, "aud": AUDIENCE, "sub": "ann", "exp": now + 600, "nbf": now - 10} | claims
    headers = None if key_id is None else {"kid": key_id}
    return jwt.encode({name: value for name, value in known.items() if value is not None}, key, alg, headers)


def _public_pem() -> str:
    return base64.b64encode(_jwk(RSA)["n"].encode()).decode()


def _unsigned(issuer: IssuerServer) -> str:
    return jwt.encode({"iss": issuer.url, "aud": AUDIENCE, "exp": int(time.time()) + 600}, "", "none", {"kid": "rsa"})


def _tampered(issuer: IssuerServer) -> str:
    head, _, signature = token(issuer).split(".")
    other = token(issuer, sub="eve").split(".")[1]
    return f"{head}.{other}.{signature}"


GOOD: dict[str, Callable[[IssuerServer], str]] = {
    "RS256": token,
    "ES256": lambda issuer: token(issuer, P256, "ec", "ES256"),
    "several audiences": lambda issuer: token(issuer, aud=["another", AUDIENCE]),
    "expired within the leeway": lambda issuer: token(issuer, exp=int(time.time()) - 20),
}

BAD: dict[str, tuple[Callable[[IssuerServer], str], str]] = {
    "expired": (lambda issuer: token(issuer, exp=int(time.time()) - 120), "has expired"),
    "not yet": (lambda issuer: token(issuer, nbf=int(time.time()) + 120), "is not valid yet"),
    "another audience": (lambda issuer: token(issuer, aud="https://management.azure.com/"), "is for another audience"),
    "no audience": (lambda issuer: token(issuer, aud=None), "has no claim 'aud'"),
    "no end": (lambda issuer: token(issuer, exp=None), "has no claim 'exp'"),
    "another issuer": (lambda issuer: token(issuer, iss="https://other.example"), "is of another issuer"),
    "no issuer": (lambda issuer: token(issuer, iss=None), "has no claim 'iss'"),
    "another key of the same name": (
        lambda issuer: token(issuer, rsa.generate_private_key(65537, 2048)),
        "has a wrong signature",
    ),
    "changed claims": (_tampered, "has a wrong signature"),
    "unknown key": (lambda issuer: token(issuer, key_id="other"), "does not publish"),
    "no key named, two published": (lambda issuer: token(issuer, key_id=None), "does not publish"),
    "symmetric, with the public key": (lambda issuer: token(issuer, _public_pem(), "rsa", "HS256"), "must be signed"),
    "unsigned": (_unsigned, "must be signed"),
    "another RSA padding": (lambda issuer: token(issuer, RSA, "rsa", "PS256"), "must be signed"),
    "EC algorithm with the RSA key's name": (lambda issuer: token(issuer, P256, "rsa", "ES256"), "does not publish"),
    "not a token": (lambda _: "abc.def", "nor a JSON web token"),
}


@asynccontextmanager
async def _service(folder: Path, issuer: IssuerServer, **more: object) -> AsyncIterator[Service]:
    settings = {"port": 0, "key": SecretStr(base64.b64encode(b"k" * 32).decode()), "state_dir": folder / "service"}
    oidc = {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE}
    async with Service(ServiceSettings.model_validate({**settings, **oidc, **more})) as service:
        yield service


async def _asked(service: Service, shown: str) -> tuple[int, dict[str, Any]]:
    url = f"{service.url}/jobs?api-version=2025-06-01"
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, headers={"Authorization": f"Bearer {shown}"}) as got,
    ):
        return got.status, await got.json(content_type=None)


async def test_good_tokens_open_and_bad_ones_are_refused_with_a_reason(tmp_path: Path, issuer: IssuerServer) -> None:
    """Through the whole service; a refusal is Batch's 403 and repeats nothing of the token."""
    async with _service(tmp_path, issuer) as service:
        for name, make in GOOD.items():
            status, body = await _asked(service, make(issuer))
            assert (name, status) == (name, 200), body
        for name, (make, reason) in BAD.items():
            shown = make(issuer)
            status, body = await _asked(service, shown)
            assert (name, status, body["code"]) == (name, 403, "AuthenticationFailed")
            (told,) = body["values"]
            assert told["key"] == "AuthenticationErrorDetail"
            assert reason in told["value"], name
            assert not any(part in str(body) for part in shown.split(".") if len(part) > 3), name


class Signed:
    """An asynchronous TokenCredential of the SDK that has a token of the issuer."""

    def __init__(self, issuer: IssuerServer) -> None:
        self._issuer = issuer

    async def get_token(self, *_: str, **__: object) -> AccessToken:
        """Return a fresh token."""
        return AccessToken(token(self._issuer), int(time.time()) + 600)

    async def close(self) -> None:
        """Hold nothing open."""

    async def __aenter__(self) -> Self:
        """Open nothing."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close nothing."""


async def test_the_sdk_shows_a_token_of_the_issuer_over_https(tmp_path: Path, issuer: IssuerServer) -> None:
    """The whole way of a self-hoster: issuer, TLS with our own authority, the unmodified asynchronous client."""
    async with _service(tmp_path, issuer, tls=True) as service:
        client = BatchClient(service.url, Signed(issuer), connection_verify=str(service.ca_file))
        async with client:
            await client.create_pool(models.BatchPoolCreateOptions(id="p", vm_size="local"))
            assert [pool.id async for pool in client.list_pools()] == ["p"]
    assert issuer.asked == 1


async def test_only_the_subjects_of_the_settings_are_accepted(tmp_path: Path, issuer: IssuerServer) -> None:
    """An issuer may sign for the whole world."""
    async with _service(tmp_path, issuer, oidc_subjects=("ann",)) as service:
        assert (await _asked(service, token(issuer)))[0] == 200
        for subject in ("eve", None):
            status, body = await _asked(service, token(issuer, sub=subject))
            assert (status, "subject" in str(body["values"])) == (403, True)


async def test_a_static_token_goes_beside_the_issuer(tmp_path: Path, issuer: IssuerServer) -> None:
    """And the issuer is not asked about it."""
    async with _service(tmp_path, issuer, bearer_token=SecretStr("one-for-scripts")) as service:
        assert (await _asked(service, "one-for-scripts"))[0] == 200
        assert issuer.asked == 0


async def test_an_issuer_that_is_away_is_503_and_no_refusal(tmp_path: Path, issuer: IssuerServer) -> None:
    """Clients try 503 again."""
    issuer.status = 500
    async with _service(tmp_path, issuer) as service:
        status, body = await _asked(service, token(issuer))
        assert (status, body["code"]) == (503, "ServerBusy")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def _tokens(issuer: IssuerServer, clock: Clock, **more: Any) -> OidcTokens:  # noqa: ANN401
    return OidcTokens(Issuer(issuer.url, AUDIENCE, **more), clock)


async def test_unknown_keys_are_looked_for_but_not_at_will(issuer: IssuerServer) -> None:
    """A new key is found after half a minute at the latest; callers with invented keys cause no more calls."""
    clock = Clock()
    tokens = _tokens(issuer, clock)
    await tokens.check(token(issuer))
    assert issuer.asked == 1
    issuer.publish("new", P256)
    for number in range(50):
        with pytest.raises(TokenRefusedError):
            await tokens.check(token(issuer, key_id=f"invented-{number}"))
    assert issuer.asked == 1
    clock.now += 31
    shown = token(issuer, P256, "new", "ES256")
    await asyncio.gather(*(tokens.check(shown) for _ in range(20)))
    assert issuer.asked == 2


async def test_a_withdrawn_key_goes_within_the_hour(issuer: IssuerServer) -> None:
    """Known keys are fetched again when they are old."""
    clock = Clock()
    tokens = _tokens(issuer, clock)
    shown = token(issuer, exp=int(time.time()) + 7200)
    await tokens.check(shown)
    issuer.keys[:] = issuer.keys[1:]
    await tokens.check(shown)
    clock.now += 3601
    with pytest.raises(TokenRefusedError, match="does not publish"):
        await tokens.check(shown)


async def test_known_keys_outlive_an_issuer_that_is_away_for_a_day(issuer: IssuerServer) -> None:
    """And no longer."""
    clock = Clock()
    tokens = _tokens(issuer, clock)
    await tokens.check(token(issuer))
    issuer.status = 503
    clock.now += 23 * 3600
    await tokens.check(token(issuer))
    clock.now += 2 * 3600
    with pytest.raises(IssuerUnreachableError):
        await tokens.check(token(issuer))


async def test_the_address_of_the_keys_may_be_given(issuer: IssuerServer) -> None:
    """An issuer without a discovery document."""
    issuer.claimed = "https://not.this.one"
    await _tokens(issuer, Clock(), jwks_url=f"{issuer.url}/keys").check(token(issuer))
    with pytest.raises(IssuerUnreachableError):
        await _tokens(issuer, Clock()).check(token(issuer))


@pytest.mark.filterwarnings("ignore:The RSA key is 1024 bits")  # of the test's own signing
async def test_weak_keys_and_keys_for_something_else_are_not_taken(issuer: IssuerServer) -> None:
    """Short RSA keys, other curves, keys to encrypt with and keys that are none."""
    issuer.publish("weak", WEAK_RSA)
    issuer.publish("p384", P384)
    issuer.publish("enc", RSA, use="enc")
    issuer.keys += [{"kty": "oct", "k": "c2VjcmV0", "kid": "oct"}, {"kty": "RSA", "kid": "broken"}]
    tokens = _tokens(issuer, Clock())
    await tokens.check(token(issuer))
    for key, name, alg in ((WEAK_RSA, "weak", "RS256"), (P384, "p384", "ES384"), (RSA, "enc", "RS256")):
        with pytest.raises(TokenRefusedError):
            await tokens.check(token(issuer, key, name, alg))
    with pytest.raises(TokenRefusedError, match="does not publish"):
        await tokens.check(token(issuer, key_id="broken"))


async def test_one_key_needs_no_name(issuer: IssuerServer) -> None:
    """A token without `kid` means the only key."""
    issuer.keys[:] = issuer.keys[:1]
    await _tokens(issuer, Clock()).check(token(issuer, key_id=None))
