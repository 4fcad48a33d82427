"""`GET /nodeagent/v1/jobs/{job}/transfers`: what the tasks of a job download, install and upload now.

No operation of Batch: it is served beside them, with the same authentication.
"""

import orjson
from aiohttp import web

from nodeagent.service.app_keys import DATABASE, TRANSFERS
from nodeagent.service.lifecycle.jobs import require as require_job
from nodeagent.service.store import attempts
from nodeagent.service.store.attempts import Carrier
from nodeagent.service.store.database import Transaction
from nodeagent.service.transfers import transfer_shape

PATH = "/nodeagent/v1/jobs/{job}/transfers"


async def list_transfers(request: web.Request) -> web.Response:
    """List the transfers of a job's tasks, ordered by task. Raises BatchError JobNotFound."""
    known = request.app[TRANSFERS].snapshot()

    def find(tx: Transaction) -> list[Carrier]:
        job = require_job(tx, request.match_info["job"])
        return [carrier for carrier in attempts.carrying(tx, known) if carrier.job_num == job.num]

    found = sorted(await request.app[DATABASE].read(find), key=lambda carrier: carrier.task_id)
    value = [
        {"taskId": carrier.task_id, "nodeId": carrier.node_id, **transfer_shape(known[carrier.attempt_id])}
        for carrier in found
    ]
    return web.Response(body=orjson.dumps({"value": value}), content_type="application/json")
