"""The requests that make a block blob: Put Blob, Put Block, Put Block List, Get Block List.

Each is tried again where that may help. A request that moves no byte for too long is cut. What is sent carries its
MD5, which the storage checks before it takes it.
"""

import asyncio
import base64
import random
import re
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import md5
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from nodeagent import __version__
from nodeagent.model.values import NodeIdentityReference
from nodeagent.rules import transfer_retry
from nodeagent.rules.transfer_retry import Tries, Trouble
from nodeagent.rules.uploads import BlobHeaders
from nodeagent.rules.urls import shown
from nodeagent.transfer import http_trouble
from nodeagent.transfer.base import IdentityError, Meter, Tokens, TransferSettings
from nodeagent.transfer.http_trouble import GivenUpError, HttpTroubleError

_VERSION = "2023-11-03"
_PIECE_BYTES = 128 << 10
_UNSENT_BYTES = 128 << 10
"""So much the kernel takes before it has sent it: with megabytes of it a slow connection would look like a dead one."""
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_BLOCK = re.compile(rb"<Name>([A-Za-z0-9+/=]+)</Name>\s*<Size>([0-9]+)</Size>")
_MAY_PASS = frozenset({"Md5Mismatch"})
"""StorageErrorCodes that are worth another try in spite of their status."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a blob, named by its place and its content: of that name and length there is no other one."""

    number: int
    size: int
    digest: bytes
    """MD5."""

    @property
    def name(self) -> str:
        """The block's id: names of one blob must all be equally long."""
        return base64.b64encode(f"{self.number:05d}-{self.size:08x}-{self.digest.hex()}".encode()).decode()


def block_of(number: int, data: bytes) -> Block:
    """Return the block that these bytes are."""
    return Block(number, len(data), md5(data, usedforsecurity=False).digest())


@dataclass(slots=True)
class Tally:
    """How often the requests for one file were made."""

    retries: int = 0
    made: bool = False

    @property
    def attempts(self) -> int:
        """One for a file that went well at once."""
        return self.retries + self.made


@dataclass(frozen=True, slots=True)
class Target:
    """Where a blob goes."""

    container_url: str = field(repr=False)
    """With its SAS, if it has one: never shown."""
    blob: str
    headers: BlobHeaders
    identity: NodeIdentityReference | None = None
    """Whose bearer token opens the container."""

    @property
    def shown(self) -> str:
        """The blob's URL without its SAS."""
        return f"{shown(self.container_url).rstrip('/')}/{self.blob}"

    def address(self, query: Mapping[str, str]) -> URL:
        """Return the URL of a request. Raises HttpTroubleError."""
        try:
            parts = urlsplit(self.container_url)
            text = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/{quote(self.blob, safe='/~')}"
            asked = "&".join([*(f"{name}={quote(value, safe='')}" for name, value in query.items()), parts.query])
            address = URL(f"{text}?{asked.rstrip('&')}", encoded=True)
            usable = parts.scheme in ("http", "https") and bool(address.host) and len(parts.path) > 1
        except ValueError:
            usable = False
        if not usable or not self.container_url.isascii() or any(mark in self.container_url for mark in ' "<>'):
            raise HttpTroubleError(Trouble.ADDRESS, "containerUrl is not the URL of a container")
        if self.identity is not None and address.scheme != "https" and address.host not in _LOOPBACK:
            raise HttpTroubleError(Trouble.ADDRESS, "a managed identity can only be used with an https:// URL")
        return address


class BlobSession:
    """The connections of all uploads. At most `transfers` requests are in flight."""

    def __init__(self, settings: TransferSettings, tokens: Tokens) -> None:
        self.settings = settings
        self.buffers = asyncio.Semaphore(settings.transfers)
        """One for each block that is in memory."""
        self._slots = asyncio.Semaphore(settings.transfers)
        self._tokens = tokens
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["BlobSession"]:
        """Hold the connections open."""
        # Reads the certificates of the system, or of SSL_CERT_FILE and SSL_CERT_DIR: files, so not on the loop.
        context = await asyncio.to_thread(ssl.create_default_context)
        idle = self.settings.transfer_idle_seconds
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=context, socket_factory=_socket),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"nodeagent/{__version__}", "x-ms-version": _VERSION},
            timeout=aiohttp.ClientTimeout(total=None, connect=idle, sock_connect=idle),
        ) as session:
            self._session = session
            try:
                yield self
            finally:
                self._session = None

    async def asked(self, request: "Request", tally: Tally, meter: Meter | None) -> bytes:
        """Make a request until it goes well, and return the content of its answer. Raises GivenUpError."""
        tries = Tries(self.settings.transfer_tries)
        while True:
            try:
                async with self._slots:
                    return await self._once(request, tally, meter)
            except HttpTroubleError as trouble:
                again = tries.failed_once(progress=False)
                too_late = (trouble.retry_after or 0) > self.settings.transfer_seconds
                if not again or too_late or not _may_pass(trouble):
                    raise GivenUpError(trouble, tries.failed) from trouble
                pause = transfer_retry.pause(tries.failed, random.random(), trouble.retry_after)  # noqa: S311 - jitter
            tally.retries += 1
            await asyncio.sleep(pause)

    async def _once(self, request: "Request", tally: Tally, meter: Meter | None) -> bytes:
        if self._session is None:
            raise RuntimeError("the session is not connected")
        address = request.target.address(request.query)
        headers = {**request.headers, **await self._authorization(request.target.identity)}
        body = None if request.body is None else _Body(request.body, meter)
        if body is not None:
            headers["Content-Length"] = str(len(body.data))
            headers.setdefault("Content-Type", "application/octet-stream")
        tally.made = True
        try:
            async with asyncio.timeout(None) as silence:
                alive = _Alive(silence, self.settings.transfer_idle_seconds)
                sent = None if body is None else body.pieces(alive)
                async with self._session.request(
                    request.method, address, headers=headers, data=sent, allow_redirects=False
                ) as answer:
                    return await _content(answer)
        except (aiohttp.ClientError, OSError) as error:
            _take_back(body)
            raise http_trouble.of_exception(error) from error
        except ValueError as error:
            _take_back(body)
            raise HttpTroubleError(Trouble.ADDRESS, "the request cannot be made") from error
        except BaseException:
            _take_back(body)
            raise

    async def _authorization(self, identity: NodeIdentityReference | None) -> dict[str, str]:
        if identity is None:
            return {}
        try:
            return {"Authorization": f"Bearer {await self._tokens(identity)}"}
        except IdentityError as error:
            raise HttpTroubleError(Trouble.IDENTITY, str(error)) from error


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    made = socket.socket(*address[:3])
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    return made


