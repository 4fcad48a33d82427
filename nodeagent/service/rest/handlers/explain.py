"""`GET /nodeagent/v1/explain/...`: why a task, a job or a node is in its state (docs/explain.md)."""

from collections.abc import Callable

from aiohttp import web

from nodeagent.model.explanation import Explanation
from nodeagent.service.app_keys import DATABASE, TRANSFERS
from nodeagent.service.explain.jobs import explain_job
from nodeagent.service.explain.nodes import explain_node
from nodeagent.service.explain.tasks import explain_task
from nodeagent.service.rest.dispatch import protected
from nodeagent.service.store.database import Transaction

_PREFIX = "/nodeagent/v1/explain"


def add_routes(app: web.Application) -> None:
    """Serve the explanations, with the authentication of the Batch API."""
    app.router.add_get(f"{_PREFIX}/jobs/{{job}}", protected(_job))
    app.router.add_get(f"{_PREFIX}/jobs/{{job}}/tasks/{{task}}", protected(_task))
    app.router.add_get(f"{_PREFIX}/pools/{{pool}}/nodes/{{node}}", protected(_node))


async def _task(request: web.Request) -> web.Response:
    names = request.match_info
    transfers = request.app[TRANSFERS].snapshot()
    return await _answer(request, lambda tx: explain_task(tx, names["job"], names["task"], transfers))


async def _job(request: web.Request) -> web.Response:
    names = request.match_info
    return await _answer(request, lambda tx: explain_job(tx, names["job"]))


async def _node(request: web.Request) -> web.Response:
    names = request.match_info
    return await _answer(request, lambda tx: explain_node(tx, names["pool"], names["node"]))


async def _answer(request: web.Request, explain: Callable[[Transaction], Explanation]) -> web.Response:
    """Explain in one reading transaction: all reasons are of the same moment."""
    explanation = await request.app[DATABASE].read(explain)
    return web.Response(
        text=explanation.to_json(), content_type="application/json", headers={"Cache-Control": "no-store"}
    )
