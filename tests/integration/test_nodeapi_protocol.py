"""The node protocol over real HTTP, with a scripted agent: exactly once in effect (design.md §5)."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from nodeagent.local.signing import authorization
from nodeagent.model.enums import ExecutionResult, JobState, NodeState, TaskState
from nodeagent.model.events import EventConstraints, EventNodeInfo, EventRecord, StartExecutionInfo, TaskStartEvent
from nodeagent.model.job import JobConstraints, JobCreate, JobPreparationTask, JobReleaseTask, PoolInfo
from nodeagent.model.protocol import (
    Assignment,
    NumberedMessage,
    Transition,
)
from nodeagent.model.task import TaskCreate
from nodeagent.model.times import http_date, utc_now
from nodeagent.service.app import Service
from nodeagent.service.event_log import write_events
from nodeagent.service.lifecycle import jobs, tasks
from nodeagent.service.signals import Signals
from nodeagent.service.state_dir import StateInUseError
from nodeagent.service.store import events
from nodeagent.service.store import nodes as node_rows
from nodeagent.service.store.database import Database, Transaction
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.tasks import TaskRow
from tests.integration.protocol_agent import ACCOUNT, KEY, Agent, running, settings

T = TypeVar("T")
DEADLINE = 20


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession() as session:
        yield session


async def create_job(service: Service, **more: object) -> None:
    """Add a job."""
    spec = JobCreate.model_validate({"id": "job", "pool_info": PoolInfo(pool_id="pool"), **more})
    await service.database.write(lambda tx: jobs.create_job(tx, spec, utc_now()))


async def add_tasks(service: Service, *names: str) -> None:
    """Add tasks to the job."""
    specs = [TaskCreate(id=name, command_line="true") for name in names]
    await service.database.write(lambda tx: tasks.add_tasks(tx, "job", specs, utc_now()))


async def get_task(service: Service, name: str) -> TaskRow:
    """Return a task of the job."""
    return await service.database.read(lambda tx: tasks.require(tx, "job", name)[1])


async def get_job(service: Service) -> JobRow:
    """Return the job."""
    return await service.database.read(lambda tx: jobs.require(tx, "job"))


async def until(service: Service, look: Callable[[Transaction], T | None]) -> T:
    """Read until there is something: the service acts of its own accord."""
    async with asyncio.timeout(DEADLINE):
        while not (found := await service.database.read(look)):  # noqa: ASYNC110 - another program's state
            await asyncio.sleep(0.02)
        return found


async def poll_waits(service: Service) -> None:
    """Return when a long poll waits at the service."""
    async with asyncio.timeout(DEADLINE):
        while not any(name.startswith("node:") for name in service.signals.waiting):  # noqa: ASYNC110 - a peer
            await asyncio.sleep(0.01)


async def test_refusals_name_what_is_wrong(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """Key, body, pool and order of calls: each has its status and its code."""
    async with running(tmp_path) as service:
        agent = Agent(session, service)
        agent.key = "wrong"
        status, body = await agent.call("register", agent.registration())
        assert (status, body["code"]) == (403, "NodeKeyRefused")
        agent.key = None
        status, body = await agent.call("register", agent.registration(slots=0))
        assert (status, body["code"]) == (400, "InvalidRequestBody")
        assert "slots" in body["message"]
        status, body = await agent.call("register", agent.registration(poolId="nowhere"))
        assert (status, body["code"]) == (404, "PoolNotFound")
        for name in ("assignments", "reports"):
            status, body = await agent.call(name, {"cursor": 0} if name == "assignments" else {"reports": []})
            assert (status, body["code"]) == (409, "NodeNotRegistered")
        assert (await agent.ok("heartbeat", {"cursor": 0}))["registerAgain"] is True
        await agent.register()
        report = agent.report("a", Transition.COMPLETED)
        status, body = await agent.call("reports", {"reports": [report]})
        assert (status, body["code"]) == (400, "InvalidRequestBody")
        assert "outcome" in body["message"]


async def test_a_long_poll_is_answered_as_soon_as_there_is_work(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """The poll waits a minute if nothing comes; the task is there long before."""
    async with running(tmp_path) as service:
        agent = Agent(session, service)
        await agent.register()
        await create_job(service)
        poll = asyncio.create_task(agent.assignments(wait_seconds=60))
        await add_tasks(service, "a")
        async with asyncio.timeout(DEADLINE):
            (assignment,) = await poll
        assert (assignment.job_id, assignment.task_id) == ("job", "a")
        assert assignment.work.command_line == "true"


async def test_reports_bring_the_work_that_they_make_room_for(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """An end's answer brings the next task, the waiting poll does not bring it too; a lost answer loses nothing."""
    async with running(tmp_path) as service:
        agent = Agent(session, service, slots=1)
        await agent.register()
        await create_job(service)
        await add_tasks(service, "t1", "t2")
        (first,) = await agent.assignments()
        waiting = asyncio.create_task(agent.ok("assignments", {"cursor": agent.cursor, "waitSeconds": 3}))
        await poll_waits(service)
        reports = [agent.report(first.attempt_id, Transition.RUNNING), agent.end(first.attempt_id)]
        body = {"cursor": agent.cursor, "reports": reports}
        answer = await agent.ok("reports", body)
        (brought,) = [NumberedMessage.model_validate(item) for item in answer["messages"]]
        assert isinstance(brought.message, Assignment)
        assert brought.message.task_id == "t2"
        again = await agent.ok("reports", body)
        assert [item["status"] for item in again["results"]] == ["already", "already"]
        assert [item["number"] for item in again["messages"]] == [brought.number], "that answer might have been lost"
        assert (await waiting)["messages"] == []
        assert [item.number for item in await agent.poll()] == [brought.number], "it was never acknowledged"


