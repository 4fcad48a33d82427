"""Job schedules (spec/rest.md §2.6)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import structlog

from nodeagent.model.job import JobCreate, JobSpecification
from nodeagent.model.job_schedule import JobScheduleCreate, JobSchedulePatch, JobScheduleUpdate
from nodeagent.rules.file_properties import job_file_faults
from nodeagent.rules.sas import job_warnings
from nodeagent.rules.supported import unsupported_job
from nodeagent.service.lifecycle import job_schedules as lifecycle
from nodeagent.service.rest.call import Call
from nodeagent.service.rest.file_lists import refuse_long_file_lists
from nodeagent.service.rest.handlers.jobs import JOBS, shown_job
from nodeagent.service.rest.handlers.jobs import Shown as ShownJob
from nodeagent.service.rest.handlers.listing import Listing, Page, entity_reply
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.reply import WARNINGS_HEADER, Reply, created
from nodeagent.service.rest.select import expands_stats
from nodeagent.service.rest.shapes.job_schedule import PROPERTIES, job_schedule_shape
from nodeagent.service.rest.shapes.statistics import job_schedule_statistics
from nodeagent.service.rest.validate import (
    Model,
    json_object,
    parse,
    refuse_faults,
    refuse_unsupported,
    unsupported_property,
)
from nodeagent.service.store import job_schedules
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.job_schedules import JobScheduleRow
from nodeagent.service.store.statistics import UsedBySchedule

_SPECIFICATION = "jobSpecification"
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of a job schedule; `statistics` if they are asked for, and there are any."""

    schedule: JobScheduleRow
    statistics: UsedBySchedule | None = None

    def shape(self, links: Links, now: datetime) -> dict[str, Any]:
        """Return the schedule as "get a job schedule" shows it."""
        entity = job_schedule_shape(links, self.schedule, now)
        if self.statistics is not None:
            entity["stats"] = job_schedule_statistics(links, self.schedule, self.statistics)
        return entity


def _shown(tx: Transaction, row: JobScheduleRow, *, stats: bool) -> Shown:
    return Shown(row, job_schedules.used(tx, row.id) if stats else None)


JOB_SCHEDULES: Listing[Shown] = Listing(
    "jobschedules", PROPERTIES, job_schedules.COLUMNS, lambda shown: shown.schedule.id
)
JOBS_OF_SCHEDULE: Listing[ShownJob] = replace(
    JOBS, columns={name: column for name, column in JOBS.columns.items() if name != "id"}
)
"""As the list of all jobs, but that Batch cannot filter it by id (spec/rest.md §4.2)."""


async def add_schedule(call: Call) -> Reply:
    """Add a job schedule; its first job is there before the answer, if it is due."""
    spec = _parsed(JobScheduleCreate, call)
    job = _checked(call, spec.id, spec.job_specification)
    now = call.context.clock()
    row = await call.database.write(lambda tx: lifecycle.create_schedule(tx, spec, now))
    count = len(job_warnings(job, now))
    headers = {WARNINGS_HEADER: str(count)} if count else None
    return created(call.links.job_schedule(row.id), row.modified, headers)


async def list_schedules(call: Call) -> Reply:
    """List the job schedules of the account."""
    stats, now = expands_stats(call.query), call.context.clock()

    def fetch(tx: Transaction, page: Page) -> list[Shown]:
        rows = job_schedules.page(tx, after=page.after, limit=page.limit, where=page.where)
        return [_shown(tx, row, stats=stats) for row in rows]

    return await JOB_SCHEDULES.reply(
        call, call.links.job_schedules(), fetch, lambda shown: shown.shape(call.links, now)
    )


async def list_jobs(call: Call) -> Reply:
    """List the jobs that a schedule has made and that are still there."""
    schedule_id = call.variables["schedule_id"]
    stats, now = expands_stats(call.query), call.context.clock()

    def fetch(tx: Transaction, page: Page) -> list[ShownJob]:
        row = lifecycle.require(tx, schedule_id)
        found = job_schedules.jobs_page(tx, row.id, after=page.after, limit=page.limit, where=page.where)
        return [shown_job(tx, job, stats=stats) for job in found]

    url = f"{call.links.job_schedule(schedule_id)}/jobs"
    return await JOBS_OF_SCHEDULE.reply(call, url, fetch, lambda shown: shown.shape(call.links, now))


