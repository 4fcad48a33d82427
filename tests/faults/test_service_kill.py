"""kill -9 of the service under load, again and again: what was answered is kept, what was not is done once."""

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import SecretStr

from nodeagent.local.client import BatchClient, ServiceError, ServiceUnreachableError
from nodeagent.model.enums import ExecutionResult, TaskState
from nodeagent.model.job import JobConstraints, JobCreate, PoolInfo
from nodeagent.model.pool import PoolCreate
from nodeagent.model.protocol import PREFIX, FileServer, Register
from nodeagent.model.task import TaskCreate
from nodeagent.model.times import format_time, utc_now
from nodeagent.service.app import Service
from nodeagent.service.lifecycle import jobs
from nodeagent.service.settings import ServiceSettings
from nodeagent.service.store import attempts, counts, nodes, tasks
from nodeagent.service.store.database import Transaction

KEY = "c2VjcmV0"
KILLS = 8
DEADLINE = 120
FAILING = 5
"""Every task with a number that this divides fails once and is retried."""


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Killed:
    """The service in a process of its own, which is killed and started again."""

    def __init__(self, state_dir: Path, port: int) -> None:
        self._argv = (sys.executable, "-m", "nodeagent", "service", "--port", str(port), "--state-dir", str(state_dir))
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the service."""
        self._process = await asyncio.create_subprocess_exec(
            *self._argv,
            env={**os.environ, "NODEAGENT_SERVICE_KEY": KEY, "NODEAGENT_SERVICE_ACCOUNT": "devaccount"},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def kill(self) -> None:
        """Kill it as the kernel would."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()


