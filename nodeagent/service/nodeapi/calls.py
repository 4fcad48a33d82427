"""From an HTTP request of an agent to a parsed call, and refusals as `ProtocolError` bodies."""

import hmac
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from aiohttp import web
from pydantic import ValidationError

from nodeagent.model.base import BatchModel
from nodeagent.model.protocol import ProtocolError
from nodeagent.service.app_keys import NODE_KEY
from nodeagent.service.lifecycle.nodes import NodeRefusedError

C = TypeVar("C", bound=BatchModel)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = structlog.get_logger()


def guarded(handler: Handler) -> Handler:
    """Check the node key before a handler runs, and shape its refusals."""

    async def guard(request: web.Request) -> web.StreamResponse:
        try:
            _check_key(request)
            return await handler(request)
        except NodeRefusedError as error:
            _log.info("node_call_refused", path=request.path, code=error.code, reason=error.message)
            body = ProtocolError(code=error.code, message=error.message).to_json()
            return web.Response(status=error.status, text=body, content_type="application/json")

    return guard


def _check_key(request: web.Request) -> None:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    expected = request.app[NODE_KEY]
    if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), expected.encode()):
        raise NodeRefusedError(403, "NodeKeyRefused", "the node key in the Authorization header is not this service's")


async def read_call(request: web.Request, model: type[C]) -> C:
    """Parse the body of a call. Raises NodeRefusedError: InvalidRequestBody, naming what is wrong."""
    try:
        return model.from_json(await request.read())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise NodeRefusedError(400, "InvalidRequestBody", f"{place}: {first['msg']}") from error
    except web.HTTPRequestEntityTooLarge as error:
        raise NodeRefusedError(413, "RequestBodyTooLarge", "send less in one call") from error


def json_answer(model: BatchModel) -> web.Response:
    """Return a model as the body of an answer."""
    return web.Response(text=model.to_json(), content_type="application/json")
