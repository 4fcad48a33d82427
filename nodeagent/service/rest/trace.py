"""One line per request (`--trace-http`), and a `request-id` on every answer, whoever made it.

A line holds no header and no body. Of a query only the values of Batch's own parameters are shown: others may hold a
signature or a token, in a URL that somebody sent here by mistake.
"""

import uuid
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from time import monotonic

import structlog
from aiohttp import web

from nodeagent.model.protocol import PREFIX

CALLER: ContextVar[str | None] = ContextVar("caller", default=None)
"""The kind of the caller of the request that this task handles, once it is known."""
REQUEST_ID = "request-id"
_SHOWN = frozenset({"api-version", "timeout", "maxresults", "$filter", "$select", "$expand", "recursive"})
_LONGEST = 1024
_log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def add_request_id(_: web.Request, response: web.StreamResponse) -> None:
    """Give an answer an id unless it has one: a signal handler for `on_response_prepare`."""
    if REQUEST_ID not in response.headers:
        response.headers[REQUEST_ID] = str(uuid.uuid4())


@web.middleware
async def trace(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Log a request when it has been handled, also if that failed or the client went away."""
    begun = monotonic()
    CALLER.set(None)  # a connection's requests are handled by one task
    response: web.StreamResponse | None = None
    try:
        response = await handler(request)
        await add_request_id(request, response)
    except web.HTTPException as refusal:
        response = refusal
        await add_request_id(request, response)
        raise
    finally:
        _log.info(
            "http",
            method=request.method,
            path=shown_target(request.raw_path),
            status=None if response is None else response.status,
            ms=round((monotonic() - begun) * 1000, 1),
            bytes_in=request.content.total_bytes,
            bytes_out=None if response is None else _size(response),
            request_id=None if response is None else response.headers[REQUEST_ID],
            caller=_caller(request, response),
            remote=request.remote,
        )
    return response


def shown_target(target: str) -> str:
    """Return the target of a request line as a log may show it."""
    path, mark, query = target.partition("?")
    parts = [part.partition("=") for part in query.split("&") if part]
    told = "&".join(
        f"{name}={value if name.replace('%24', '$').lower() in _SHOWN else '***'}" if equals else name
        for name, equals, value in parts
    )
    return f"{path}{mark}{told}"[:_LONGEST]


def _size(response: web.StreamResponse) -> int | None:
    """Return how large the answer's body is: what was sent of a stream, what will be sent of all others."""
    return response.body_length if response.prepared else response.content_length


def _caller(request: web.Request, response: web.StreamResponse | None) -> str | None:
    """Return how the caller was known; None if it was not, or had not to be."""
    if request.path.startswith(f"{PREFIX}/"):
        return None if response is not None and response.status in (401, 403) else "node"
    return CALLER.get()
