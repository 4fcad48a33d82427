"""Job managers on the real stack: alone on a node, killing their job or not, on nodes that stay (spec/node.md §9)."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from azure.batch import BatchClient, models

from tests.integration.batch_endpoint import (
    BatchEndpoint,
    Property,
    Sdk,
    completed,
    eventually,
    job,
    local_stack,
    shell,
    task,
)

REBOOT: Sdk = models._models.BatchNodeRebootOptions


def manager(script: str, **more: Property) -> models.BatchJobManagerTask:
    """Return a job manager that runs a script."""
    return models.BatchJobManagerTask({"id": "manager", "commandLine": shell(script), **more})


def until_gate(gate: Path, started: Path | None = None) -> str:
    """Return a script that says that it has started, and waits for a file."""
    says = "" if started is None else f"echo x >> {started}; "
    return f"{says}until [ -e {gate} ]; do sleep 0.05; done"


@contextmanager
def agent(endpoint: BatchEndpoint, folder: Path, node_id: str) -> Iterator[None]:
    """Let another node join the pool of a local stack whose state is in `up`."""
    (key,) = (folder / "up").rglob("node.key")
    arguments = [f"--service={endpoint.url}", f"--pool={endpoint.pool_id}", f"--node={node_id}", "--slots=1"]
    folders = [f"--state-dir={folder}/{node_id}", f"--root={folder}/{node_id}-root", f"--node-key-file={key}"]
    command = [sys.executable, "-m", "nodeagent", "agent", *arguments, *folders, "--accounts=none"]
    with (folder / f"{node_id}.log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def job_state(client: Sdk, job_id: str) -> str:
    """Return the state of a job."""
    return str(client.get_job(job_id).state.value)


def starts(path: Path) -> int:
    """Return how often a script has said that it started."""
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_an_exclusive_manager_has_its_node_alone_and_ends_its_job(tmp_path: Path) -> None:
    """By default: four slots, and nothing beside it; its end is the job's end, and what still waits never runs."""
    gate = tmp_path / "gate"
    client: Sdk
    with local_stack(tmp_path / "up") as endpoint, BatchClient(endpoint.url, endpoint.credential()) as client:
        client.create_job(job("alone", job_manager_task=manager(until_gate(gate))))
        eventually(lambda: client.get_task("alone", "manager").state.value, lambda state: state == "running")
        client.create_tasks("alone", [task(f"t{number}") for number in range(3)])
        client.create_job(job("other"))
        client.create_task("other", task("t"))
        node = client.get_node(endpoint.pool_id, endpoint.node_id)
        assert (node.running_tasks_count, node.running_task_slots_count) == (1, 4)
        assert client.get_task("other", "t").state.value == "active"
        gate.touch()
        ended = eventually(lambda: client.get_job("alone"), lambda found: found.state.value == "completed")
        assert ended.execution_info.termination_reason == "JMComplete"
        counts = client.get_job_task_counts("alone").task_counts
        assert (counts.active, counts.running, counts.succeeded) == (3, 0, 1)
        assert completed(client, "other", "t").execution_info.exit_code == 0


def test_a_manager_that_shares_its_node_and_leaves_its_job_open(tmp_path: Path) -> None:
    """`runExclusive` and `killJobOnCompletion` false: tasks run beside it, and after it, and the job stays active."""
    gate = tmp_path / "gate"
    client: Sdk
    more = {"runExclusive": False, "killJobOnCompletion": False}
    with local_stack(tmp_path / "up") as endpoint, BatchClient(endpoint.url, endpoint.credential()) as client:
        client.create_job(job("open", job_manager_task=manager(until_gate(gate), **more)))
        client.create_task("open", task("beside"))
        assert completed(client, "open", "beside").execution_info.exit_code == 0
        assert client.get_task("open", "manager").state.value == "running"
        gate.touch()
        completed(client, "open", "manager")
        client.create_task("open", task("after"))
        assert completed(client, "open", "after").execution_info.exit_code == 0
        assert job_state(client, "open") == "active"