async def _content(answer: aiohttp.ClientResponse) -> bytes:
    if answer.status >= 300:
        raise await http_trouble.of_answer(answer)
    return await answer.read()


def _may_pass(trouble: HttpTroubleError) -> bool:
    return trouble.may_pass or dict(trouble.evidence).get("StorageErrorCode") in _MAY_PASS


class _Alive:
    """Puts off the end of a request while bytes move."""

    def __init__(self, timeout: asyncio.Timeout, seconds: float) -> None:
        self._timeout = timeout
        self._seconds = seconds
        self.sign()

    def sign(self) -> None:
        """Something has moved."""
        self._timeout.reschedule(asyncio.get_running_loop().time() + self._seconds)


class _Body:
    """What one try sends, in pieces that leave the loop to others."""

    def __init__(self, data: bytes, meter: Meter | None) -> None:
        self.data = data
        self._meter = meter
        self._sent = 0
        self._over = False

    async def pieces(self, alive: _Alive) -> AsyncIterator[bytes]:
        """Give one piece after the other, each when the connection has taken the one before."""
        view = memoryview(self.data)
        for begins in range(0, len(view), _PIECE_BYTES):
            piece = bytes(view[begins : begins + _PIECE_BYTES])
            yield piece
            if self._over:  # answered or given up before all was sent
                return
            alive.sign()
            self._sent += len(piece)
            if self._meter is not None:
                self._meter.moved(len(piece))

    def take_back(self) -> None:
        """What was sent did not arrive, and nothing more is."""
        self._over = True
        if self._meter is not None and self._sent:
            self._meter.moved(-self._sent)
        self._sent = 0


def _take_back(body: _Body | None) -> None:
    if body is not None:
        body.take_back()


@dataclass(frozen=True, slots=True)
class Request:
    """One request for one blob."""

    method: str
    target: Target
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


class BlockBlob:
    """One blob and the requests for it. All raise GivenUpError."""

    def __init__(self, session: BlobSession, target: Target, tally: Tally, meter: Meter | None) -> None:
        self._session = session
        self._target = target
        self._tally = tally
        self._meter = meter

    async def put(self, data: bytes) -> None:
        """Make the blob of these bytes: Put Blob."""
        headers = {**self._target.headers.of_blob, "x-ms-blob-type": "BlockBlob", "Content-MD5": _digest(data)}
        await self._asked(Request("PUT", self._target, headers, {}, data), self._meter)

    async def staged(self) -> frozenset[tuple[str, int]]:
        """Return names and sizes of the blocks that wait for a commit; none if the SAS does not allow to look."""
        query = {"comp": "blocklist", "blocklisttype": "uncommitted"}
        try:
            listed = await self._asked(Request("GET", self._target, {}, query), None)
        except GivenUpError as error:
            if error.trouble.status in (401, 403, 404):
                return frozenset()
            raise
        return frozenset((name.decode(), int(size)) for name, size in _BLOCK.findall(listed))

    async def stage(self, block: Block, data: bytes) -> None:
        """Send one block: Put Block."""
        headers = {**self._target.headers.of_block, "Content-MD5": base64.b64encode(block.digest).decode()}
        await self._asked(
            Request("PUT", self._target, headers, {"comp": "block", "blockid": block.name}, data), self._meter
        )

    async def commit(self, blocks: Sequence[Block], digest: bytes | None) -> None:
        """Make the blob of blocks that have been sent: Put Block List. `digest`: MD5 of the whole."""
        names = "".join(f"<Latest>{block.name}</Latest>" for block in blocks)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{names}</BlockList>'.encode()
        headers = {**self._target.headers.of_blob, "Content-MD5": _digest(body), "Content-Type": "application/xml"}
        if digest is not None:
            headers["x-ms-blob-content-md5"] = base64.b64encode(digest).decode()
        await self._asked(Request("PUT", self._target, headers, {"comp": "blocklist"}, body), None)

    async def _asked(self, request: Request, meter: Meter | None) -> bytes:
        return await self._session.asked(request, self._tally, meter)


def _digest(data: bytes) -> str:
    return base64.b64encode(md5(data, usedforsecurity=False).digest()).decode()
