"""Jobs (spec/rest.md §2.3)."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from nodeagent.model.base import BatchModel
from nodeagent.model.enums import DisableTasks, JobState
from nodeagent.model.job import JobCreate, JobPatch, JobUpdate
from nodeagent.model.task import TaskCounts
from nodeagent.rules.file_properties import job_file_faults
from nodeagent.rules.sas import job_warnings
from nodeagent.rules.supported import unsupported_job
from nodeagent.service.errors import refusal
from nodeagent.service.lifecycle import jobs as lifecycle
from nodeagent.service.rest.call import Call
from nodeagent.service.rest.file_lists import refuse_long_file_lists
from nodeagent.service.rest.handlers.listing import Listing, Page, entity_reply
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.reply import WARNINGS_HEADER, Reply, created
from nodeagent.service.rest.select import expands_stats
from nodeagent.service.rest.shapes.job import PROPERTIES, job_shape
from nodeagent.service.rest.shapes.statistics import job_statistics
from nodeagent.service.rest.shapes.status import PROPERTIES as STATUS_PROPERTIES
from nodeagent.service.rest.shapes.status import status_shape
from nodeagent.service.rest.validate import (
    invalid_property,
    json_object,
    parse,
    refuse_faults,
    refuse_unsupported,
    unsupported_property,
)
from nodeagent.service.store import counts, job_nodes, job_schedules, jobs, statistics
from nodeagent.service.store.counts import JobCounts
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.job_nodes import JobNodeRow
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.statistics import UsedByJob

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of a job; `statistics` if they are asked for, and there are any."""

    job: JobRow
    statistics: tuple[UsedByJob, JobCounts] | None = None

    def shape(self, links: Links, now: datetime) -> dict[str, Any]:
        """Return the job as "get a job" shows it, with what is wrong if its special tasks began now."""
        entity = job_shape(links, self.job)
        found = () if self.job.state is JobState.COMPLETED else job_warnings(self.job.spec, now)
        if found:
            entity["nodeagent"] = {"warnings": [warning.to_wire() for warning in found]}
        if self.statistics is not None:
            entity["stats"] = job_statistics(links, self.job, *self.statistics)
        return entity


def shown_job(tx: Transaction, row: JobRow, *, stats: bool) -> Shown:
    """Return what is shown of a job."""
    used = statistics.of_job(tx, row.num) if stats else None
    return Shown(row, None if used is None else (used, counts.get(tx, row.num)))


JOBS: Listing[Shown] = Listing("jobs", PROPERTIES, jobs.COLUMNS, lambda shown: shown.job.id)
STATUSES: Listing[JobNodeRow] = Listing(
    "jobpreparationandreleasetaskstatuslist", STATUS_PROPERTIES, job_nodes.COLUMNS, job_nodes.cursor
)


class DisableParameters(BatchModel):
    """The body of "disable a job"."""

    disable_tasks: DisableTasks


class TerminateParameters(BatchModel):
    """The body of "terminate a job"."""

    terminate_reason: str | None = None


async def add_job(call: Call) -> Reply:
    """Add a job; its pool need not exist."""
    body = json_object(call.body)
    spec = parse(JobCreate, body, loose=call.context.loose)
    if job_schedules.schedule_of(spec.id) is not None:
        raise invalid_property("id", spec.id, "only a job schedule makes jobs with a colon in their ids")
    ignored = refuse_unsupported(unsupported_job(spec), loose=call.context.loose)
    if ignored:
        _log.warning("properties_ignored", job=spec.id, properties=ignored)
    refuse_faults(job_file_faults(spec, auto_storage=call.context.auto_storage))
    refuse_long_file_lists(body)
    now = call.context.clock()
    row = await call.database.write(lambda tx: lifecycle.create_job(tx, spec, now))
    count = len(job_warnings(spec, now))
    return created(call.links.job(row.id), row.modified, {WARNINGS_HEADER: str(count)} if count else None)


async def list_jobs(call: Call) -> Reply:
    """List the jobs of the account."""
    stats = expands_stats(call.query)

    def fetch(tx: Transaction, page: Page) -> list[Shown]:
        rows = jobs.page(tx, after=page.after, limit=page.limit, where=page.where)
        return [shown_job(tx, row, stats=stats) for row in rows]

    now = call.context.clock()
    return await JOBS.reply(call, call.links.jobs(), fetch, lambda shown: shown.shape(call.links, now))