class Agent:
    """A scripted agent that never forgets: it resends until it is answered."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session = session
        self._url = url + PREFIX
        self._headers = {"Authorization": f"Bearer {key}"}
        self._cursor = 0
        self._outbox: list[dict[str, Any]] = []
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        self.executions: Counter[str] = Counter()
        """Attempt id → how often it was accepted."""
        self.answers: Counter[str] = Counter()
        """Status of the answered reports."""

    async def executed(self, number: int) -> None:
        """Wait until so many attempts were accepted."""
        while sum(self.executions.values()) < number:
            self._news.clear()
            await self._news.wait()

    async def settled(self, number: int) -> None:
        """Wait until so many attempts were accepted, and every report of them is answered."""
        await self.executed(number)
        while self._outbox:
            self._news.clear()
            await self._news.wait()

    async def call(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Make a call, again until it is answered."""
        body = {"nodeId": "node", "epoch": 1, **body}
        while True:
            try:
                async with self._session.post(f"{self._url}/{name}", json=body, headers=self._headers) as response:
                    answer: dict[str, Any] = await response.json()
                    assert response.status == 200, answer
                    return answer
            except (aiohttp.ClientError, OSError):
                await asyncio.sleep(0.02)

    async def run(self) -> None:
        """Register, then take, execute and report for ever."""
        call = Register(
            node_id="node",
            epoch=1,
            pool_id="pool",
            instance_id="i",
            boot_id="b",
            boot_time=utc_now(),
            slots=8,
            cores=1,
            agent_version="0",
            hostname="h",
            ip_address="127.0.0.1",
            root_directory="/r",
            file_server=FileServer(url="http://127.0.0.1:1", token="t"),
            cursor=0,
        )
        await self.call("register", call.to_wire())
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take())
            group.create_task(self._report())

    async def _take(self) -> None:
        while True:
            answer = await self.call("assignments", {"cursor": self._cursor, "waitSeconds": 5})
            for item in answer["messages"]:
                self._cursor = item["number"]
                message = item["message"]
                self.executions[message["attemptId"]] += 1
                self._outbox += _reports(message)
                self._wake.set()
                self._news.set()

    async def _report(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while batch := self._outbox[:20]:
                answer = await self.call("reports", {"reports": batch})
                self.answers.update(result["status"] for result in answer["results"])
                del self._outbox[: len(batch)]
                self._news.set()


def _reports(assignment: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the reports of an attempt that ends at once; some tasks fail at their first try."""
    now = format_time(utc_now())
    fails = int(assignment["taskId"]) % FAILING == 0 and assignment["retryCount"] == 0
    outcome = {"result": "failure" if fails else "success", "endTime": now, "exitCode": int(fails)}
    common = {"attemptId": assignment["attemptId"], "at": now, "startTime": now}
    return [
        {**common, "seq": 1, "transition": "running"},
        {**common, "seq": 2, "transition": "completed", "outcome": outcome},
    ]


async def submit(url: str, enough: asyncio.Event) -> int:
    """Add tasks through REST, each again until it is answered, until there are enough; return how many.

    A task that is there already is one whose answer was lost.
    """
    number = 0
    async with BatchClient(url, "devaccount", KEY) as client:
        while not enough.is_set():
            task = TaskCreate(id=str(number), command_line="true")
            try:
                await client.add_tasks("job", [task])
            except ServiceUnreachableError:
                await asyncio.sleep(0.02)
                continue
            except ServiceError as error:
                if error.code != "TaskExists":
                    raise
            number += 1
    return number


@asynccontextmanager
async def service_at(state_dir: Path) -> AsyncIterator[Service]:
    """Run the service in this process, to prepare its state and to look at it afterwards."""
    async with Service(ServiceSettings(port=0, key=SecretStr(KEY), state_dir=state_dir)) as service:
        yield service


async def kill_often(killed: Killed, agent: Agent, enough: asyncio.Event) -> None:
    """Kill in the middle of the work and start again, each time after another number of executions."""
    chance = random.Random(4)  # noqa: S311 - the same moments in every run
    for _ in range(KILLS):
        await agent.executed(sum(agent.executions.values()) + chance.randint(5, 60))
        await killed.kill()
        await killed.start()
    await agent.executed(sum(agent.executions.values()) + 20)
    enough.set()


async def test_a_service_that_is_killed_again_and_again_runs_every_task_once(tmp_path: Path) -> None:
    """Each acknowledged task is there, each attempt was executed once and ended once, counts and slots agree."""
    spec = JobCreate(id="job", pool_info=PoolInfo(pool_id="pool"), constraints=JobConstraints(max_task_retry_count=1))
    async with service_at(tmp_path) as service:
        await service.ensure_pool(PoolCreate(id="pool", vm_size="v"))
        await service.database.write(lambda tx: jobs.create_job(tx, spec, utc_now()))
        node_key = service.node_key
    port = free_port()
    killed = Killed(tmp_path, port)
    url = f"http://127.0.0.1:{port}"
    await killed.start()
    try:
        async with asyncio.timeout(DEADLINE), aiohttp.ClientSession() as session:
            agent = Agent(session, url, node_key)
            enough = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                running = group.create_task(agent.run())
                group.create_task(kill_often(killed, agent, enough))
                number = await submit(url, enough)
                await agent.settled(number + _failing(number))
                running.cancel()
    finally:
        await killed.kill()
    assert set(agent.executions.values()) == {1}
    assert set(agent.answers) <= {"applied", "already"}
    async with service_at(tmp_path) as service:
        await service.database.read(lambda tx: _check(tx, number))
    _check_events(tmp_path / "events.jsonl", number)


def _failing(number: int) -> int:
    return len(range(0, number, FAILING))


def _check(tx: Transaction, number: int) -> None:
    job = jobs.require(tx, "job")
    listed = tasks.page(tx, job.num, limit=number + 1)
    assert len(listed) == number
    for task in listed:
        assert (task.state, task.execution.result) == (TaskState.COMPLETED, ExecutionResult.SUCCESS)
        assert task.execution.retry_count == int(int(task.id) % FAILING == 0)
    assert counts.get(tx, job.num).tasks.succeeded == number
    assert attempts.live_of_job(tx, job.num) == []
    node = nodes.by_id(tx, "node")
    assert node is not None
    assert (node.free_slots, node.running_tasks, node.total_tasks_run) == (8, 0, number)


def _check_events(path: Path, tasks_added: int) -> None:
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    told = Counter((record["operationName"], record["properties"]["id"]) for record in records)
    for number in range(tasks_added):
        assert told["TaskStartEvent", str(number)] == 1 + int(number % FAILING == 0)
        assert told["TaskCompleteEvent", str(number)] == 1
