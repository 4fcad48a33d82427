"""`POST /progress`: a node tells how far its transfers are (docs/node-protocol.md)."""

from aiohttp import web

from nodeagent.model.protocol import ProgressAnswer, ProgressCall
from nodeagent.service.app_keys import DATABASE, TRANSFERS
from nodeagent.service.lifecycle import nodes
from nodeagent.service.nodeapi.calls import json_answer, read_call


async def take_progress(request: web.Request) -> web.Response:
    """Take in what a node transfers. Raises NodeRefusedError: Fenced, NodeNotRegistered."""
    call = await read_call(request, ProgressCall)
    await request.app[DATABASE].read(lambda tx: nodes.require(tx, call))
    request.app[TRANSFERS].tell(call.node_id, call.transfers)
    return json_answer(ProgressAnswer())
