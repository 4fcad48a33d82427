"""Tasks (spec/rest.md §2.4, §9)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from nodeagent.model.base import BatchModel
from nodeagent.model.protocol import TransferProgress
from nodeagent.model.task import TaskConstraints, TaskCreate
from nodeagent.model.times import format_time
from nodeagent.rules.file_properties import task_file_faults
from nodeagent.rules.supported import unsupported_task
from nodeagent.service.errors import BatchError
from nodeagent.service.lifecycle import tasks as lifecycle
from nodeagent.service.lifecycle.jobs import require as require_job
from nodeagent.service.rest.call import Call
from nodeagent.service.rest.error_body import error_item
from nodeagent.service.rest.file_lists import refuse_long_file_lists
from nodeagent.service.rest.handlers.listing import Listing, Page, entity_reply
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.reply import WARNINGS_HEADER, Reply, created
from nodeagent.service.rest.select import expands_stats
from nodeagent.service.rest.shapes.statistics import task_statistics
from nodeagent.service.rest.shapes.task import PROPERTIES, nodeagent_shape, sas_warnings, task_shape
from nodeagent.service.rest.validate import invalid_property, json_object, parse, refuse_faults, refuse_unsupported
from nodeagent.service.store import attempts, statistics, tasks
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.statistics import Used
from nodeagent.service.store.tasks import TaskRow

_log = structlog.get_logger()

MAX_COLLECTION = 100
"""Tasks in one `addtaskcollection`."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of a task; `used` if its statistics are asked for, and there are any."""

    job: JobRow
    task: TaskRow
    used: Used | None = None
    transfer: TransferProgress | None = None

    def shape(self, links: Links, now: datetime) -> dict[str, Any]:
        """Return the task as "get a task" shows it."""
        entity = task_shape(links, self.job, self.task)
        ours = nodeagent_shape(self.task, self.transfer, now)
        if ours:
            entity["nodeagent"] = ours
        if self.used is not None:
            entity["stats"] = task_statistics(links, self.job, self.task, self.used)
        return entity


TASKS: Listing[Shown] = Listing("tasks", PROPERTIES, tasks.COLUMNS, lambda shown: shown.task.id)


class TaskUpdate(BatchModel):
    """The body of "update a task": constraints left out go back to their defaults."""

    constraints: TaskConstraints | None = None


class TaskCollection(BatchModel):
    """The body of "add a collection of tasks"; each item is validated by itself."""

    value: list[dict[str, Any]]


def _task(call: Call, value: dict[str, Any]) -> TaskCreate:
    """Return a valid and supported task. Raises BatchError."""
    spec = parse(TaskCreate, value, loose=call.context.loose)
    ignored = refuse_unsupported(unsupported_task(spec), loose=call.context.loose)
    if ignored:
        _log.warning("properties_ignored", task=spec.id, properties=ignored)
    refuse_faults(task_file_faults(spec, auto_storage=call.context.auto_storage))
    refuse_long_file_lists(value)
    return spec


async def add_task(call: Call) -> Reply:
    """Add one task."""
    job_id, spec, now = call.variables["job_id"], _task(call, json_object(call.body)), call.context.clock()
    row = await call.database.write(lambda tx: lifecycle.add_task(tx, job_id, spec, now))
    count = len(sas_warnings(row, now))
    headers = {WARNINGS_HEADER: str(count)} if count else None
    return created(call.links.task(job_id, row.id), row.modified, headers)


async def add_collection(call: Call) -> Reply:
    """Add up to 100 tasks in one transaction; each has its own outcome, in the order of the request."""
    job_id, now = call.variables["job_id"], call.context.clock()
    items = parse(TaskCollection, json_object(call.body)).value
    if not 1 <= len(items) <= MAX_COLLECTION:
        raise invalid_property("value", len(items), f"must have 1 to {MAX_COLLECTION} tasks")
    checked = [_checked(call, item) for item in items]
    specs = [spec for spec in checked if isinstance(spec, TaskCreate)]
    added = iter(await call.database.write(lambda tx: lifecycle.add_tasks(tx, job_id, specs, now)))
    outcomes = [item if isinstance(item, BatchError) else next(added) for item in checked]
    body = {
        "odata.metadata": call.links.metadata("taskaddresult"),
        "value": [_outcome(call, job_id, item, outcome) for item, outcome in zip(items, outcomes, strict=True)],
    }
    return Reply(200, body)


def _checked(call: Call, item: dict[str, Any]) -> TaskCreate | BatchError:
    try:
        return _task(call, item)
    except BatchError as error:
        return error


