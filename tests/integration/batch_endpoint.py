"""A Batch service with one node of four slots, for tests that drive it with the unmodified SDK."""

import asyncio
import base64
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeAlias, TypeVar

import pytest
from azure.batch import BatchClient, models
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError
from pydantic import SecretStr

from nodeagent.model.pool import PoolCreate
from nodeagent.service.app import Service
from nodeagent.service.settings import ServiceSettings
from tests.integration.scripted_node import scripted_node

ACCOUNT = "devaccount"
KEY = base64.b64encode(b"the key of a test's account").decode()
TOKEN = "let-me-in"
POOL = "local"
NODE = "node1"

Value = TypeVar("Value")

Sdk: TypeAlias = Any
"""The SDK's client: every property of its models may be None for mypy, so the tests speak to it untyped."""


@dataclass(frozen=True)
class BatchEndpoint:
    """Where a service listens, how to sign for it, and its one node."""

    url: str
    account: str
    key: str
    pool_id: str
    node_id: str

    def credential(self) -> AzureNamedKeyCredential:
        """Return the account's name and key."""
        return AzureNamedKeyCredential(self.account, self.key)


Property: TypeAlias = Any
"""A property of one of the SDK's models."""


def refusal(call: Callable[[], object]) -> Sdk:
    """Return the error that a call of the SDK raises."""
    with pytest.raises(HttpResponseError) as caught:
        call()
    error: Sdk = caught.value
    # the SDK leaves the connection of a refused stream open
    error.response.close()
    return error


def eventually(get: Callable[[], Value], holds: Callable[[Value], bool], seconds: float = 30) -> Value:
    """Ask until the answer holds; return it. Fails with the last answer after a deadline."""
    deadline = monotonic() + seconds
    while not holds(value := get()):
        if monotonic() > deadline:
            pytest.fail(f"after {seconds} s it is still {value!r}")
        sleep(0.02)
    return value


@contextmanager
def service_thread(state_dir: Path, root: Path) -> Iterator[BatchEndpoint]:
    """Run a service and a scripted node on an event loop of their own."""
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()
    started: asyncio.Future[BatchEndpoint] = loop.create_future()

    async def serve() -> None:
        settings = ServiceSettings(
            port=0, account=ACCOUNT, key=SecretStr(KEY), bearer_token=SecretStr(TOKEN), state_dir=state_dir
        )
        async with Service(settings) as service:
            await service.ensure_pool(PoolCreate(id=POOL, vm_size="standard_d2_v2", task_slots_per_node=4))
            async with scripted_node(service.url, service.node_key, root, pool_id=POOL, node_id=NODE):
                started.set_result(BatchEndpoint(service.url, ACCOUNT, KEY, POOL, NODE))
                await stop.wait()

    failures: list[BaseException] = []

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:  # noqa: BLE001 - it is raised again in the test's thread
            failures.append(error)
            if not started.done():
                started.cancel()
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="batch-endpoint")
    thread.start()
    try:
        yield eventually(lambda: started if started.done() or failures else None, bool).result()  # type: ignore[union-attr]
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=30)
    if failures:
        raise failures[0]


@contextmanager
def local_stack(state_dir: Path, *options: str) -> Iterator[BatchEndpoint]:
    """Run `nodeagent up`: the service and real agents, as a user would; the endpoint names the first node."""
    command = [sys.executable, "-m", "nodeagent", "up", "--port", "0", "--slots", "4", "--state-dir", str(state_dir)]
    with subprocess.Popen([*command, *options, "--json"], stdout=subprocess.PIPE, text=True) as process:
        try:
            ready = json.loads(_first_line(process))
            endpoint = BatchEndpoint(ready["endpoint"], ready["account"], ready["key"], ready["pool"], "")
            with BatchClient(endpoint.url, endpoint.credential()) as client:
                nodes = eventually(lambda: list(client.list_nodes(ready["pool"])), bool)
            yield replace(endpoint, node_id=str(nodes[0].id))
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=60)
            finally:
                process.kill()


def _first_line(process: subprocess.Popen[str]) -> str:
    if process.stdout is None:
        raise RuntimeError("the output of nodeagent up is not a pipe")
    line = process.stdout.readline()
    if not line:
        pytest.fail(f"nodeagent up ended with {process.wait(30)} before it was ready")
    return line


def shell(script: str) -> str:
    """Return a command line that runs a script in a shell."""
    return f'/bin/sh -c "{script}"'


def task(task_id: str, script: str = "true", **more: Property) -> models.BatchTaskCreateOptions:
    """Return a task that runs a script."""
    return models.BatchTaskCreateOptions(id=task_id, command_line=shell(script), **more)


def job(job_id: str, **more: Property) -> models.BatchJobCreateOptions:
    """Return a job on the pool of the endpoint."""
    return models.BatchJobCreateOptions(id=job_id, pool_info=models.BatchPoolInfo(pool_id=POOL), **more)


def completed(client: Sdk, job_id: str, task_id: str) -> Sdk:
    """Wait for the end of a task; return it."""
    return eventually(
        lambda: client.get_task(job_id, task_id), lambda found: found.state == models.BatchTaskState.COMPLETED
    )
