"""OpenID Connect tokens as bearer tokens: signature, issuer, audience and time (spec/rest.md §6.3; RFC 7519, 8725).

The issuer's keys come from its discovery document or a JWKS address. They are kept, and fetched again when they are an
hour old or a token names an unknown one, but not more often than twice a minute, whatever callers send.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jwt
import orjson
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from nodeagent.rules.urls import shown

ALGORITHMS = ("RS256", "ES256")
"""What a token may be signed with: nothing symmetric, nothing that a token could choose for us."""
LEEWAY_SECONDS = 60
REFRESH_SECONDS = 3600.0
"""Keys older than this are fetched again, so that withdrawn ones go."""
STALE_SECONDS = 24 * 3600.0
"""So long keys are good while the issuer cannot be reached."""
PAUSE_SECONDS = 30.0
"""Least time between two fetches."""
_FETCH_SECONDS = 10.0
_DOCUMENT_BYTES = 1 << 20
_LEAST_RSA_BITS = 2048
_log = structlog.get_logger()


class TokenRefusedError(Exception):
    """The token is not good; the text says why, without any of it."""


class IssuerUnreachableError(Exception):
    """The issuer's keys cannot be had, so nothing can be said about the token."""


class _FetchError(Exception):
    """A document of the issuer cannot be had or used."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whom to believe: `url` is the issuer, `subjects` the accepted ones (none: every one), `jwks_url` may be found."""

    url: str
    audience: str
    jwks_url: str | None = None
    subjects: frozenset[str] = frozenset()


class OidcTokens:
    """Checks tokens of one issuer; `monotonic` returns seconds that only grow."""

    def __init__(self, issuer: Issuer, monotonic: Callable[[], float]) -> None:
        self._issuer = issuer
        self._monotonic = monotonic
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched: float | None = None
        self._tried: float | None = None
        self._fetching = asyncio.Lock()

    async def check(self, token: str) -> None:
        """Raise TokenRefusedError unless the token is good, IssuerUnreachableError where nobody can say."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise TokenRefusedError("The bearer token is neither one of this service nor a JSON web token.") from None
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise TokenRefusedError(f"The bearer token must be signed with {' or '.join(ALGORITHMS)}.")
        key = await self._key(key_id, algorithm)
        self._check_claims(token, key, algorithm)

    def _check_claims(self, token: str, key: jwt.PyJWK, algorithm: str) -> None:
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=self._issuer.audience,
                issuer=self._issuer.url,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise TokenRefusedError(_told(error)) from None
        if self._issuer.subjects and claims.get("sub") not in self._issuer.subjects:
            raise TokenRefusedError("The subject of the bearer token is not one that this service accepts.")

    async def _key(self, key_id: object, algorithm: str) -> jwt.PyJWK:
        found = self._found(key_id)
        if found is None or self._age() > REFRESH_SECONDS:
            await self._refresh(key_id)
            found = self._found(key_id)
        if self._age() > STALE_SECONDS:
            raise IssuerUnreachableError
        if found is None or found.algorithm_name != algorithm:
            raise TokenRefusedError("The bearer token is signed with a key that its issuer does not publish.")
        return found

    def _found(self, key_id: object) -> jwt.PyJWK | None:
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id) if isinstance(key_id, str) else None

    def _age(self) -> float:
        return float("inf") if self._fetched is None else self._monotonic() - self._fetched

    async def _refresh(self, key_id: object) -> None:
        """Fetch the keys, unless somebody has done it while we waited or it was tried just now."""
        async with self._fetching:
            if self._found(key_id) is not None and self._age() <= REFRESH_SECONDS:
                return
            now = self._monotonic()
            if self._tried is not None and now - self._tried < PAUSE_SECONDS:
                return
            self._tried = now
            try:
                self._keys = await self._fetch()
                self._fetched = self._monotonic()
            except _FetchError as error:
                _log.warning("issuer_keys_not_fetched", issuer=shown(self._issuer.url), why=str(error))

    async def _fetch(self) -> dict[str, jwt.PyJWK]:
        timeout = aiohttp.ClientTimeout(total=_FETCH_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            url = self._issuer.jwks_url or await self._discover(session)
            document = await _document(session, url)
        keys = [_key(entry) for entry in _entries(document)]
        found = {key.key_id or "": key for key in keys if key is not None}
        if not found:
            raise _FetchError(f"{shown(url)} has no key for {' or '.join(ALGORITHMS)}")
        return found

    async def _discover(self, session: aiohttp.ClientSession) -> str:
        place = f"{self._issuer.url.rstrip('/')}/.well-known/openid-configuration"
        document = await _document(session, place)
        if document.get("issuer") != self._issuer.url:
            raise _FetchError(f"{shown(place)} is the document of another issuer")
        url = document.get("jwks_uri")
        # plain HTTP only where the issuer is plain HTTP too, which the settings allow on loopback alone
        schemes = {"https", urlsplit(self._issuer.url).scheme}
        if not isinstance(url, str) or urlsplit(url).scheme not in schemes:
            raise _FetchError(f"{shown(place)} names no jwks_uri with https")
        return url


async def _document(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """Fetch a JSON object. Raises _FetchError."""
    try:
        async with _answer(session, url) as answer:
            content = await answer.content.read(_DOCUMENT_BYTES)
            while not answer.content.at_eof() and len(content) < _DOCUMENT_BYTES:
                content += await answer.content.read(_DOCUMENT_BYTES - len(content))
        document = orjson.loads(content)
    except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
        raise _FetchError(f"{shown(url)}: {type(error).__name__}") from None
    if not isinstance(document, dict):
        raise _FetchError(f"{shown(url)} is no JSON object")
    return document


@asynccontextmanager
async def _answer(session: aiohttp.ClientSession, url: str) -> AsyncIterator[aiohttp.ClientResponse]:
    async with session.get(url, allow_redirects=False, headers={"Accept": "application/json"}) as answer:
        if answer.status != 200:
            raise _FetchError(f"{shown(url)} answered {answer.status}")
        yield answer


def _entries(document: dict[str, Any]) -> list[dict[str, Any]]:
    entries = document.get("keys")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _key(entry: dict[str, Any]) -> jwt.PyJWK | None:
    """Return a key that may check a signature; None for one of another kind, or too weak."""
    if entry.get("use", "sig") != "sig" or entry.get("kty") not in ("RSA", "EC"):
        return None
    with suppress(jwt.PyJWTError, ValueError, TypeError):
        key = jwt.PyJWK.from_dict(entry)
        weak = isinstance(key.key, RSAPublicKey) and key.key.key_size < _LEAST_RSA_BITS
        return key if key.algorithm_name in ALGORITHMS and not weak else None
    return None


_REASONS: Mapping[type[jwt.PyJWTError], str] = {
    jwt.ExpiredSignatureError: "has expired",
    jwt.ImmatureSignatureError: "is not valid yet",
    jwt.InvalidAudienceError: "is for another audience",
    jwt.InvalidIssuerError: "is of another issuer",
    jwt.InvalidSignatureError: "has a wrong signature",
}


def _told(error: jwt.PyJWTError) -> str:
    """Return what is wrong in words of our own: those of the library may repeat what the token says."""
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"The bearer token has no claim '{error.claim}'."
    reason = next((text for kind, text in _REASONS.items() if isinstance(error, kind)), "cannot be used")
    return f"The bearer token {reason}."
