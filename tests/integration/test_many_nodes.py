"""`nodeagent up --nodes 4`: several nodes on one machine, as a user starts them."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.batch import BatchClient, models

from tests.integration.batch_endpoint import BatchEndpoint, Sdk, eventually, job, task

NODES, SLOTS, TASKS = 4, 2, 400


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[BatchEndpoint]:
    """Return a local stack with four nodes."""
    command = [sys.executable, "-m", "nodeagent", "up", "--port", "0", "--nodes", str(NODES), "--slots", str(SLOTS)]
    with subprocess.Popen(
        [*command, "--state-dir", str(tmp_path / "up"), "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            yield BatchEndpoint(ready["endpoint"], ready["account"], ready["key"], ready["pool"], "")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


def test_tasks_are_spread_over_the_nodes_of_one_machine(endpoint: BatchEndpoint, tmp_path: Path) -> None:
    """No node has more tasks at a time than slots, all of them work, and their counters add up."""
    client: Sdk
    gate = tmp_path / "gate"
    hold = f"until [ -e {gate} ]; do sleep 0.05; done"
    with BatchClient(endpoint.url, endpoint.credential()) as client:
        client.create_job(job("wide"))
        client.create_tasks("wide", [task(f"hold{number}", hold) for number in range(NODES * SLOTS)])
        nodes = eventually(
            lambda: list(client.list_nodes(endpoint.pool_id)),
            lambda found: sum(node.running_tasks_count for node in found) == NODES * SLOTS,
        )
        assert {node.id: node.running_task_slots_count for node in nodes} == {
            f"node-{number}": SLOTS for number in range(1, NODES + 1)
        }
        assert {node.state for node in nodes} == {models.BatchNodeState.RUNNING}
        client.create_tasks("wide", [task(f"t{number}") for number in range(TASKS)])
        gate.touch()
        eventually(
            lambda: client.get_job_task_counts("wide").task_counts.succeeded,
            lambda now: now == TASKS + NODES * SLOTS,
            60,
        )
        used = Counter(found.node_info.node_id for found in client.list_tasks("wide"))
        assert set(used) == {node.id for node in nodes}
        ended = eventually(
            lambda: list(client.list_nodes(endpoint.pool_id)),
            lambda found: {node.state for node in found} == {models.BatchNodeState.IDLE},
        )
        assert {node.id: node.total_tasks_run for node in ended} == used
        assert {node.id: node.total_tasks_succeeded for node in ended} == used
