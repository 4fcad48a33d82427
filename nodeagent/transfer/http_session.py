"""Requests of transfers: shared connections, so many in flight, redirects that lead no secret away, pauses."""

import asyncio
import random
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from nodeagent import __version__
from nodeagent.model.values import NodeIdentityReference
from nodeagent.rules import transfer_retry
from nodeagent.rules.transfer_retry import Tries, Trouble
from nodeagent.transfer import http_trouble
from nodeagent.transfer.base import IdentityError, Tokens, TransferSettings
from nodeagent.transfer.http_trouble import GivenUpError, HttpTroubleError

READ_BYTES = 1 << 18
"""What a connection holds for its reader, at most twice, and what is written at once.

64 KiB, the default, takes up to twice the time; 1 MiB is no faster, and eight requests then hold 25 MiB more.
"""
REDIRECTS = 5
_REDIRECTING = frozenset({301, 302, 303, 307, 308})
_STORAGE_VERSION = "2023-11-03"
"""Bearer tokens need a version that knows them."""
_AS_IT_IS = re.compile(r"[\x21\x23-\x3b\x3d\x3f-\x5b\x5d\x5f\x61-\x7a\x7e]+")
"""A URL of these characters only is sent as it was written: a SAS signs some of its own text."""


class OverdueError(Exception):
    """The deadline of a transfer has passed."""


class HttpSession:
    """The connections of all transfers. At most `transfers` requests are in flight, over all who ask."""

    def __init__(self, settings: TransferSettings, tokens: Tokens) -> None:
        self.settings = settings
        self.slots = asyncio.Semaphore(settings.transfers)
        self._tokens = tokens
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["HttpSession"]:
        """Hold the connections open."""
        # Reads the certificates of the system, or of SSL_CERT_FILE and SSL_CERT_DIR: files, so not on the loop.
        context = await asyncio.to_thread(ssl.create_default_context)
        silence = self.settings.transfer_idle_seconds
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=context),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=READ_BYTES,
            headers={"Accept-Encoding": "identity", "User-Agent": f"nodeagent/{__version__}"},
            timeout=aiohttp.ClientTimeout(total=None, connect=silence, sock_connect=silence, sock_read=silence),
        ) as session:
            self._session = session
            try:
                yield self
            finally:
                self._session = None

    @asynccontextmanager
    async def get(
        self, url: str, headers: Mapping[str, str], identity: NodeIdentityReference | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Make one request, over redirects, and give its answer, whatever the status; its content is not read yet.

        What goes wrong in the caller's reading of it is not translated. Raises HttpTroubleError.
        """
        secret = {} if identity is None else await self._authorization(identity)
        address, followed = _address(url), 0
        while True:
            response = await self._request(address, {**headers, **secret})
            try:
                if response.status not in _REDIRECTING:
                    yield response
                    return
                followed += 1
                target = _redirected(address, response, followed)
            finally:
                response.release()
            if target.origin() != address.origin():
                secret = {}  # and it does not come back, wherever the next redirect leads
            address = target

    async def _request(self, address: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("the session is not connected")
        try:
            return await self._session.get(address, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as error:
            raise http_trouble.of_exception(error) from error
        except ValueError as error:
            raise HttpTroubleError(Trouble.ADDRESS, "the URL cannot be asked for") from error

    async def _authorization(self, identity: NodeIdentityReference) -> dict[str, str]:
        try:
            token = await self._tokens(identity)
        except IdentityError as error:
            raise HttpTroubleError(Trouble.IDENTITY, str(error)) from error
        return {"Authorization": f"Bearer {token}", "x-ms-version": _STORAGE_VERSION}


def _address(url: str) -> URL:
    try:
        address = URL(url, encoded=_AS_IT_IS.fullmatch(url) is not None)
        usable = address.scheme in ("http", "https") and bool(address.host) and address.port is not None
    except ValueError:
        usable = False
    if not usable:
        raise HttpTroubleError(Trouble.ADDRESS, "this is not an http or https URL")
    return address


def _redirected(address: URL, response: aiohttp.ClientResponse, followed: int) -> URL:
    location = response.headers.get("Location", "")
    if followed > REDIRECTS:
        raise HttpTroubleError(Trouble.REDIRECT, f"more than {REDIRECTS} redirects", status=response.status)
    try:
        target = address.join(URL(location, encoded=_AS_IT_IS.fullmatch(location) is not None))
        usable = bool(location) and target.scheme in ("http", "https") and bool(target.host)
    except ValueError:
        usable = False
    if not usable:
        raise HttpTroubleError(Trouble.REDIRECT, "a redirect to no http or https URL", status=response.status)
    if address.scheme == "https" and target.scheme == "http":
        raise HttpTroubleError(
            Trouble.REDIRECT, "a redirect from https to http is not followed", status=response.status
        )
    return target


class Source:
    """One URL, for the time of one transfer: its requests take turns with all others, and its deadline runs."""

    def __init__(self, session: HttpSession, url: str, identity: NodeIdentityReference | None) -> None:
        self._session = session
        self._url = url
        self._identity = identity
        self._deadline: asyncio.Timeout | None = None
        self.last: HttpTroubleError | None = None
        """What went wrong last."""

    @asynccontextmanager
    async def limited(self) -> AsyncIterator[None]:
        """End what is done in here when the deadline has passed. Raises OverdueError."""
        deadline = asyncio.timeout(None)
        try:
            async with deadline:
                self._deadline = deadline
                yield
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise OverdueError from error

    @asynccontextmanager
    async def asked(self, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask when it is this request's turn. The deadline begins with the first turn. Raises HttpTroubleError."""
        async with self._session.slots:
            if self._deadline is not None and self._deadline.when() is None:
                seconds = self._session.settings.transfer_seconds
                self._deadline.reschedule(asyncio.get_running_loop().time() + seconds)
            async with self._session.get(self._url, headers, self._identity) as response:
                yield response

    def tries(self) -> Tries:
        """Return a count of tries that fail, none yet."""
        return Tries(self._session.settings.transfer_tries)

    async def pause(self, tries: Tries, trouble: HttpTroubleError, *, progress: bool = False) -> None:
        """Wait until the next try. Raises GivenUpError if there is none: not worth it, too many, or too late."""
        self.last = trouble
        again = tries.failed_once(progress=progress)
        if not (again and trouble.may_pass) or self._too_late(trouble.retry_after):
            raise GivenUpError(trouble, max(1, tries.failed)) from trouble
        await asyncio.sleep(
            transfer_retry.pause(tries.failed, random.random(), trouble.retry_after)  # noqa: S311 - jitter
        )

    def _too_late(self, retry_after: float | None) -> bool:
        # Who is told to come back after the deadline need not hold a slot of the node until then.
        ends = None if self._deadline is None else self._deadline.when()
        if retry_after is None or ends is None:
            return False
        return asyncio.get_running_loop().time() + retry_after > ends