def test_a_manager_that_runs_again_does_not_end_its_job(tmp_path: Path) -> None:
    """Requeued by a reboot, retried as often as the job allows by default: only its last end is the job's."""
    gate, told = tmp_path / "gate", tmp_path / "told"
    client: Sdk
    fails_first = f"{until_gate(gate, told)}; [ -e {tmp_path}/failed ] || {{ touch {tmp_path}/failed; exit 3; }}"
    with local_stack(tmp_path / "up") as endpoint, BatchClient(endpoint.url, endpoint.credential()) as client:
        limits = models.BatchJobConstraints(max_task_retry_count=1)
        client.create_job(job("again", constraints=limits, job_manager_task=manager(fails_first)))
        eventually(lambda: starts(told), lambda count: count == 1)
        options = REBOOT(node_reboot_kind="requeue")
        client.begin_reboot_node(endpoint.pool_id, endpoint.node_id, options, polling_interval=0.05).wait(30)
        eventually(lambda: starts(told), lambda count: count == 2)
        assert job_state(client, "again") == "active"
        eventually(lambda: client.get_task("again", "manager").state.value, lambda state: state == "running")
        assert client.get_task("again", "manager").execution_info.requeue_count == 1
        gate.touch()
        ended = eventually(lambda: client.get_job("again"), lambda found: found.state.value == "completed")
        assert ended.execution_info.termination_reason == "JMComplete"
        info = client.get_task("again", "manager").execution_info
        assert (info.exit_code, info.result.value, info.retry_count, info.requeue_count) == (0, "success", 1, 1)
        assert starts(told) == 3


@pytest.mark.parametrize(("kills", "state"), [(True, "completed"), (False, "active")])
def test_a_manager_that_fails_for_good_ends_its_job_only_if_it_kills_it(
    tmp_path: Path, state: str, *, kills: bool
) -> None:
    """`killJobOnCompletion` looks at the end, not at the result; no retry is the job's default."""
    client: Sdk
    with local_stack(tmp_path / "up") as endpoint, BatchClient(endpoint.url, endpoint.credential()) as client:
        client.create_job(job("fails", job_manager_task=manager("exit 3", killJobOnCompletion=kills)))
        info = completed(client, "fails", "manager").execution_info
        assert (info.exit_code, info.retry_count, info.result.value) == (3, 0, "failure")
        eventually(lambda: job_state(client, "fails"), lambda found: found == state)


def test_a_manager_waits_for_a_dedicated_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`allowLowPriorityNode` false: it does not run on the node that is not dedicated, and starts on one that joins."""
    client: Sdk
    monkeypatch.setenv("NODEAGENT_AGENT_IS_DEDICATED", "false")
    with local_stack(tmp_path / "up") as endpoint, BatchClient(endpoint.url, endpoint.credential()) as client:
        assert client.get_node(endpoint.pool_id, endpoint.node_id).is_dedicated is False
        kept = manager("true", allowLowPriorityNode=False, killJobOnCompletion=False)
        client.create_job(job("kept", job_manager_task=kept))
        client.create_task("kept", task("t", "echo $AZ_BATCH_NODE_IS_DEDICATED"))
        assert completed(client, "kept", "t").node_info.node_id == endpoint.node_id
        assert b"".join(client.download_task_file("kept", "t", "stdout.txt")) == b"false\n"
        assert client.get_task("kept", "manager").state.value == "active"
        monkeypatch.setenv("NODEAGENT_AGENT_IS_DEDICATED", "true")
        with agent(endpoint, tmp_path, "firm"):
            assert completed(client, "kept", "manager").node_info.node_id == "firm"
            counts = next(item for item in client.list_pool_node_counts() if item.pool_id == endpoint.pool_id)
            assert (counts.dedicated.total, counts.low_priority.total) == (1, 1)
            pool = client.get_pool(endpoint.pool_id)
            assert (pool.current_dedicated_nodes, pool.current_low_priority_nodes) == (1, 1)
            assert client.get_node(endpoint.pool_id, "firm").is_dedicated
