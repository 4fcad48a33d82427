"""The agent's calls to the service, as docs/node-protocol.md says for every status.

`call` makes one call and raises `Unavailable` for whatever may be better next time; `insist` makes it until it is
answered. Fenced and refused agents end by FencedError and RefusedError.
"""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import aiohttp
import structlog
from pydantic import ValidationError

from nodeagent.agent.errors import FencedError, RefusedError, RemovedError
from nodeagent.model.base import BatchModel
from nodeagent.model.protocol import PREFIX, ProtocolError

log = structlog.get_logger(__name__)

Answer = TypeVar("Answer", bound=BatchModel)

FIRST_PAUSE = 0.2
GROWTH = 1.6
REMIND_SECONDS = 60.0
_RETRIED = frozenset({408, 429})


class Unavailable(Exception):  # noqa: N818 - a situation that passes, not a fault
    """No answer that counts: the call may be made again after `retry_after` seconds, or whenever it is None."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class PoolGone(Unavailable):
    """There is no such pool, now."""


class NotRegistered(Exception):  # noqa: N818 - a situation that passes, not a fault
    """The service does not know this life of the agent: register first."""


class TooLarge(Exception):  # noqa: N818 - a situation that passes, not a fault
    """The body is larger than the service takes: send less at a time."""


class ServiceClient:
    """Calls with the node's key. One HTTP session, connections kept alive.

    `trust` says which certificates of an https service are good; without it those that the system trusts.
    """

    def __init__(
        self,
        url: str,
        node_key: str,
        *,
        call_seconds: float,
        retry_seconds: float,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._prefix = url.rstrip("/") + PREFIX
        self._headers = {"Authorization": f"Bearer {node_key}", "Content-Type": "application/json"}
        self._call_seconds = call_seconds
        self._retry_seconds = retry_seconds
        self._trust = trust
        self._session: aiohttp.ClientSession | None = None
        self.when_pool_gone: Callable[[], object] = lambda: None
        """Called whenever the service says that there is no such pool."""

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["ServiceClient"]:
        """Hold the HTTP session open."""
        connector = aiohttp.TCPConnector(ssl=True if self._trust is None else self._trust)
        async with aiohttp.ClientSession(headers=self._headers, connector=connector, auto_decompress=True) as session:
            self._session = session
            try:
                yield self
            finally:
                self._session = None

    async def call(self, name: str, body: str, answer: type[Answer], *, extra_seconds: float = 0) -> Answer:
        """Make one call: POST `<prefix>/<name>` with a JSON body.

        Raises Unavailable, NotRegistered, TooLarge, FencedError, RefusedError.
        """
        if self._session is None:
            raise RuntimeError("the client is not connected")
        timeout = aiohttp.ClientTimeout(total=self._call_seconds + extra_seconds)
        try:
            async with self._session.post(
                f"{self._prefix}/{name}", data=body.encode(), timeout=timeout, allow_redirects=False
            ) as response:
                content = await response.read()
        except TimeoutError as error:
            raise Unavailable(f"no answer within {timeout.total:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(str(error) or type(error).__name__) from error
        if response.status == 200:
            return _parse(name, answer, content)
        raise _refusal(name, response, content)

    async def insist(
        self, name: str, body: Callable[[], str], answer: type[Answer], *, extra_seconds: float = 0
    ) -> Answer:
        """Make the call, each time with a fresh body, until it is answered. Raises what `call` does but Unavailable."""
        pause, silent_until, down_since = FIRST_PAUSE, 0.0, None
        clock = asyncio.get_running_loop().time
        while True:
            try:
                result = await self.call(name, body(), answer, extra_seconds=extra_seconds)
            except Unavailable as unavailable:
                if isinstance(unavailable, PoolGone):
                    self.when_pool_gone()
                down_since = down_since or clock()
                if clock() >= silent_until:
                    silent_until = clock() + REMIND_SECONDS
                    log.warning(
                        "service unavailable", call=name, why=str(unavailable), seconds=round(clock() - down_since)
                    )
                await asyncio.sleep(max(unavailable.retry_after or 0, pause * random.uniform(0.5, 1)))  # noqa: S311 - jitter
                pause = min(pause * GROWTH, self._retry_seconds)
            else:
                if down_since is not None:
                    log.info("service available again", call=name, seconds=round(clock() - down_since))
                return result


def _parse(name: str, answer: type[Answer], content: bytes) -> Answer:
    try:
        return answer.from_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Unavailable(f"the answer to {name} makes no sense at '{where}': {first['msg']}") from error


def _refusal(name: str, response: aiohttp.ClientResponse, content: bytes) -> Exception:
    status = response.status
    try:
        error = ProtocolError.from_json(content)
    except ValidationError:
        error = ProtocolError(code=f"Http{status}", message=response.reason or "")
    text = f"the service answered {status} {error.code} to {name}: {error.message}"
    if error.code == "PoolNotFound":
        return PoolGone(text, _retry_after(response))
    if status >= 500 or status in _RETRIED:
        return Unavailable(text, _retry_after(response))
    if status == 413:
        return TooLarge(text)
    match error.code:
        case "NodeNotRegistered":
            return NotRegistered(text)
        case "NodeRemoved":
            final: Exception = RemovedError(f"the service wants this node no more: {error.message}")
        case "Fenced":
            final = FencedError(f"a newer agent acts for this node: {error.message}")
        case _:
            final = RefusedError(text)
    return final


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else None
