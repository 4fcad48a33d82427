"""`nodeagent drain` against `nodeagent up`."""

import subprocess
import sys
from pathlib import Path

from azure.batch import BatchClient

from tests.integration.batch_endpoint import BatchEndpoint, Sdk, completed, eventually, job, local_stack, task

NODE = "node-1"


def drain(endpoint: BatchEndpoint, *arguments: str) -> "subprocess.Popen[str]":
    """Start the command."""
    service = ("--endpoint", endpoint.url, "--account", endpoint.account, "--key", endpoint.key)
    command = [sys.executable, "-m", "nodeagent", "drain", *arguments, *service]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Wait for the end of the command; return its status and what it printed."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_node_is_drained_and_taken_back(tmp_path: Path) -> None:
    """It waits for the task that runs; nothing new begins until the drain is undone; a wrong name is told."""
    go = tmp_path / "go"
    client: Sdk
    with local_stack(tmp_path / "up") as endpoint, BatchClient(endpoint.url, endpoint.credential()) as client:
        pool = endpoint.pool_id
        client.create_job(job("j"))
        client.create_task("j", task("first", f"until [ -e {go} ]; do sleep 0.05; done"))
        eventually(lambda: client.get_task("j", "first").state.value, lambda state: state == "running")
        draining = drain(endpoint, pool, NODE)
        eventually(lambda: client.get_node(pool, NODE).scheduling_state.value, lambda state: state == "disabled")
        assert draining.stdout is not None
        assert draining.stdout.readline() == f"{NODE}: 1 task left\n"
        client.create_task("j", task("second"))
        go.touch()
        assert ended(draining) == (0, f"{NODE} is drained (offline)\n", "")
        assert client.get_task("j", "first").execution_info.exit_code == 0
        assert client.get_task("j", "second").state.value == "active"
        assert ended(drain(endpoint, pool, NODE, "--requeue", "--no-wait")) == (0, "", "")
        assert ended(drain(endpoint, pool, NODE, "--undo")) == (0, f"{NODE} takes tasks again\n", "")
        completed(client, "j", "second")
        status, out, err = ended(drain(endpoint, pool, "nobody"))
        assert (status, out) == (8, "")
        assert "NodeNotFound" in err
