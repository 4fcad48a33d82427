"""From an HTTP request to a handler and back: authentication, api-version, body, headers, refusals.

Every answer carries `request-id`; every refusal is Batch's error body (spec/rest.md §1, §3.14).
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

import orjson
import structlog
from aiohttp import web

from nodeagent.model.times import http_date
from nodeagent.service.errors import BatchError, refusal
from nodeagent.service.rest.authorization import Caller, authorize_task, not_permitted
from nodeagent.service.rest.call import Call, RestContext
from nodeagent.service.rest.conditions import parse_condition
from nodeagent.service.rest.error_body import error_body
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.query import Query
from nodeagent.service.rest.reply import Reply
from nodeagent.service.rest.router import Router
from nodeagent.service.rest.trace import CALLER
from nodeagent.service.rest.translation import translation_of
from nodeagent.service.rest.validate import MAX_BODY_BYTES

JSON = "application/json; odata=minimalmetadata"
_BODY_SECONDS = 30
"""A body that takes longer than Batch's own time budget for a call is refused."""

Handler = Callable[[Call], Awaitable[Reply | web.StreamResponse]]
_log = structlog.get_logger()

REST_CONTEXT = web.AppKey("rest_context", RestContext)


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table of operations; without a handler it is known to Batch and refused here by name."""

    method: str
    path: str
    name: str
    handler: Handler | None = None


class RestServer:
    """Serves the operations of one table."""

    def __init__(self, context: RestContext, operations: Iterable[Operation]) -> None:
        self._context = context
        self._router = Router(operations)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request to the Batch API."""
        return await answer(self._context, request, self._serve)

    async def _serve(self, request: web.Request, request_id: str, caller: Caller) -> Reply | web.StreamResponse:
        path, _, query_text = target(request).partition("?")
        operation, variables = self._router.find(request.method, path)
        if caller.attempt_id is not None:
            attempt_id = caller.attempt_id
            await self._context.database.read(lambda tx: authorize_task(tx, attempt_id, variables))
        query = Query(query_text)
        translation = translation_of(query.api_version)
        if operation.handler is None:
            text = f"The operation {operation.name} is not supported by this version of nodeagent."
            raise BatchError(400, "NotImplemented", text, (("Operation", operation.name),))
        headers, body = _lower(request), await _read_body(request)
        call = Call(
            context=self._context,
            request=request,
            request_id=request_id,
            variables=variables,
            query=query if translation is None else translation.query(query),
            condition=parse_condition(request.method, headers),
            links=_links(request),
            body=body if translation is None else translation.request_body(body),
        )
        reply = await operation.handler(call)
        if translation is None or isinstance(reply, web.StreamResponse) or reply.body is None:
            return reply
        # a page of a thousand tasks takes a while: not on the loop that answers the nodes
        older = await asyncio.to_thread(translation.reply_body, operation.name, query, reply.body)
        return replace(reply, body=older)


def protected(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Wrap a handler that is no Batch operation: the same authentication, and refusals in the same form."""

    async def serve(request: web.Request, _: str, caller: Caller) -> web.StreamResponse:
        if caller.is_task:
            raise not_permitted()
        return await handler(request)

    async def guarded(request: web.Request) -> web.StreamResponse:
        return await answer(request.app[REST_CONTEXT], request, serve)

    return guarded


async def answer(
    context: RestContext,
    request: web.Request,
    serve: Callable[[web.Request, str, Caller], Awaitable[Reply | web.StreamResponse]],
) -> web.StreamResponse:
    """Authenticate a request, serve it, and shape the reply or the refusal."""
    request_id = str(uuid.uuid4())
    try:
        caller = await context.authenticator.check(request.method, target(request), _lower(request))
        CALLER.set(caller.kind)
        reply = await serve(request, request_id, caller)
    except BatchError as error:
        return _refusal(context, request, request_id, error)
    except web.HTTPException:
        raise
    except Exception as error:
        if request.writer.output_size:
            # an answer has begun: its connection can only be broken off, which aiohttp does
            raise
        _log.exception("internal_error", method=request.method, request_id=request_id)
        return _refusal(context, request, request_id, _internal_error(error))
    if isinstance(reply, web.StreamResponse):
        return reply
    body = None if reply.body is None else orjson.dumps(reply.body)
    headers = common_headers(request, request_id) | dict(reply.headers or {})
    if body is not None:
        headers["Content-Type"] = JSON
    if reply.url is not None:
        headers["DataServiceId"] = reply.url
        if reply.located:
            headers["Location"] = reply.url
    if reply.modified is not None and reply.etag is not None:
        headers["ETag"] = reply.etag
        headers["Last-Modified"] = http_date(reply.modified)
    return web.Response(status=reply.status, body=body, headers=headers)


def common_headers(request: web.Request, request_id: str) -> dict[str, str]:
    """Return the headers that every answer carries."""
    headers = {"request-id": request_id, "DataServiceVersion": "3.0"}
    client_id = request.headers.get("client-request-id") or request.headers.get("x-ms-client-request-id")
    if client_id and request.headers.get("return-client-request-id", "").lower() == "true":
        headers["client-request-id"] = client_id[:64]
    return headers


def target(request: web.Request) -> str:
    """Return the target of the request line as it was sent. Raises BatchError if it is no text."""
    raw = request.raw_path
    if "://" in raw.partition("?")[0]:
        # the absolute form that a proxy sends: http://host/path
        raw = "/" + raw.split("://", 1)[1].partition("/")[2]
    try:
        raw.encode()
    except UnicodeEncodeError as error:
        text = "The requested URI does not represent any resource on the server."
        raise BatchError(400, "InvalidUri", text, (("Reason", "The URI is not UTF-8."),)) from error
    return raw


def _links(request: web.Request) -> Links:
    return Links(f"{request.scheme}://{request.host}")


def _lower(request: web.Request) -> dict[str, str]:
    return {name.lower(): value.strip() for name, value in request.headers.items()}


async def _read_body(request: web.Request) -> bytes:
    if request.content_length is not None and request.content_length > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError as error:
        text = "The request body did not arrive within the permitted time."
        raise BatchError(408, "OperationTimedOut", text) from error
    except web.RequestPayloadError as error:
        # a Content-Encoding that is not true, or a chunk that is none
        raise refusal("InvalidRequestBody", ("Reason", "The body cannot be decoded.")) from error
    return bytes(body)


def _internal_error(error: Exception) -> BatchError:
    """Return the last resort: clients learn the kind of what is wrong with the service, the log has the rest."""
    text = "Server encountered an internal error. Please try again after some time."
    return BatchError(500, "InternalError", text, (("Kind", type(error).__name__),))


def _too_large() -> BatchError:
    return refusal("RequestBodyTooLarge", ("MaxLimit", str(MAX_BODY_BYTES)))


def _refusal(context: RestContext, request: web.Request, request_id: str, error: BatchError) -> web.Response:
    headers = common_headers(request, request_id)
    _log.info("refused", method=request.method, code=error.code, status=error.status, request_id=request_id)
    if request.method == "HEAD" or error.status == 304:
        return web.Response(status=error.status, headers=headers)
    headers["Content-Type"] = JSON
    body = error_body(error, f"{_links(request).base}/$metadata", request_id, context.clock())
    response = web.Response(status=error.status, body=orjson.dumps(body), headers=headers)
    if request.content.exception() is not None:
        # what follows on this connection cannot be read: the client must not send its next request there
        response.force_close()
    return response