async def test_stopping_the_service_answers_those_who_wait(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """A long poll does not hold up the end of the service."""
    async with running(tmp_path) as service:
        agent = Agent(session, service)
        await agent.register()
        poll = asyncio.create_task(agent.poll(wait_seconds=60))
        await poll_waits(service)
    async with asyncio.timeout(DEADLINE):
        assert await poll == []


async def test_messages_come_again_until_they_are_acknowledged(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """A lost answer costs nothing: the old cursor brings the same messages."""
    async with running(tmp_path) as service:
        agent = Agent(session, service)
        await agent.register()
        await create_job(service)
        await add_tasks(service, "a", "b", "c")
        first = await agent.poll()
        agent.cursor = 0
        assert await agent.poll() == first
        assert len(first) == 2, "as many as there are slots"
        await agent.ok("heartbeat", {"cursor": agent.cursor})
        left = await service.database.read(lambda tx: tx.one("SELECT count(*) FROM messages"))
        assert left == (0,)


async def test_reports_lost_twice_and_out_of_order_have_their_effect_once(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """Resent: already. Ahead: a gap with the number that is missing. Of strangers: unknown."""
    async with running(tmp_path) as service:
        agent = Agent(session, service)
        await agent.register()
        await create_job(service)
        await add_tasks(service, "a")
        (assignment,) = await agent.assignments()
        begin = agent.report(assignment.attempt_id, Transition.RUNNING)
        end = agent.end(assignment.attempt_id, exit_code=7)
        answer = await agent.ok("reports", {"reports": [end]})
        assert (answer["results"][0]["status"], answer["results"][0]["expected"]) == ("gap", 1)
        assert await agent.send(begin, begin, end, end) == ["applied", "already", "applied", "already"]
        stranger = {**begin, "attemptId": "stranger"}
        assert await agent.send(begin, end, stranger) == ["already", "already", "unknown"]
        task = await get_task(service, "a")
        assert (task.state, task.execution.exit_code) == (TaskState.COMPLETED, 7)


async def test_an_agent_of_a_former_life_is_fenced(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """A lower epoch is refused in every call; one epoch belongs to one instance."""
    async with running(tmp_path) as service:
        agent = Agent(session, service, epoch=2)
        await agent.register()
        old = Agent(session, service, epoch=1)
        for name, body in (
            ("register", old.registration()),
            ("assignments", {"cursor": 0, "waitSeconds": 0}),
            ("reports", {"reports": []}),
            ("heartbeat", {"cursor": 0}),
        ):
            status, answer = await old.call(name, body)
            assert (status, answer["code"]) == (409, "Fenced"), name
        twin = Agent(session, service, epoch=2)
        status, answer = await twin.call("register", twin.registration(instanceId="twin"))
        assert (status, answer["code"]) == (409, "Fenced")
        await agent.register()


async def test_a_service_that_restarts_between_report_and_answer_applies_it_once(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """After the restart the same report is "already", the queue is as it was, and scheduling goes on."""
    async with running(tmp_path) as service:
        agent = Agent(session, service, slots=1)
        await agent.register()
        await create_job(service)
        await add_tasks(service, "a", "b")
        (assignment,) = await agent.assignments()
        begin, end = agent.report(assignment.attempt_id, Transition.RUNNING), agent.end(assignment.attempt_id)
        await agent.send(begin, end)
        key = service.node_key
    async with running(tmp_path) as service:
        assert service.node_key == key
        agent.service = service
        assert await agent.send(begin, end) == ["already", "already"]
        (following,) = await agent.assignments(wait_seconds=10)
        assert following.task_id == "b"
        await agent.finish(following)
        assert (await get_task(service, "b")).execution.result is ExecutionResult.SUCCESS


async def test_a_job_that_was_terminating_goes_on_after_a_restart(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """Preparation, stop, release and completion, with a restart of the service between any two."""
    agent = Agent(session, None)  # type: ignore[arg-type] # each life brings its own
    async with running(tmp_path) as service:
        agent.service = service
        await agent.register()
        await create_job(
            service,
            job_preparation_task=JobPreparationTask(command_line="p"),
            job_release_task=JobReleaseTask(command_line="r"),
        )
        await add_tasks(service, "a")
    async with running(tmp_path) as service:
        agent.service = service
        preparation, user = await agent.assignments(wait_seconds=10)
        assert user.preparation is not None
        assert (await get_task(service, "a")).state is TaskState.PREPARING
        await agent.finish(preparation)
        await agent.send(agent.report(user.attempt_id, Transition.RUNNING))
    async with running(tmp_path) as service:
        agent.service = service
        await service.database.write(lambda tx: jobs.terminate_job(tx, "job", utc_now(), reason="enough"))
    async with running(tmp_path) as service:
        agent.service = service
        (stop,) = await agent.poll(wait_seconds=10)
        assert stop.message.kind == "stop"
        await agent.send(agent.end(user.attempt_id, exit_code=-15))
        assert (await get_job(service)).state is JobState.TERMINATING
    async with running(tmp_path) as service:
        agent.service = service
        (release,) = await agent.assignments(wait_seconds=10)
        await agent.finish(release)
        job = await get_job(service)
        assert (job.state, job.terminate_reason) == (JobState.COMPLETED, "enough")
        (end,) = await agent.poll(wait_seconds=10)
        assert end.message.kind == "endJobSession"


async def test_a_silent_node_is_unknown_and_its_tasks_run_elsewhere(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """The lease runs out by itself; the other node gets the task; the first is told when it speaks again."""
    async with running(tmp_path, lease_seconds=0.5, heartbeat_seconds=0.1) as service:
        silent, other = Agent(session, service, id="silent", slots=1), Agent(session, service, id="other", slots=1)
        await silent.register()
        await create_job(service)
        await add_tasks(service, "a")
        (assignment,) = await silent.assignments()
        await silent.send(silent.report(assignment.attempt_id, Transition.RUNNING))
        await other.register()

        async def beat() -> None:
            while True:
                await other.ok("heartbeat", {"cursor": other.cursor})
                await asyncio.sleep(0.1)

        beating = asyncio.create_task(beat())
        (again,) = await other.assignments(wait_seconds=30)
        assert (again.task_id, again.system_task_version, again.retry_count) == ("a", 1, 0)

        def lost(tx: Transaction) -> bool:
            node = node_rows.by_id(tx, "silent")
            return node is not None and node.state is NodeState.UNKNOWN

        assert await service.database.read(lost)
        assert await silent.send(silent.end(assignment.attempt_id)) == ["unknown"]
        answer = await silent.ok("heartbeat", {"cursor": 0, "liveAttempts": [assignment.attempt_id]})
        assert answer["unknownAttempts"] == [assignment.attempt_id]
        await other.finish(again)
        beating.cancel()
        assert (await get_task(service, "a")).execution.result is ExecutionResult.SUCCESS


async def test_a_job_is_ended_by_its_wall_clock_also_after_a_restart(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """The deadline is in the store, not in a timer."""
    async with running(tmp_path) as service:
        await create_job(service, constraints=JobConstraints(max_wall_clock_time=timedelta(seconds=1)))
    async with running(tmp_path) as service:

        def ended(tx: Transaction) -> JobRow | None:
            job = jobs.require(tx, "job")
            return job if job.state is JobState.COMPLETED else None

        assert (await until(service, ended)).terminate_reason == "MaxWallClockTimeExpiry"


async def test_deleting_a_large_job_goes_on_after_a_restart(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """Its rows go some at a time; other writers go on; in the end nothing is left."""
    async with running(tmp_path) as service:
        await create_job(service)
        for block in range(30):
            await add_tasks(service, *(f"t{block}-{number}" for number in range(100)))
        await service.database.write(lambda tx: jobs.delete_job(tx, "job", utc_now()))
    async with running(tmp_path) as service:
        await until(service, lambda tx: tx.one("SELECT count(*) FROM tasks") == (0,) or None)
        await until(service, lambda tx: tx.one("SELECT count(*) FROM jobs") == (0,) or None)
        assert await service.database.read(lambda tx: tx.one("SELECT count(*) FROM task_specs")) == (0,)


def read_events(path: Path) -> list[EventRecord]:
    """Return the events of a file."""
    return [EventRecord.from_json(line) for line in path.read_bytes().splitlines()]


async def test_events_are_written_once_each_in_the_shape_of_their_pages(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """TaskStart again for the retry; TaskComplete, and TaskFail beside it; a torn line is repaired."""
    events_file = tmp_path / "events.jsonl"
    async with running(tmp_path) as service:
        agent = Agent(session, service)
        await agent.register()
        await create_job(service, constraints=JobConstraints(max_task_retry_count=1))
        await add_tasks(service, "a")
        for _ in range(2):
            (assignment,) = await agent.assignments(wait_seconds=10)
            await agent.finish(assignment, exit_code=5)
        streamed = await stream(session, service, after=0)
    whole = events_file.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert [json.loads(line) for line in lines] == streamed
    assert [item["operationName"] for item in streamed] == [
        "TaskStartEvent",
        "TaskStartEvent",
        "TaskCompleteEvent",
        "TaskFailEvent",
    ]
    assert streamed[1]["properties"] == {
        "jobId": "job",
        "id": "a",
        "taskType": "User",
        "systemTaskVersion": 0,
        "requiredSlots": 1,
        "nodeInfo": {"poolId": "pool", "nodeId": "node"},
        "multiInstanceSettings": {"numberOfInstances": 1},
        "constraints": {"maxTaskRetryCount": 1},
        "executionInfo": {"retryCount": 1},
    }
    ended = streamed[2]["properties"]["executionInfo"]
    assert (ended["exitCode"], ended["retryCount"], ended["requeueCount"], ended["result"]) == (5, 1, 0, "Failure")
    assert (ended["schedulingError"]["category"], ended["schedulingError"]["code"]) == (
        "UserError",
        "FailureExitCode",
    )
    events_file.write_bytes(whole[: -len(lines[-1]) // 2])
    async with running(tmp_path) as service:
        await add_tasks(service, "b")
        await until(service, lambda _: events_file.read_bytes().count(b"\n") == 5 or None)
    assert [record.seq for record in read_events(events_file)] == [1, 2, 3, 4, 5]
    assert events_file.read_bytes().startswith(whole)


async def stream(
    session: aiohttp.ClientSession, service: Service, *, after: int, follow: bool = False, limit: int | None = None
) -> list[dict[str, Any]]:
    """Read the event stream, signed, to its end or up to a number of records."""
    url = f"{service.url}/nodeagent/v1/events?after={after}&follow={str(follow).lower()}"
    headers = {"ocp-date": http_date(utc_now())}
    headers["Authorization"] = authorization(ACCOUNT, KEY, "GET", url, headers)
    records: list[dict[str, Any]] = []
    async with session.get(url, headers=headers) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            records += [json.loads(line)] if line.strip() else []
            if limit is not None and len(records) == limit:
                break
    return records


async def test_a_follower_hears_new_events_and_strangers_hear_nothing(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """follow=true goes on after what is there; without a signature there is no stream."""
    async with running(tmp_path) as service:
        agent = Agent(session, service)
        await agent.register()
        await create_job(service)
        await add_tasks(service, "a")
        follower = asyncio.create_task(stream(session, service, after=0, follow=True, limit=2))
        (assignment,) = await agent.assignments()
        await agent.finish(assignment)
        async with asyncio.timeout(DEADLINE):
            heard = await follower
        assert [item["operationName"] for item in heard] == ["TaskStartEvent", "TaskCompleteEvent"]
        async with session.get(f"{service.url}/nodeagent/v1/events") as response:
            assert response.status == 403
        async with session.get(f"{service.url}/healthz") as response:
            assert response.status == 200


async def test_a_state_folder_has_one_service_and_an_ephemeral_one_leaves_nothing(tmp_path: Path) -> None:
    """The second service is told so in one line; ephemeral state is gone at the end."""
    async with running(tmp_path / "kept") as service:
        with pytest.raises(StateInUseError, match="in use by another service"):
            async with Service(settings(tmp_path / "kept")):
                pass
        assert service.folder.stat().st_mode & 0o777 == 0o700
        assert (service.folder / "node.key").stat().st_mode & 0o777 == 0o600
    async with running(tmp_path / "gone", ephemeral=True) as service:
        assert service.folder.exists()
    assert list((tmp_path / "gone").iterdir()) == []


async def test_a_cancelled_event_writer_has_written_every_event_once(tmp_path: Path) -> None:
    """It is cancelled in the middle of its work: what is in the store then is in the file, once."""
    signals = Signals()
    event = TaskStartEvent(
        job_id="j",
        id="t",
        task_type="User",
        system_task_version=0,
        required_slots=1,
        node_info=EventNodeInfo(pool_id="p", node_id="n"),
        constraints=EventConstraints(max_task_retry_count=0),
        execution_info=StartExecutionInfo(retry_count=0),
    )

    def add(tx: Transaction) -> None:
        for _ in range(700):
            events.add(tx, "TaskStartEvent", event, utc_now())

    path = tmp_path / "events.jsonl"
    async with Database(tmp_path / "x.db", on_signals=signals.publish) as database:
        await database.write(add)
        for turns in range(1, 40):
            writer = asyncio.create_task(write_events(database, signals, path, kept=100_000))
            for _ in range(turns):
                await asyncio.sleep(0)
            await database.write(add)
            writer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writer
    assert [record.seq for record in read_events(path)] == list(range(1, 40 * 700 + 1))