def _outcome(call: Call, job_id: str, item: dict[str, Any], outcome: TaskRow | BatchError) -> dict[str, Any]:
    if isinstance(outcome, BatchError):
        error = error_item(outcome, call.request_id, call.context.clock())
        # only of what is the service's own fault may a client expect that the same task is taken later
        status = "servererror" if outcome.status >= 500 else "clienterror"
        return {"status": status, "taskId": str(item.get("id", "")), "error": error}
    return {
        "status": "success",
        "taskId": outcome.id,
        "eTag": outcome.etag,
        "lastModified": format_time(outcome.modified),
        "location": call.links.task(job_id, outcome.id),
    }


async def list_tasks(call: Call) -> Reply:
    """List the tasks of a job."""
    job_id = call.variables["job_id"]

    stats = expands_stats(call.query)

    def fetch(tx: Transaction, page: Page) -> list[Shown]:
        job = require_job(tx, job_id)
        rows = tasks.page(tx, job.num, after=page.after, limit=page.limit, where=page.where)
        used = statistics.of_tasks(tx, [row.num for row in rows]) if stats else {}
        moved = _transfers(tx, call)
        return [Shown(job, row, used.get(row.num), moved.get(row.num)) for row in rows]

    now = call.context.clock()
    return await TASKS.reply(call, call.links.tasks(job_id), fetch, lambda shown: shown.shape(call.links, now))


def _transfers(tx: Transaction, call: Call) -> Mapping[int, TransferProgress]:
    """Return the transfers that are under way now, by the number of their task."""
    if not call.context.transfers:
        return {}
    known = call.context.transfers.snapshot()
    return {carrier.task_num: known[carrier.attempt_id] for carrier in attempts.carrying(tx, known)}


async def get_task(call: Call) -> Reply:
    """Show one task."""
    job_id, task_id = call.variables["job_id"], call.variables["task_id"]
    stats = expands_stats(call.query)

    def fetch(tx: Transaction) -> Shown:
        job, row = lifecycle.require(tx, job_id, task_id)
        used = statistics.of_tasks(tx, (row.num,)).get(row.num) if stats else None
        return Shown(job, row, used, _transfers(tx, call).get(row.num))

    shown = await call.database.read(fetch)
    row = shown.task
    call.condition.check(row.etag, row.modified)
    body = entity_reply(call, "tasks", shown.shape(call.links, call.context.clock()), PROPERTIES)
    return Reply(200, body, call.links.task(shown.job.id, row.id), row.modified)


async def update_task(call: Call) -> Reply:
    """Replace the constraints of a task."""
    constraints = parse(TaskUpdate, json_object(call.body)).constraints
    now = call.context.clock()
    return await _change(
        call, 200, lambda tx, job_id, task_id: lifecycle.update_task(tx, job_id, task_id, constraints, now)
    )


async def terminate_task(call: Call) -> Reply:
    """Complete a task at once; its process is stopped after that."""
    now = call.context.clock()
    return await _change(call, 204, lambda tx, job_id, task_id: lifecycle.terminate_task(tx, job_id, task_id, now))


async def reactivate_task(call: Call) -> Reply:
    """Let a task that failed run again."""
    now = call.context.clock()
    return await _change(call, 204, lambda tx, job_id, task_id: lifecycle.reactivate_task(tx, job_id, task_id, now))


async def delete_task(call: Call) -> Reply:
    """Remove a task, with its files on the node."""
    job_id, task_id, now = call.variables["job_id"], call.variables["task_id"], call.context.clock()

    def delete(tx: Transaction) -> None:
        _, row = lifecycle.require(tx, job_id, task_id)
        call.condition.check(row.etag, row.modified)
        lifecycle.delete_task(tx, job_id, task_id, now)

    await call.database.write(delete)
    return Reply(200)


async def _change(call: Call, status: int, verb: Callable[[Transaction, str, str], TaskRow]) -> Reply:
    """Apply a verb to a task that meets the caller's condition, in one transaction."""
    job_id, task_id = call.variables["job_id"], call.variables["task_id"]

    def change(tx: Transaction) -> TaskRow:
        _, row = lifecycle.require(tx, job_id, task_id)
        call.condition.check(row.etag, row.modified)
        return verb(tx, job_id, task_id)

    row = await call.database.write(change)
    return Reply(status, url=call.links.task(job_id, row.id), modified=row.modified)


async def list_subtasks(call: Call) -> Reply:
    """List the subtasks of a task: none, as long as no task runs on several nodes."""
    job_id, task_id = call.variables["job_id"], call.variables["task_id"]
    await call.database.read(lambda tx: lifecycle.require(tx, job_id, task_id))
    return Reply(200, {"odata.metadata": call.links.metadata("subtaskinfo"), "value": []})
