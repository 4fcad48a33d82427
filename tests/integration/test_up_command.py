"""`nodeagent up`: state that outlives kill -9, tasks that are adopted, and one clear line for each bad start."""

import asyncio
import json
import os
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeagent.local.client import BatchClient
from nodeagent.model.job import JobCreate
from nodeagent.model.task import TaskCreate
from tests.integration.command_line import (
    ended,
    job_text,
    kill_processes_of,
    line_with,
    nodeagent,
    processes_of,
    shell,
    started,
    until,
    until_gone,
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Give the state folder of the stack; whatever still lives there at the end is killed."""
    yield tmp_path / "state"
    kill_processes_of(tmp_path)


@asynccontextmanager
async def upped(folder: Path, *options: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, BatchClient]]:
    """Start `up`, wait until it says that it is ready, and give the process and a client."""
    arguments = ("up", "--port=0", "--json", "--slots=2", f"--state-dir={folder}", *options)
    async with started(*arguments) as process:
        facts = json.loads(await line_with(process, "endpoint"))
        async with BatchClient(facts["endpoint"], facts["account"], facts["key"]) as client:
            yield process, client


async def submit(client: BatchClient, body: dict[str, Any]) -> None:
    """Create a job and its tasks."""
    tasks = [TaskCreate.model_validate(task) for task in body.pop("tasks")]
    await client.add_job(JobCreate.model_validate({**body, "poolInfo": {"poolId": "local"}}))
    await client.add_tasks(body["id"], tasks)


async def task_in_state(client: BatchClient, job_id: str, task_id: str, state: str) -> dict[str, Any]:
    """Wait until a task is in a state; return it."""
    async with asyncio.timeout(30):
        while True:
            task = next(task for task in await client.list_tasks(job_id) if task["id"] == task_id)
            if task["state"] == state:
                return task
            await asyncio.sleep(0.02)


async def job_completed(client: BatchClient, job_id: str) -> None:
    """Wait until a job is completed."""
    async with asyncio.timeout(30):
        while True:
            if (await client.get_job(job_id))["state"] == "completed":
                return
            await asyncio.sleep(0.02)


def lives(pid: int) -> bool:
    """Tell whether a process exists."""
    return Path(f"/proc/{pid}").exists()


def content(folder: Path) -> list[Path]:
    """Return what lies in a folder."""
    return list(folder.iterdir())


def waiting_task(exit_code: int) -> str:
    """Return a script that writes its pid, waits for `go`, and ends with a status."""
    shared = "$AZ_BATCH_NODE_SHARED_DIR"
    return f"echo $$ >> {shared}/pids; while [ ! -e {shared}/go ]; do sleep 0.05; done; exit {exit_code}"


def shared_of(folder: Path) -> Path:
    """Return the shared directory of the first node."""
    return folder / "nodes/node-1/root/shared"


def pids(folder: Path) -> list[int]:
    """Return the pids that tasks have written."""
    file = shared_of(folder) / "pids"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


async def test_after_kill_9_the_same_command_goes_on(folder: Path) -> None:
    """Tasks run on under the same pids, are adopted, and end with their true exit codes; none runs twice."""
    async with upped(folder) as (process, client):
        await submit(client, job_text("j", [("a", waiting_task(0)), ("b", waiting_task(5))]))
        await until(lambda: len(pids(folder)) == 2, "both tasks run")
        process.kill()
        await ended(process)
    before = pids(folder)
    assert all(lives(pid) for pid in before)
    async with upped(folder) as (process, client):
        assert (await task_in_state(client, "j", "a", "running"))["nodeInfo"]["nodeId"] == "node-1"
        (shared_of(folder) / "go").touch()
        first = await task_in_state(client, "j", "a", "completed")
        second = await task_in_state(client, "j", "b", "completed")
        assert (first["executionInfo"]["exitCode"], second["executionInfo"]["exitCode"]) == (0, 5)
        assert pids(folder) == before
        process.send_signal(signal.SIGTERM)
        assert (await ended(process))[0] == 0
    await until_gone(folder)


async def test_what_ended_while_all_was_down_is_told_truly(folder: Path) -> None:
    """A task that ends while neither service nor agent live has the exit code that the kernel gave."""
    async with upped(folder) as (process, client):
        await submit(client, job_text("j", [("t", waiting_task(9))]))
        await until(lambda: len(pids(folder)) == 1, "the task runs")
        process.kill()
        await ended(process)
    await until(lambda: not any("nodeagent agent" in line for line in processes_of(folder)), "the agent has gone")
    (shared_of(folder) / "go").touch()
    await until(lambda: not lives(pids(folder)[0]), "the task ends")
    async with upped(folder) as (process, client):
        task = await task_in_state(client, "j", "t", "completed")
        assert task["executionInfo"]["exitCode"] == 9
        assert len(pids(folder)) == 1


async def test_an_interrupt_ends_tasks_and_the_next_start_runs_them_again(folder: Path) -> None:
    """Ctrl-C leaves no process; the interrupted task is requeued, not failed, and runs after the next start."""
    async with upped(folder) as (process, client):
        await submit(client, job_text("j", [("t", waiting_task(0))]))
        await until(lambda: len(pids(folder)) == 1, "the task runs")
        process.send_signal(signal.SIGINT)
        assert (await ended(process))[0] == 0
    await until_gone(folder)
    (shared_of(folder) / "go").touch()
    async with upped(folder) as (process, client):
        task = await task_in_state(client, "j", "t", "completed")
        assert (task["executionInfo"]["exitCode"], task["executionInfo"]["retryCount"]) == (0, 0)
        assert len(pids(folder)) == 2


async def test_detached_tasks_run_on(folder: Path) -> None:
    """With --detach-tasks Ctrl-C ends service and agent only, and the next start takes the task over."""
    async with upped(folder, "--detach-tasks") as (process, client):
        await submit(client, job_text("j", [("t", waiting_task(3))]))
        await until(lambda: len(pids(folder)) == 1, "the task runs")
        process.send_signal(signal.SIGINT)
        assert (await ended(process))[0] == 0
    assert lives(pids(folder)[0])
    (shared_of(folder) / "go").touch()
    async with upped(folder) as (process, client):
        task = await task_in_state(client, "j", "t", "completed")
        assert task["executionInfo"]["exitCode"] == 3
        assert len(pids(folder)) == 1


async def test_a_killed_agent_is_started_again(folder: Path) -> None:
    """After kill -9 of an agent under a living `up` a new agent adopts the task, which does not notice."""
    async with upped(folder) as (_, client):
        await submit(client, job_text("j", [("t", waiting_task(0))]))
        await until(lambda: len(pids(folder)) == 1, "the task runs")
        agent = next(line for line in processes_of(folder) if "nodeagent agent" in line)
        os.kill(int(agent.partition(":")[0]), signal.SIGKILL)
        (shared_of(folder) / "go").touch()
        task = await task_in_state(client, "j", "t", "completed")
        assert task["executionInfo"]["exitCode"] == 0
        assert len(pids(folder)) == 1


async def test_ephemeral_keeps_nothing(tmp_path: Path) -> None:
    """With --ephemeral no file and no process remains, also when tasks were running."""
    arguments = ("up", "--port=0", "--json", "--slots=1", "--ephemeral")
    async with started(*arguments, environment={"TMPDIR": str(tmp_path)}) as process:
        facts = json.loads(await line_with(process, "endpoint"))
        async with BatchClient(facts["endpoint"], facts["account"], facts["key"]) as client:
            await submit(client, job_text("j", [("t", "touch up; exec sleep 1000")]))
            await until(lambda: list(tmp_path.glob("*/nodes/*/root/workitems/j/job-1/t/wd/up")), "the task runs")
        process.send_signal(signal.SIGINT)
        assert (await ended(process))[0] == 0
    assert content(tmp_path) == []
    await until_gone(tmp_path)


async def test_the_welcome_can_be_pasted(folder: Path) -> None:
    """Endpoint, account and key are printed, with a snippet for the SDK that is Python and works."""
    async with started("up", "--port=0", "--slots=1", f"--state-dir={folder}") as process:
        lines = [await line_with(process, "nodeagent")]
        while "Ctrl-C" not in lines[-1]:
            lines.append(await line_with(process, ""))
        text = "".join(lines)
        snippet = "\n".join(
            line.strip() for line in lines if line.startswith(("  from azure", "  client = ")) or "BatchClient(" in line
        )
        names: dict[str, Any] = {}
        exec(snippet, names)  # noqa: S102 - that is what a person does with it
        with names["client"] as client:
            pools = await asyncio.to_thread(lambda: [pool.id for pool in client.list_pools()])
        assert pools == ["local"]
        for variable in ("AZURE_BATCH_ENDPOINT", "AZURE_BATCH_ACCOUNT", "AZURE_BATCH_ACCESS_KEY"):
            assert f"export {variable}=" in text


async def test_events_are_printed_and_followed(folder: Path) -> None:
    """`nodeagent events` prints the stream of a running service, as JSON lines."""
    async with upped(folder) as (_, client):
        await submit(client, job_text("j", [("t", "true")]))
        await task_in_state(client, "j", "t", "completed")
        endpoint = {"AZURE_BATCH_ENDPOINT": client.endpoint}
        status, out, err = await nodeagent("events", environment=endpoint)
        assert status == 0, err
        names = [json.loads(line)["operationName"] for line in out.splitlines()]
        assert names == ["TaskStartEvent", "TaskCompleteEvent"]
        async with started("events", "--follow", "--after=1", environment=endpoint) as follower:
            await line_with(follower, "TaskCompleteEvent")
            await submit(client, job_text("k", [("t", "exit 1")]))
            await line_with(follower, "TaskFailEvent")


def one_line(err: str, *parts: str) -> None:
    """Assert that a complaint is one line and says all of `parts`."""
    assert err.count("\n") == 1, err
    assert all(part in err for part in parts), err


async def test_a_taken_port_is_status_4(folder: Path) -> None:
    """The line names the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = await nodeagent("up", f"--port={port}", f"--state-dir={folder}")
    assert status == 4
    one_line(err, str(port), "in use")


async def test_a_second_stack_on_a_folder_is_status_5_and_harms_nobody(folder: Path) -> None:
    """The folder is named, and the tasks of the first stack run on."""
    async with upped(folder) as (_, client):
        await submit(client, job_text("j", [("t", waiting_task(0))]))
        await until(lambda: len(pids(folder)) == 1, "the task runs")
        status, _, err = await nodeagent("up", "--port=0", f"--state-dir={folder}")
        assert status == 5
        one_line(err, str(folder), "in use")
        (shared_of(folder) / "go").touch()
        task = await task_in_state(client, "j", "t", "completed")
        assert task["executionInfo"]["exitCode"] == 0


async def test_a_second_agent_on_a_folder_is_status_5(folder: Path) -> None:
    """The agent's folder is named."""
    async with upped(folder) as (_, client):
        node = folder / "nodes/node-1"
        status, _, err = await nodeagent(
            "agent",
            f"--service={client.endpoint}",
            "--node=node-1",
            f"--state-dir={node}/state",
            f"--root={node}/root",
            f"--node-key-file={folder}/service/node.key",
        )
    assert status == 5
    one_line(err, str(node / "state"), "in use")


async def test_a_folder_of_a_newer_service_is_status_6(folder: Path) -> None:
    """The line says which version was found and which is known."""
    async with upped(folder) as (process, _):
        process.send_signal(signal.SIGTERM)
        await ended(process)
    connection = sqlite3.connect(folder / "service/service.db")
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    status, _, err = await nodeagent("up", "--port=0", f"--state-dir={folder}")
    assert status == 6
    one_line(err, "999", "newer")


async def test_a_folder_of_a_newer_agent_is_status_6(folder: Path) -> None:
    """`up` ends with the agent's own line, because starting the agent again would not help."""
    async with upped(folder) as (process, _):
        process.send_signal(signal.SIGTERM)
        await ended(process)
    identity = folder / "nodes/node-1/state/node.json"
    identity.write_text(json.dumps({**json.loads(identity.read_text()), "version": 99}))
    status, _, err = await nodeagent("up", "--port=0", f"--state-dir={folder}")
    assert status == 6
    one_line(err, "node-1", "99")


async def test_an_unwritable_folder_is_status_7(tmp_path: Path) -> None:
    """The line names the folder."""
    (tmp_path / "file").touch()
    status, _, err = await nodeagent("up", "--port=0", f"--state-dir={tmp_path}/file/state")
    assert status == 7
    one_line(err, f"{tmp_path}/file")


async def test_an_unwritable_root_is_status_7(tmp_path: Path) -> None:
    """The agent alone says the same of its root."""
    (tmp_path / "file").touch()
    key = tmp_path / "key"
    key.write_text("k" * 20)
    status, _, err = await nodeagent(
        "agent", f"--state-dir={tmp_path}/state", f"--root={tmp_path}/file/root", f"--node-key-file={key}"
    )
    assert status == 7
    one_line(err, f"{tmp_path}/file/root")


async def test_an_unreachable_service_is_status_8() -> None:
    """`events` without a service says whom it asked."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    status, _, err = await nodeagent("events", f"--endpoint=http://127.0.0.1:{port}")
    assert status == 8
    one_line(err, str(port))


async def test_an_unknown_command_is_status_2() -> None:
    """The nearest command is offered."""
    status, _, err = await nodeagent("rnu")
    assert status == 2
    one_line(err, "no such command 'rnu'", "did you mean 'run'?")


async def test_special_tasks_survive_kill_9(folder: Path) -> None:
    """A job that is terminating when all is killed goes on terminating: its release runs after the next start."""
    body = job_text(
        "j",
        [("t", "true")],
        jobPreparationTask={"commandLine": "true"},
        jobReleaseTask={"commandLine": shell(waiting_task(0))},
    )
    async with upped(folder) as (process, client):
        await submit(client, body)
        await task_in_state(client, "j", "t", "completed")
        await client.terminate_job("j", "done")
        await until(lambda: len(pids(folder)) == 1, "the release runs")
        process.kill()
        await ended(process)
    async with upped(folder) as (_, client):
        (shared_of(folder) / "go").touch()
        await job_completed(client, "j")
        statuses = await client.special_tasks("j")
        assert statuses[0]["jobReleaseTaskExecutionInfo"]["exitCode"] == 0
        assert len(pids(folder)) == 1