async def get_schedule(call: Call) -> Reply:
    """Show one job schedule."""
    schedule_id, stats = call.variables["schedule_id"], expands_stats(call.query)
    shown = await call.database.read(lambda tx: _shown(tx, lifecycle.require(tx, schedule_id), stats=stats))
    row = shown.schedule
    call.condition.check(row.etag, row.modified)
    body = entity_reply(call, "jobschedules", shown.shape(call.links, call.context.clock()), PROPERTIES)
    return Reply(200, body, call.links.job_schedule(row.id), row.modified)


async def schedule_exists(call: Call) -> Reply:
    """Tell whether a job schedule exists, by the status alone."""
    schedule_id = call.variables["schedule_id"]
    row = await call.database.read(lambda tx: lifecycle.require(tx, schedule_id))
    call.condition.check(row.etag, row.modified)
    return Reply(200, url=call.links.job_schedule(row.id), modified=row.modified)


async def patch_schedule(call: Call) -> Reply:
    """Replace the properties that the body names."""
    patch = _parsed(JobSchedulePatch, call)
    if patch.job_specification is not None:
        _checked(call, call.variables["schedule_id"], patch.job_specification)
    now = call.context.clock()
    return await _change(call, 200, lambda tx, schedule_id: lifecycle.patch_schedule(tx, schedule_id, patch, now))


async def update_schedule(call: Call) -> Reply:
    """Replace all updatable properties."""
    update = _parsed(JobScheduleUpdate, call)
    _checked(call, call.variables["schedule_id"], update.job_specification)
    now = call.context.clock()
    return await _change(call, 200, lambda tx, schedule_id: lifecycle.update_schedule(tx, schedule_id, update, now))


async def disable_schedule(call: Call) -> Reply:
    """Make no more jobs."""
    now = call.context.clock()
    return await _change(call, 204, lambda tx, schedule_id: lifecycle.disable_schedule(tx, schedule_id, now))


async def enable_schedule(call: Call) -> Reply:
    """Let a disabled job schedule go on."""
    now = call.context.clock()
    return await _change(call, 204, lambda tx, schedule_id: lifecycle.enable_schedule(tx, schedule_id, now))


async def terminate_schedule(call: Call) -> Reply:
    """End a job schedule with the job that runs."""
    force, now = call.query.flag("force"), call.context.clock()
    return await _change(
        call, 202, lambda tx, schedule_id: lifecycle.terminate_schedule(tx, schedule_id, now, force=force)
    )


async def delete_schedule(call: Call) -> Reply:
    """End a job schedule and remove it with all of its jobs."""
    schedule_id, force, now = call.variables["schedule_id"], call.query.flag("force"), call.context.clock()

    def delete(tx: Transaction) -> None:
        row = lifecycle.require(tx, schedule_id)
        call.condition.check(row.etag, row.modified)
        lifecycle.delete_schedule(tx, schedule_id, now, force=force)

    await call.database.write(delete)
    return Reply(202)


async def _change(call: Call, status: int, verb: Callable[[Transaction, str], JobScheduleRow]) -> Reply:
    """Apply a verb to a job schedule that meets the caller's condition, in one transaction."""
    schedule_id = call.variables["schedule_id"]

    def change(tx: Transaction) -> JobScheduleRow:
        row = lifecycle.require(tx, schedule_id)
        call.condition.check(row.etag, row.modified)
        return verb(tx, schedule_id)

    row = await call.database.write(change)
    return Reply(status, url=call.links.job_schedule(row.id), modified=row.modified)


def _parsed(model: type[Model], call: Call) -> Model:
    """Return the body as `model`. Raises BatchError."""
    body = json_object(call.body)
    parsed = parse(model, body)
    refuse_long_file_lists(body)
    return parsed


def _checked(call: Call, schedule_id: str, specification: JobSpecification) -> JobCreate:
    """Return the first job of a schedule. Raises BatchError for what it may not have, or this version has not.

    A schedule must never fail to make its job when the time comes, so what could is refused now, `loose` or not.
    """
    if specification.pool_info.auto_pool_specification is not None:
        path = f"{_SPECIFICATION}.poolInfo.autoPoolSpecification"
        raise unsupported_property(path, "this version of nodeagent does not support it")
    job = lifecycle.job_of(specification, "schedule", 1)
    paths = [f"{_SPECIFICATION}.{path}" for path in unsupported_job(job)]
    ignored = refuse_unsupported(paths, loose=call.context.loose)
    if ignored:
        _log.warning("properties_ignored", job_schedule=schedule_id, properties=ignored)
    refuse_faults(
        replace(fault, path=f"{_SPECIFICATION}.{fault.path}")
        for fault in job_file_faults(job, auto_storage=call.context.auto_storage)
    )
    return job
