"""A proxy before a real storage: it counts what is asked, and makes the faults that a real one does not."""

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

_HOP = {"host", "transfer-encoding", "connection", "content-length", "keep-alive"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, its body read."""

    number: int
    """From 1."""
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        """What the storage calls it."""
        operation = {"": "Blob", "block": "Block", "blocklist": "Block List"}[self.query.get("comp", "")]
        return f"{self.method.title()} {operation}"


Fault = Callable[[Asked], Awaitable[web.StreamResponse | bytes | None]]
"""Answers a request itself, or changes its body, or (None) lets it pass."""


async def no_fault(_asked: Asked) -> web.StreamResponse | bytes | None:
    """Let everything pass."""
    return None


@dataclass
class Proxy:
    """A running proxy."""

    endpoint: str
    """URL of the storage behind it: scheme, host, port."""
    url: str = ""
    fault: Fault = no_fault
    asked: list[Asked] = field(default_factory=list)

    def through(self, url: str) -> str:
        """Return a URL of the storage that leads over this proxy; a SAS holds for any host."""
        return url.replace(self.endpoint, self.url)

    def count(self, kind: str) -> int:
        """Return how many requests of a kind (`Put Block`) have been made."""
        return sum(asked.kind == kind for asked in self.asked)


@asynccontextmanager
async def running_proxy(storage: str) -> AsyncIterator[Proxy]:
    """Run a proxy before the storage at `storage`."""
    proxy = Proxy(str(URL(storage).origin()))
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def serve(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            headers = {name.lower(): value for name, value in request.headers.items()}
            asked = Asked(len(proxy.asked) + 1, request.method, request.path, dict(request.query), headers, body)
            proxy.asked.append(asked)
            answer = await proxy.fault(asked)
            if isinstance(answer, web.StreamResponse):
                return answer
            target = URL(proxy.endpoint + request.raw_path, encoded=True)
            passed = {name: value for name, value in headers.items() if name not in _HOP}
            sent = body if answer is None else answer
            async with session.request(asked.method, target, headers=passed, data=io.BytesIO(sent)) as found:
                kept = {name: value for name, value in found.headers.items() if name.lower() not in _HOP}
                return web.Response(status=found.status, headers=kept, body=await found.read())

        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{tail:.*}", serve)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield proxy
        finally:
            await runner.cleanup()
