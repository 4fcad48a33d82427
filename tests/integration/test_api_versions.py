"""Older api-versions against the whole service: what one client writes another reads, each in its own words."""

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest
from pydantic import SecretStr

from nodeagent.service.app import Service
from nodeagent.service.settings import ServiceSettings

TODAY = "2025-06-01"
KEY = base64.b64encode(b"the key of a test's account").decode()
POOL = {"id": "p", "vmSize": "small", "targetDedicatedNodes": 0}
TASK: dict[str, Any] = {"id": "t", "commandLine": "/bin/true"}

Answer: TypeAlias = tuple[int, dict[str, Any]]
Call: TypeAlias = Callable[..., Awaitable[Answer]]


@pytest.fixture
async def call(tmp_path: Path) -> AsyncIterator[Call]:
    """Return a way to call a fresh service in the words of an api-version."""
    settings = ServiceSettings(
        port=0, key=SecretStr(KEY), bearer_token=SecretStr("let-me-in"), state_dir=tmp_path, synchronous="normal"
    )
    headers = {"Authorization": "Bearer let-me-in"}
    async with Service(settings) as service, aiohttp.ClientSession(service.url, headers=headers) as session:

        async def send(version: str, method: str, path: str, body: object = None, **query: str) -> Answer:
            parameters = {"api-version": version} | {f"${name}": value for name, value in query.items()}
            async with session.request(method, path, json=body, params=parameters) as response:
                return response.status, await response.json() if await response.read() else {}

        yield send


async def test_tasks_per_node_became_slots(call: Call) -> None:
    """2020-09: a pool of an older client has slots for today's, and the other way round."""
    old = "2019-08-01.10.0"
    assert (await call(old, "POST", "/pools", POOL | {"maxTasksPerNode": 3}))[0] == 201
    _, today = await call(TODAY, "GET", "/pools/p")
    assert today["taskSlotsPerNode"] == 3
    _, older = await call(old, "GET", "/pools/p")
    assert (older["maxTasksPerNode"], "taskSlotsPerNode" in older) == (3, False)
    _, chosen = await call(old, "GET", "/pools", select="id,maxTasksPerNode")
    assert chosen["value"] == [{"id": "p", "maxTasksPerNode": 3}]
    status, refused = await call(TODAY, "POST", "/pools", POOL | {"id": "q", "maxTasksPerNode": 3})
    assert (status, refused["code"]) == (400, "UnsupportedProperty")
    status, refused = await call(old, "POST", "/pools", POOL | {"id": "q", "maxTasksPerNode": 3, "taskSlotsPerNode": 4})
    assert (status, refused["code"]) == (400, "UnsupportedProperty")


async def test_a_pool_and_a_task_of_2016(call: Call) -> None:
    """`targetDedicated`, `blobSource` and `runElevated`, alone and in a collection."""
    old = "2016-02-01.3.0"
    pool = {"id": "p", "vmSize": "small", "targetDedicated": 0, "maxTasksPerNode": 2}
    assert (await call(old, "POST", "/pools", pool))[0] == 201
    _, shown = await call(old, "GET", "/pools/p")
    assert pool.items() <= shown.items()
    assert shown["currentDedicated"] == 0
    assert not shown.keys() & {"currentLowPriorityNodes", "targetLowPriorityNodes", "targetDedicatedNodes"}
    assert (await call(old, "POST", "/jobs", {"id": "j", "poolInfo": {"poolId": "p"}}))[0] == 201
    files = [{"blobSource": "https://host/c/b", "filePath": "b"}]
    task = TASK | {"runElevated": True, "resourceFiles": files}
    assert (await call(old, "POST", "/jobs/j/tasks", task))[0] == 201
    status, added = await call(old, "POST", "/jobs/j/addtaskcollection", {"value": [task, task | {"id": "u"}]})
    assert (status, [item["status"] for item in added["value"]]) == (200, ["clienterror", "success"])
    for task_id in ("t", "u"):
        _, today = await call(TODAY, "GET", f"/jobs/j/tasks/{task_id}")
        assert today["resourceFiles"] == [{"httpUrl": "https://host/c/b", "filePath": "b"}]
        assert today["userIdentity"]["autoUser"]["elevationLevel"] == "admin"
        assert today["requiredSlots"] == 1
        _, older = await call(old, "GET", f"/jobs/j/tasks/{task_id}")
        assert (older["resourceFiles"], older["runElevated"]) == (files, True)
        assert not older.keys() & {"userIdentity", "requiredSlots"}


async def test_a_failure_of_before_2017_05_is_a_scheduling_error(call: Call) -> None:
    """A task that is terminated before it ran: today's `failureInfo`, without the `result` that came with it."""
    await call(TODAY, "POST", "/jobs", {"id": "j", "poolInfo": {"poolId": "p"}})
    await call(TODAY, "POST", "/jobs/j/tasks", TASK)
    assert (await call("2016-07-01.3.1", "POST", "/jobs/j/tasks/t/terminate"))[0] == 204
    _, today = await call("2017-05-01.5.0", "GET", "/jobs/j/tasks/t")
    assert (today["executionInfo"]["result"], today["executionInfo"]["failureInfo"]["code"]) == ("failure", "TaskEnded")
    _, older = await call("2017-01-01.4.0", "GET", "/jobs/j/tasks/t")
    assert older["executionInfo"]["schedulingError"]["code"] == "TaskEnded"
    assert not older["executionInfo"].keys() & {"result", "failureInfo"}


async def test_a_version_that_nobody_knows_is_refused(call: Call) -> None:
    """Batch's own error, before anything is done."""
    for version in ("2099-01-01", "2016-02-01", "2025-06-01.21.0", "latest"):
        status, body = await call(version, "POST", "/jobs", {"id": "j", "poolInfo": {"poolId": "p"}})
        assert (status, body["code"]) == (400, "UnsupportedRequestVersion")
        assert {"key": "QueryParameterValue", "value": version} in body["values"]
    assert (await call(TODAY, "GET", "/jobs"))[1]["value"] == []