async def get_job(call: Call) -> Reply:
    """Show one job."""
    job_id, stats = call.variables["job_id"], expands_stats(call.query)
    shown = await call.database.read(lambda tx: shown_job(tx, lifecycle.require(tx, job_id), stats=stats))
    row = shown.job
    call.condition.check(row.etag, row.modified)
    body = entity_reply(call, "jobs", shown.shape(call.links, call.context.clock()), PROPERTIES)
    return Reply(200, body, call.links.job(row.id), row.modified)


async def patch_job(call: Call) -> Reply:
    """Replace the properties that the body names."""
    patch = parse(JobPatch, json_object(call.body), loose=call.context.loose)
    if patch.network_configuration is not None:
        raise unsupported_property("networkConfiguration", "this version of nodeagent does not support it")
    now = call.context.clock()
    return await _change(call, 200, lambda tx, job_id: lifecycle.patch_job(tx, job_id, patch, now))


async def update_job(call: Call) -> Reply:
    """Replace all updatable properties."""
    update = parse(JobUpdate, json_object(call.body), loose=call.context.loose)
    now = call.context.clock()
    return await _change(call, 200, lambda tx, job_id: lifecycle.update_job(tx, job_id, update, now))


async def disable_job(call: Call) -> Reply:
    """Stop starting tasks of a job."""
    disable_tasks = parse(DisableParameters, json_object(call.body)).disable_tasks
    now = call.context.clock()
    return await _change(call, 202, lambda tx, job_id: lifecycle.disable_job(tx, job_id, disable_tasks, now))


async def enable_job(call: Call) -> Reply:
    """Let a disabled job go on."""
    now = call.context.clock()
    return await _change(call, 202, lambda tx, job_id: lifecycle.enable_job(tx, job_id, now))


async def terminate_job(call: Call) -> Reply:
    """End a job; the body is optional."""
    body = json_object(call.body) if call.body.strip() else {}
    reason = parse(TerminateParameters, body).terminate_reason
    force, now = call.query.flag("force"), call.context.clock()
    return await _change(
        call, 202, lambda tx, job_id: lifecycle.terminate_job(tx, job_id, now, reason=reason, force=force)
    )


async def delete_job(call: Call) -> Reply:
    """End a job and remove it with all that belongs to it."""
    job_id, force, now = call.variables["job_id"], call.query.flag("force"), call.context.clock()

    def delete(tx: Transaction) -> None:
        row = lifecycle.require(tx, job_id)
        call.condition.check(row.etag, row.modified)
        lifecycle.delete_job(tx, job_id, now, force=force)

    await call.database.write(delete)
    return Reply(202)


async def _change(call: Call, status: int, verb: Callable[[Transaction, str], JobRow]) -> Reply:
    """Apply a verb to a job that meets the caller's condition, in one transaction."""
    job_id = call.variables["job_id"]

    def change(tx: Transaction) -> JobRow:
        row = lifecycle.require(tx, job_id)
        call.condition.check(row.etag, row.modified)
        return verb(tx, job_id)

    row = await call.database.write(change)
    return Reply(status, url=call.links.job(row.id), modified=row.modified)


async def list_statuses(call: Call) -> Reply:
    """List what preparation and release did on each node, nodes that have been removed since included."""
    job_id = call.variables["job_id"]

    def fetch(tx: Transaction, page: Page) -> list[JobNodeRow]:
        job = lifecycle.require(tx, job_id)
        if job.spec.job_preparation_task is None:
            raise refusal("JobPreparationTaskNotSpecified")
        return job_nodes.page(tx, job.num, after=page.after, limit=page.limit, where=page.where)

    url = f"{call.links.job(job_id)}/jobpreparationandreleasetaskstatus"
    return await STATUSES.reply(call, url, fetch, lambda row: status_shape(call.links, row))


async def count_tasks(call: Call) -> Reply:
    """Count the tasks of a job, and the slots that they need, by state."""
    job_id = call.variables["job_id"]
    found = await call.database.read(lambda tx: counts.get(tx, lifecycle.require(tx, job_id).num))
    body = {"odata.metadata": call.links.metadata("taskcountsresult/@Element")}
    return Reply(200, body | {"taskCounts": _numbers(found.tasks), "taskSlotCounts": _numbers(found.slots)})


def _numbers(found: TaskCounts) -> dict[str, int]:
    return {name: getattr(found, name) for name in TaskCounts.model_fields}
