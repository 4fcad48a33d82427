"""Tokens of the node's managed identities, from the Azure instance metadata service or one like it."""

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import structlog

from nodeagent.model.values import NodeIdentityReference
from nodeagent.observe.redaction import Redactor
from nodeagent.rules import identity_retry
from nodeagent.rules.urls import shown
from nodeagent.transfer.base import IdentityError, TransferSettings

log = structlog.get_logger(__name__)

API_VERSION = "2018-02-01"
RESOURCE = "https://storage.azure.com/"
RENEW_SECONDS = 300.0
"""A token is renewed so long before its end."""
TRY_SECONDS = 30.0
TOKEN_SECONDS = 150.0
"""Deadline of a token, all tries included: longer than an update of the endpoint lasts."""
ANSWER_BYTES = 65536

Pause = Callable[[int | None, int, float, float], float | None]


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    renew_at: float
    """Seconds since the epoch."""

    def __repr__(self) -> str:
        return "_Token(***)"


class _Refused(Exception):  # noqa: N818 - one try, not the end
    """One try gave no token; `status` is None if there was no answer."""

    def __init__(self, why: str, status: int | None) -> None:
        super().__init__(why)
        self.why = why
        self.status = status


class Identities:
    """Gives tokens for storage, kept until shortly before they expire; one request at a time for each identity.

    The endpoint is never asked through a proxy, and its redirects are not followed: the token is for this node only.
    """

    def __init__(self, endpoint: str, settings: TransferSettings, pause: Pause = identity_retry.pause) -> None:
        self._endpoint = endpoint
        self._try_seconds = min(TRY_SECONDS, settings.transfer_idle_seconds)
        self._seconds = min(TOKEN_SECONDS, settings.transfer_seconds)
        self._pause = pause
        self._tokens: dict[str | None, _Token] = {}
        self._flights: dict[str | None, asyncio.Task[_Token]] = {}
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["Identities"]:
        """Hold the HTTP session open; at the end requests that are under way are cancelled."""
        async with aiohttp.ClientSession(
            headers={"Metadata": "true"}, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        ) as session:
            self._session = session
            try:
                yield self
            finally:
                self._session = None
                await self._end_flights()

    async def token(self, identity: NodeIdentityReference) -> str:
        """Return a bearer token of an identity; one without a resource id is the node's own (system-assigned).

        Raises IdentityError.
        """
        key = identity.resource_id
        kept = self._tokens.get(key)
        if kept is not None and time.time() < kept.renew_at:
            return kept.text
        flight = self._flights.get(key)
        if flight is None:
            flight = self._begin(key)
        # Who waits may be cancelled; the others that wait for the same token are not.
        await asyncio.wait([flight])
        if flight.cancelled():
            # Not by who waits: it would be taken for a cancellation of his own.
            raise IdentityError(f"No token for {_named(key)}: the node is stopping")
        return flight.result().text

    def _begin(self, key: str | None) -> "asyncio.Task[_Token]":
        flight = asyncio.create_task(self._fetch(key), name="identity-token")
        self._flights[key] = flight

        def landed(ended: "asyncio.Task[_Token]") -> None:
            del self._flights[key]
            if not ended.cancelled() and ended.exception() is None:
                self._tokens[key] = ended.result()

        flight.add_done_callback(landed)
        return flight

    async def _end_flights(self) -> None:
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    async def _fetch(self, key: str | None) -> _Token:
        last = _Refused("no answer", None)
        try:
            async with asyncio.timeout(self._seconds):
                clock = asyncio.get_running_loop().time
                begun, tries = clock(), 0
                while True:
                    try:
                        return await self._ask(key)
                    except _Refused as refused:
                        last = refused
                    tries += 1
                    wait = self._pause(last.status, tries, clock() - begun, random.random())  # noqa: S311 - jitter
                    if wait is None:
                        break
                    log.info("no token yet", identity=key or "system-assigned", why=last.why, retry_seconds=wait)
                    await asyncio.sleep(wait)
        except TimeoutError:
            log.debug("the deadline of a token is over", identity=key or "system-assigned", seconds=self._seconds)
        # `from None`: what the last try met is in the text, and nothing of the HTTP client's is shown.
        raise IdentityError(
            f"No token for {_named(key)} from {shown(self._endpoint)}: {last.why}", last.status
        ) from None

    async def _ask(self, key: str | None) -> _Token:
        if self._session is None:
            raise IdentityError(f"No token for {_named(key)}: the node is stopping")
        query = {"api-version": API_VERSION, "resource": RESOURCE}
        if key is not None:
            query["msi_res_id"] = key
        timeout = aiohttp.ClientTimeout(total=self._try_seconds)
        try:
            async with self._session.get(
                self._endpoint, params=query, timeout=timeout, allow_redirects=False
            ) as response:
                status, content = response.status, await _limited(response)
        except TimeoutError:
            raise _Refused(f"no answer within {self._try_seconds:g} s", None) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _Refused(_connection_error(error), None) from None
        if status != 200:
            raise _Refused(f"it answered {status}{_described(content)}", status)
        return _token_of(content, time.time())


async def _limited(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_chunked(ANSWER_BYTES):
        content += chunk
        if len(content) > ANSWER_BYTES:
            raise ValueError(f"its answer is longer than {ANSWER_BYTES} bytes")
    return bytes(content)


def _named(key: str | None) -> str:
    return "the system-assigned identity" if key is None else f"the identity '{key}'"


def _connection_error(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        # asyncio's own text says less than the system's; only names that are not found have numbers below 0.
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return Redactor().text(str(error)) or type(error).__name__


def _described(content: bytes) -> str:
    """Return what the endpoint says of an error: `{"error": ..., "error_description": ...}`."""
    try:
        answer = json.loads(content)
    except ValueError:
        return ""
    if not isinstance(answer, dict):
        return ""
    texts = [str(answer[name]) for name in ("error", "error_description") if isinstance(answer.get(name), str)]
    return f" ({Redactor().text(': '.join(texts))[:300]})" if texts else ""


def _token_of(content: bytes, now: float) -> _Token:
    """Return the token of an answer; one that has no end is not kept. The answer itself is never shown."""
    try:
        answer = json.loads(content)
    except ValueError:
        raise _Refused("its answer is not JSON", 200) from None
    text = answer.get("access_token") if isinstance(answer, dict) else None
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or not text:
        raise _Refused("its answer has no access_token", 200)
    lasts = _seconds_left(answer, now)
    # One that ends soon is still asked for once in a while only, and not for every request.
    return _Token(text, now + max(lasts - RENEW_SECONDS, lasts / 2))


def _seconds_left(answer: dict[str, object], now: float) -> float:
    for name, since in (("expires_on", now), ("expires_in", 0.0)):
        try:
            return max(float(str(answer.get(name))) - since, 0.0)
        except ValueError:
            continue
    return 0.0
