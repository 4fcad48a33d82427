"""`nodeagent service` and `nodeagent agent` alone: either may stop, be killed and come back."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from azure.batch import BatchClient
from azure.batch import models as batch
from azure.core.credentials import AzureNamedKeyCredential

from nodeagent.local.settings import DEVELOPMENT_KEY
from tests.integration.command_line import ended, kill_processes_of, shell, started, until


@dataclass
class Halves:
    """Starts the two halves on folders of their own, and asks the service through the real SDK."""

    folder: Path
    port: int
    running: AsyncExitStack

    async def service(self) -> asyncio.subprocess.Process:
        """Start the service; its key comes from the environment."""
        arguments = (f"--port={self.port}", "--account=alone", f"--state-dir={self.folder}/service")
        environment = {"NODEAGENT_SERVICE_KEY": DEVELOPMENT_KEY}
        process = await self.running.enter_async_context(started("service", *arguments, environment=environment))
        await until(self._answers, "the service listens")
        return process

    async def agent(self) -> asyncio.subprocess.Process:
        """Start the agent of node `n`."""
        return await self.running.enter_async_context(
            started(
                "agent",
                f"--service=http://127.0.0.1:{self.port}",
                "--pool=p",
                "--node=n",
                "--slots=1",
                "--accounts=none",  # a test's folder is closed to other users
                f"--state-dir={self.folder}/state",
                f"--root={self.folder}/root",
                f"--node-key-file={self.folder}/service/node.key",
            )
        )

    def client(self) -> BatchClient:
        """Return the SDK's client."""
        return BatchClient(f"http://127.0.0.1:{self.port}", AzureNamedKeyCredential("alone", DEVELOPMENT_KEY))

    async def task(self) -> batch.BatchTask:
        """Return the only task."""
        return await asyncio.to_thread(self._task)

    async def ended_task(self) -> batch.BatchTask:
        """Wait for the only task's end."""
        async with asyncio.timeout(30):
            while True:
                if (task := await self.task()).state == "completed":
                    return task
                await asyncio.sleep(0.05)

    async def submit(self) -> None:
        """Make the pool, a job, and one task that waits for the file `go` and ends with 4."""
        await asyncio.to_thread(self._submit)

    def _task(self) -> batch.BatchTask:
        with self.client() as client:
            return client.get_task("j", "t")

    def _submit(self) -> None:
        script = (
            "echo $$ >> $AZ_BATCH_NODE_SHARED_DIR/pids; until [ -e $AZ_BATCH_NODE_SHARED_DIR/go ]; do sleep 0.05; done"
        )
        with self.client() as client:
            configuration = batch.VirtualMachineConfiguration(
                image_reference=batch.BatchVmImageReference(publisher="x", offer="y", sku="z"),
                node_agent_sku_id="batch.node.debian 12",
            )
            client.create_pool(
                batch.BatchPoolCreateOptions(id="p", vm_size="any", virtual_machine_configuration=configuration)
            )
            client.create_job(batch.BatchJobCreateOptions(id="j", pool_info=batch.BatchPoolInfo(pool_id="p")))
            client.create_task("j", batch.BatchTaskCreateOptions(id="t", command_line=shell(f"{script}; exit 4")))

    def pids(self) -> list[int]:
        """Return the pids that the task has written."""
        file = self.folder / "root/shared/pids"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture
def port() -> int:
    """Return a port that is free now, and the same after a restart."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Give a folder for both halves; whatever still lives there at the end is killed."""
    yield tmp_path
    kill_processes_of(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_either_half_may_go_and_come_back(folder: Path, port: int, number: signal.Signals) -> None:
    """A task runs on while its agent and then its service are gone, and its true exit code is told at the end."""
    async with AsyncExitStack() as running:
        halves = Halves(folder, port, running)
        service = await halves.service()
        await halves.submit()
        agent = await halves.agent()
        await until(lambda: len(halves.pids()) == 1, "the task runs")
        agent.send_signal(number)
        status, _, _ = await ended(agent)
        assert status == (0 if number is signal.SIGTERM else -number)
        await halves.agent()
        service.send_signal(number)
        status, _, err = await ended(service)
        assert status == (0 if number is signal.SIGTERM else -number), err
        os.kill(halves.pids()[0], 0)
        (folder / "root/shared/go").touch()
        await halves.service()
        task = await halves.ended_task()
        assert task.execution_info is not None
        assert (task.execution_info.exit_code, task.execution_info.retry_count) == (4, 0)
        assert len(halves.pids()) == 1
