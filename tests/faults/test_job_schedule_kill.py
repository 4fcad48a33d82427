"""kill -9 of the service while job schedules become due: no occurrence is lost, none makes two jobs."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

from nodeagent.local.client import BatchClient, ServiceError, ServiceUnreachableError
from nodeagent.model.job import JobSpecification, PoolInfo
from nodeagent.model.job_schedule import JobScheduleCreate, Schedule
from nodeagent.model.times import utc_now
from nodeagent.service.lifecycle import job_schedules
from nodeagent.service.store import job_schedules as rows
from nodeagent.service.store.database import Transaction
from tests.faults.test_service_kill import KEY, Killed, free_port, service_at

SCHEDULES = 60
APART = timedelta(milliseconds=100)
KILLED_AFTER = (4, 11, 23, 36, 48)
"""The service is killed as soon as the schedule of this number has made its job."""
DEADLINE = 55
"""Less than the shortest recurrence, so that each schedule has one occurrence."""


def _create(tx: Transaction, begin: datetime) -> None:
    specification = JobSpecification(pool_info=PoolInfo(pool_id="pool"))
    for number in range(SCHEDULES):
        schedule = Schedule(do_not_run_until=begin + number * APART, recurrence_interval=timedelta(minutes=1))
        spec = JobScheduleCreate(id=str(number), schedule=schedule, job_specification=specification)
        job_schedules.create_schedule(tx, spec, begin - timedelta(seconds=1))


async def _made(client: BatchClient, number: int) -> None:
    """Wait until a schedule has made its job, whoever is killed meanwhile."""
    while True:
        try:
            await client.get_job(f"{number}:job-1")
        except (ServiceError, ServiceUnreachableError):
            await asyncio.sleep(0.01)
        else:
            return


async def test_a_service_that_is_killed_makes_each_job_once(tmp_path: Path) -> None:
    """What became due while it was down is made at its next start; numbers have no gaps."""
    async with service_at(tmp_path) as service:
        await service.database.write(lambda tx: _create(tx, utc_now() + timedelta(seconds=1)))
    port = free_port()
    killed = Killed(tmp_path, port)
    await killed.start()
    try:
        async with asyncio.timeout(DEADLINE), BatchClient(f"http://127.0.0.1:{port}", "devaccount", KEY) as client:
            for number in KILLED_AFTER:
                await _made(client, number)
                await killed.kill()
                await killed.start()
            for number in range(SCHEDULES):
                await _made(client, number)
    finally:
        await killed.kill()
    async with service_at(tmp_path) as service:
        await service.database.read(_check)


def _check(tx: Transaction) -> None:
    for number in range(SCHEDULES):
        row = job_schedules.require(tx, str(number))
        (job,) = rows.jobs_page(tx, row.id)
        assert (job.id, row.last_number, row.last_run) == (f"{number}:job-1", 1, job.created)
        first = row.spec.schedule.do_not_run_until
        assert first is not None
        assert job.created >= first
