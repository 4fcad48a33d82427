"""A storage for tests that answers as it is told: for faults that a real one cannot be made to have."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from xml.sax.saxutils import escape

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(*answers: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """Run a server that gives these answers, the last one for ever; yield a container's URL and the requests."""
    left, asked = list(answers), list[web.Request]()

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        return await (left.pop(0) if len(left) > 1 else left[0])(request)

    application = web.Application()
    application.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        port = runner.addresses[0][1]
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{port}/account/c?sig=abcdef", asked
    finally:
        await runner.cleanup()


def page_of(*blobs: str, marker: str = "") -> bytes:
    """Return a page as storage gives it."""
    items = "".join(
        f"<Blob><Name>{escape(name)}</Name><Properties><Content-Length>1</Content-Length><BlobType>BlockBlob</BlobType>"
        "</Properties></Blob>"
        for name in blobs
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="c">'
        f"<Blobs>{items}</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>"
    ).encode()


def answering(status: int, code: str = "", **headers: str) -> Handler:
    """Return an answer of an error."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>No.</Message></Error>' if code else ""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, text=body, content_type="application/xml", headers=named)

    return answer
