"""A web server that does what a real one never does on request: it cuts, hangs, lies. One request per connection."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    number: int
    """0 for the first one."""
    target: str
    headers: Mapping[str, str]
    """By names in small letters."""

    def range(self, total: int) -> tuple[int, int]:
        """Return the bytes asked for: from, up to (not including)."""
        first, _, last = self.headers["range"].removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1, total)


class Reply:
    """How the answer to one request is written."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def head(self, status: int, **headers: str) -> None:
        """Send the status and the headers; underscores in names are hyphens."""
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.body("\r\n".join([*lines, "", ""]).encode())

    async def body(self, content: bytes) -> None:
        """Send bytes."""
        self._writer.write(content)
        await self._writer.drain()

    async def all(self, status: int, content: bytes = b"", **headers: str) -> None:
        """Send a whole answer."""
        await self.head(status, Content_Length=str(len(content)), **headers)
        await self.body(content)

    async def part(self, asked: Asked, content: bytes, **headers: str) -> None:
        """Send the range that was asked for, as a faultless server does."""
        start, end = asked.range(len(content))
        span = f"bytes {start}-{end - 1}/{len(content)}"
        await self.all(206, content[start:end], Content_Range=span, **headers)

    async def cut_part(self, asked: Asked, content: bytes, after: int, **headers: str) -> None:
        """Announce the range that was asked for, and send only the first bytes of it."""
        start, end = asked.range(len(content))
        span = f"bytes {start}-{end - 1}/{len(content)}"
        await self.head(206, Content_Length=str(end - start), Content_Range=span, **headers)
        await self.body(content[start : min(start + after, end)])

    def reset(self) -> None:
        """Cut the connection the hard way."""
        self._writer.transport.abort()


Answer = Callable[[Asked, Reply], Awaitable[None]]


@dataclass
class FaultyServer:
    """A running one."""

    port: int
    asked: list[Asked] = field(default_factory=list)
    """All requests, in their order."""

    def url(self, target: str = "/file?sig=SECRET") -> str:
        """Return a URL of it: with a signature that must not show up anywhere."""
        return f"http://127.0.0.1:{self.port}{target}"


@asynccontextmanager
async def faulty_server(answer: Answer) -> AsyncIterator[FaultyServer]:
    """Run a server that answers like this; what still hangs is ended with it."""
    running: set[asyncio.Task[None]] = set()
    server: FaultyServer

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            asked = Asked(len(server.asked), first.split(" ")[1], headers)
            server.asked.append(asked)
            await answer(asked, Reply(writer))
        running.discard(task)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    server = FaultyServer(listener.sockets[0].getsockname()[1])
    try:
        yield server
    finally:
        listener.close()
        for task in tuple(running):
            task.cancel()
        await asyncio.gather(*tuple(running), return_exceptions=True)
        await listener.wait_closed()
