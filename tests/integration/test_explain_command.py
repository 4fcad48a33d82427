"""`nodeagent explain` and its HTTP form, against a running service with a real node."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from nodeagent.local.client import BatchClient, ServiceError
from nodeagent.model.job import JobCreate
from nodeagent.model.task import TaskCreate
from tests.integration.command_line import kill_processes_of, line_with, nodeagent, started


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[tuple[BatchClient, tuple[str, ...]]]:
    """Serve a pool with one node of one slot; give a client, and the options that lead the command there."""
    try:
        async with started("up", "--port=0", "--json", "--slots=1", f"--state-dir={tmp_path / 'state'}") as process:
            facts = json.loads(await line_with(process, "endpoint"))
            options = (f"--endpoint={facts['endpoint']}", f"--account={facts['account']}", f"--key={facts['key']}")
            async with BatchClient(facts["endpoint"], facts["account"], facts["key"]) as client:
                yield client, options
    finally:
        kill_processes_of(tmp_path)


async def _submit(client: BatchClient) -> None:
    """Add a job with a task that runs until it is ended and one that waits behind it; wait until the first runs."""
    await client.add_job(JobCreate.model_validate({"id": "job", "poolInfo": {"poolId": "local"}}))
    commands = (("runs", "sleep 600"), ("waits", "true"))
    await client.add_tasks("job", [TaskCreate(id=name, command_line=command) for name, command in commands])
    async with asyncio.timeout(30):
        while True:
            told = await client.explain("jobs", "job", "tasks", "runs")
            if told["reasons"][0]["code"] == "Running":
                return
            await asyncio.sleep(0.02)


async def test_task_job_and_node_are_explained_by_the_command(stack: tuple[BatchClient, tuple[str, ...]]) -> None:
    """The waiting task names the node and who holds its slot; job and node tell the same; JSON is the answer."""
    client, options = stack
    await _submit(client)
    (node,) = await client.list_nodes("local")
    status, out, err = await nodeagent("explain", "job", "waits", *options)
    assert (status, err) == (0, "")
    first, reason, *rest = out.splitlines()
    assert first.startswith("task job/waits: active since 2")
    assert reason.startswith(f"  WaitingForSlots: It needs 1 slot; node {node['id']} has 0 of 1 slot free")
    assert "job/runs (1)" in reason
    assert "What would change it:" in rest

    _, out, _ = await nodeagent("explain", "job", *options)
    assert "job job: active since" in out
    assert "  FirstInLine: The first that waits is task waits" in out

    status, out, _ = await nodeagent("explain", "--json", "--node", "local", node["id"], *options)
    told = json.loads(out)
    assert (status, told["kind"], told["state"]) == (0, "node", "running")
    assert [item["code"] for item in told["reasons"]] == ["WaitingForSlots", "NodeRuns"]
    assert told["reasons"][1]["subject"] == "job/runs"
    assert told == await client.explain("pools", "local", "nodes", node["id"])


async def test_http_needs_the_account_and_refuses_what_is_not_there(
    stack: tuple[BatchClient, tuple[str, ...]],
) -> None:
    """The authentication of the Batch API, and its codes; the command ends with one line and status 8."""
    client, options = stack
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{client.endpoint}/nodeagent/v1/explain/jobs/job") as answer,
    ):
        assert answer.status in (401, 403)
        assert "reasons" not in await answer.text()
    with pytest.raises(ServiceError, match="NodeNotFound"):
        await client.explain("pools", "local", "nodes", "nobody")
    status, out, err = await nodeagent("explain", "no such job", *options)
    assert (status, out) == (8, "")
    assert "JobNotFound" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("names", [("a", "b", "c"), ("--node", "pool"), ()])
async def test_names_that_do_not_fit_are_a_usage_error(names: tuple[str, ...]) -> None:
    """Three names, a node without its pool, nothing at all."""
    status, out, err = await nodeagent("explain", *names)
    assert (status, out) == (2, "")
    assert "see 'nodeagent explain --help'" in err
