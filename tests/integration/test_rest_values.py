"""Every property of every body, each with values that programs stumble over: accepted and shown again, or a 4xx."""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from nodeagent.service.app import Service
from nodeagent.service.settings import ServiceSettings

KEY = base64.b64encode(b"the key of a test's account").decode()
QUERY = "?api-version=2025-06-01"
TASK: dict[str, Any] = {
    "id": "x",
    "displayName": "d",
    "commandLine": "true",
    "exitConditions": {
        "exitCodes": [{"code": 1, "exitOptions": {"dependencyAction": "satisfy"}}],
        "exitCodeRanges": [{"start": 2, "end": 3, "exitOptions": {"jobAction": "none"}}],
        "default": {"jobAction": "terminate"},
    },
    "resourceFiles": [{"httpUrl": "http://h/a", "filePath": "a", "fileMode": "0644"}],
    "outputFiles": [
        {
            "filePattern": "*.txt",
            "destination": {"container": {"containerUrl": "http://h.example/c?sig=1", "path": "p"}},
            "uploadOptions": {"uploadCondition": "taskcompletion"},
        }
    ],
    "environmentSettings": [{"name": "A", "value": "b"}],
    "affinityInfo": {"affinityId": "TVM:n"},
    "constraints": {"maxWallClockTime": "PT1H", "retentionTime": "P1D", "maxTaskRetryCount": 1},
    "requiredSlots": 1,
    "userIdentity": {"autoUser": {"scope": "pool", "elevationLevel": "nonadmin"}},
    "dependsOn": {"taskIds": ["a"], "taskIdRanges": [{"start": 1, "end": 2}]},
    "authenticationTokenSettings": {"access": ["job"]},
}
JOB: dict[str, Any] = {
    "id": "x",
    "displayName": "d",
    "priority": 1,
    "allowTaskPreemption": True,
    "maxParallelTasks": 1,
    "usesTaskDependencies": True,
    "constraints": {"maxWallClockTime": "PT1H", "maxTaskRetryCount": 1},
    "jobManagerTask": {"id": "m", "commandLine": "true", "constraints": {"maxWallClockTime": "PT1H"}},
    "jobPreparationTask": {"id": "p", "commandLine": "true", "waitForSuccess": True},
    "jobReleaseTask": {"id": "r", "commandLine": "true", "maxWallClockTime": "PT5M", "retentionTime": "P1D"},
    "commonEnvironmentSettings": [{"name": "A", "value": "b"}],
    "poolInfo": {"poolId": "none"},
    "onAllTasksComplete": "noaction",
    "onTaskFailure": "noaction",
    "metadata": [{"name": "a", "value": "b"}],
}
POOL: dict[str, Any] = {
    "id": "x",
    "displayName": "d",
    "vmSize": "x",
    "virtualMachineConfiguration": {"imageReference": {"publisher": "p", "offer": "o"}, "nodeAgentSKUId": "s"},
    "resizeTimeout": "PT15M",
    "targetDedicatedNodes": 0,
    "targetLowPriorityNodes": 0,
    "startTask": {"commandLine": "true", "maxTaskRetryCount": 1, "environmentSettings": [{"name": "A", "value": "b"}]},
    "taskSlotsPerNode": 1,
    "taskSchedulingPolicy": {"nodeFillType": "spread"},
    "userAccounts": [{"name": "u", "password": "p", "linuxUserConfiguration": {"uid": 1234, "gid": 1234}}],
    "metadata": [{"name": "a", "value": "b"}],
}
SCHEDULE: dict[str, Any] = {
    "id": "x",
    "displayName": "d",
    "schedule": {
        "doNotRunUntil": "2100-01-01T00:00:00Z",
        "doNotRunAfter": "2101-01-01T00:00:00Z",
        "startWindow": "PT1H",
        "recurrenceInterval": "PT1H",
    },
    "jobSpecification": {name: value for name, value in JOB.items() if name != "id"},
    "metadata": [{"name": "a", "value": "b"}],
}
BODIES = {"/pools": POOL, "/jobs": JOB, "/jobs/dependencies/tasks": TASK, "/jobschedules": SCHEDULE}
VALUES: tuple[object, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 1.5, 1e308),
    *("", " ", "\x00", "x" * 40_000, "☃", "\U0010ffff", "../..", "a b", "$", "%s", "'; DROP TABLE jobs; --"),
    *(
        "PT0S",
        "-PT1S",
        "P10675199D",
        "P99999999999Y",
        "PT1",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59.9999999Z",
    ),
    *([], {}, [None], [[]], [{}], {"a": 1}, {"": ""}, [1] * 2000),
)


def places(body: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of each property and item of a body."""
    parts = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for name, part in parts:
        yield (*path, name)
        yield from places(part, (*path, name))


def changed(body: dict[str, Any], path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """Return a copy of a body with another value at a path."""
    copy = deepcopy(body)
    place: Any = copy
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return copy


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """Return a way to call a service with a job whose tasks may have dependencies."""
    settings = ServiceSettings(
        port=0, key=SecretStr(KEY), bearer_token=SecretStr("let-me-in"), state_dir=tmp_path, synchronous="normal"
    )
    headers = {"Authorization": "Bearer let-me-in"}
    async with Service(settings) as service, aiohttp.ClientSession(service.url, headers=headers) as opened:
        job = {
            "id": "dependencies",
            "usesTaskDependencies": True,
            "onTaskFailure": "performexitoptionsjobaction",
            "poolInfo": {"poolId": "none"},
        }
        async with opened.post(f"/jobs{QUERY}", json=job) as answer:
            assert answer.status == 201
        yield opened


@pytest.mark.parametrize("path", list(BODIES))
async def test_every_property_survives_every_value(path: str, session: aiohttp.ClientSession) -> None:
    """201 and it can be read and listed, or 4xx in Batch's form; the unchanged body is good."""
    body = BODIES[path]
    assert await _status(session, path, body | {"id": "unchanged"}) == 201
    number = 0
    for place in places(body):
        for value in VALUES:
            number += 1
            sent = changed(body | {"id": f"x{number}"}, place, value)
            status = await _status(session, path, sent)
            assert status == 201 or 400 <= status < 500, (place, value)
            if status == 201:
                async with session.get(f"{path}/{sent['id']}{QUERY}") as shown:
                    assert shown.status == 200, (place, value, await shown.text())
    async with session.get(f"{path}{QUERY}") as listed:
        assert listed.status == 200
        assert len((await listed.json())["value"]) > 1


async def _status(session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> int:
    content = json.dumps(body).encode()  # orjson has no numbers beyond 64 bits
    async with session.post(f"{path}{QUERY}", data=content) as answer:
        if answer.status >= 400:
            assert set(await answer.json()) >= {"code", "message"}
        return answer.status
