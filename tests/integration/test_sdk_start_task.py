"""Start tasks, reboot and reimage, with the SDK against `nodeagent up` (spec/node.md §10, §14)."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.batch import BatchClient, models

from nodeagent.shim import kernel
from tests.integration.batch_endpoint import (
    BatchEndpoint,
    Property,
    Sdk,
    completed,
    eventually,
    job,
    local_stack,
    refusal,
    shell,
    task,
)

NODE = "node-1"
REIMAGE: Sdk = models._models.BatchNodeReimageOptions
DISABLE: Sdk = models._models.BatchNodeDisableSchedulingOptions
REBOOT: Sdk = models._models.BatchNodeRebootOptions  # the SDK does not export what its own method wants


class Up:
    """A local stack with the SDK's client."""

    def __init__(self, endpoint: BatchEndpoint, client: Sdk, state_dir: Path) -> None:
        self.endpoint = endpoint
        self.client = client
        self.state_dir = state_dir

    @property
    def node(self) -> Sdk:
        """Return the node."""
        return self.client.get_node(self.endpoint.pool_id, NODE)

    @property
    def root(self) -> Path:
        """Return the node's root directory."""
        return self.state_dir / "nodes" / NODE / "root"

    def give(self, script: str, **more: Property) -> None:
        """Change the start task of the pool."""
        start_task = models.BatchStartTask({"commandLine": shell(script), **more})
        self.client.update_pool(self.endpoint.pool_id, models.BatchPoolUpdateOptions(start_task=start_task))

    def reboot(self, option: str = "requeue") -> None:
        """Reboot the node; return when it is back, whatever state it is in then."""
        options = REBOOT(node_reboot_kind=option)
        self.client.begin_reboot_node(self.endpoint.pool_id, NODE, options, polling_interval=0.05).wait(30)

    def reimage(self) -> None:
        """Reimage the node; return when it is back."""
        self.client.begin_reimage_node(
            self.endpoint.pool_id, NODE, REIMAGE({"nodeReimageOption": "requeue"}), polling_interval=0.05
        ).wait(30)

    def until(self, state: str) -> Sdk:
        """Wait until the node is in a state; return it."""
        return eventually(lambda: self.node, lambda found: found.state.value == state)

    def file(self, path: str) -> bytes:
        """Return a file of the node."""
        return b"".join(self.client.download_node_file(self.endpoint.pool_id, NODE, path))


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Return a local stack of the test's own."""
    with local_stack(tmp_path / "up") as endpoint, BatchClient(endpoint.url, endpoint.credential()) as client:
        yield Up(endpoint, client, tmp_path / "up")


def test_a_start_task_runs_at_the_next_reboot_and_before_any_task(up: Up) -> None:
    """It has its own directory and variables, and what it has left in `shared` is there for the tasks."""
    before = up.node
    up.give("env; echo made > $AZ_BATCH_NODE_SHARED_DIR/tool; sleep 0.3; pwd >&2")
    assert up.node.start_task is None
    up.client.create_job(job("early"))
    up.reboot()
    up.client.create_task("early", task("t", "cat $AZ_BATCH_NODE_SHARED_DIR/tool"))
    ended = completed(up.client, "early", "t")
    node = up.until("idle")
    info = node.start_task_info
    assert (info.state.value, info.exit_code, info.result.value, info.retry_count) == ("completed", 0, "success", 0)
    assert info.start_time <= info.end_time <= ended.execution_info.start_time
    assert node.last_boot_time > before.last_boot_time
    assert b"".join(up.client.download_task_file("early", "t", "stdout.txt")) == b"made\n"
    environment = dict(line.split("=", 1) for line in up.file("startup/stdout.txt").decode().splitlines())
    assert environment["AZ_BATCH_NODE_STARTUP_DIR"] == environment["AZ_BATCH_TASK_DIR"] == str(up.root / "startup")
    assert "AZ_BATCH_JOB_ID" not in environment
    assert "AZ_BATCH_TASK_ID" not in environment
    assert up.file("startup/stderr.txt").decode().strip() == str(up.root / "startup" / "wd")
    assert (node.total_tasks_run, len(node.recent_tasks)) == (1, 1)


def test_a_start_task_that_fails_is_told_and_can_be_mended(up: Up) -> None:
    """After its retries the node is marked; its files and the last lines of its stderr say why; a reboot mends it."""
    up.give("echo no licence >&2; exit 3", maxTaskRetryCount=2)
    up.reboot()
    node = up.until("starttaskfailed")
    info = node.start_task_info
    assert (info.exit_code, info.result.value, info.retry_count) == (3, "failure", 2)
    assert info.last_retry_time is not None
    assert info.failure_info.code == "FailureExitCode"
    assert {item.name: item.value for item in info.failure_info.details}["StandardError"] == "no licence"
    assert up.file("startup/stderr.txt") == b"no licence\n"
    up.client.create_job(job("waits"))
    up.client.create_task("waits", task("t"))
    counts = next(found for found in up.client.list_pool_node_counts() if found.pool_id == up.endpoint.pool_id)
    assert (counts.dedicated.start_task_failed, counts.dedicated.idle) == (1, 0)
    assert up.client.get_task("waits", "t").state.value == "active"
    up.give("exit 0")
    up.reboot()
    assert completed(up.client, "waits", "t").execution_info.exit_code == 0


def test_what_a_start_task_leaves_running_lives_until_the_reboot(up: Up) -> None:
    """A service that it has started survives the agent, and is gone after the reboot, which starts another one."""
    up.give("sleep 987 & echo $!")
    up.reboot()
    up.until("idle")
    first = int(up.file("startup/stdout.txt"))
    (agent,) = _agents(up)
    agent_epoch = up.node.node_agent_info.last_update_time
    subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(agent)], check=True)
    eventually(lambda: up.node.node_agent_info.last_update_time, lambda now: now > agent_epoch)
    assert lives(first)
    assert up.node.state.value == "idle"
    up.reboot()
    up.until("idle")
    assert not lives(first)
    second = int(up.file("startup/stdout.txt"))
    assert lives(second)


def lives(pid: int) -> bool:
    """Tell whether a process runs: one that nobody has reaped yet does not."""
    found = kernel.stat(pid)
    return found is not None and found.lives


def _agents(up: Up) -> list[int]:
    state = str(up.state_dir / "nodes" / NODE)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"agent" in line and any(state.encode() in part for part in line):
                found.append(int(entry.name))
    return found


def test_running_tasks_are_requeued_terminated_or_waited_for(up: Up, tmp_path: Path) -> None:
    """As the option of the reboot says; a requeue counts as one, and the task runs again on the node that is back."""
    go = tmp_path / "go"
    up.client.create_job(job("options"))
    wait = f"until [ -e {go} ]; do sleep 0.05; done"
    up.client.create_task("options", task("again", wait))
    eventually(lambda: up.client.get_task("options", "again").state.value, lambda state: state == "running")
    up.reboot("requeue")
    again = eventually(lambda: up.client.get_task("options", "again"), lambda found: found.state.value == "running")
    assert (again.execution_info.requeue_count, again.execution_info.retry_count) == (1, 0)
    up.reboot("terminate")
    ended = completed(up.client, "options", "again")
    assert ended.execution_info.failure_info.code == "TaskEnded"
    up.client.create_task("options", task("last", f"{wait}; echo done"))
    eventually(lambda: up.client.get_task("options", "last").state.value, lambda state: state == "running")
    poller = up.client.begin_reboot_node(
        up.endpoint.pool_id,
        NODE,
        REBOOT(node_reboot_kind="taskcompletion"),
        polling_interval=0.05,
    )
    assert up.node.state.value == "rebooting"
    assert (
        refusal(
            lambda: up.client.begin_reboot_node(up.endpoint.pool_id, NODE, REBOOT(node_reboot_kind="requeue"))
        ).error.code
        == "NodeBeingRebooted"
    )
    go.touch()
    poller.wait(30)
    last = completed(up.client, "options", "last").execution_info
    assert (last.exit_code, last.requeue_count) == (0, 0)
    up.until("idle")


def test_a_reimaged_node_is_as_new(up: Up) -> None:
    """Nothing of its files is left; preparation runs again before the next task, and the next task finds nothing."""
    up.give("echo began >> $AZ_BATCH_NODE_SHARED_DIR/began")
    preparation = models.BatchJobPreparationTask(command_line=shell("echo p >> $AZ_BATCH_NODE_SHARED_DIR/prepared"))
    up.client.create_job(job("images", job_preparation_task=preparation))
    up.client.create_task("images", task("first", "echo x > $AZ_BATCH_NODE_SHARED_DIR/mine"))
    completed(up.client, "images", "first")
    up.reimage()
    up.until("idle")
    assert sorted(path.name for path in (up.root / "shared").iterdir()) == ["began"]
    up.client.create_task("images", task("second", "cat $AZ_BATCH_NODE_SHARED_DIR/prepared"))
    completed(up.client, "images", "second")
    assert b"".join(up.client.download_task_file("images", "second", "stdout.txt")) == b"p\n"
    gone = refusal(lambda: b"".join(up.client.download_task_file("images", "first", "wd/x")))
    assert gone.status_code in (404, 409)


def test_a_disabled_node_takes_nothing_and_says_so(up: Up) -> None:
    """Offline until somebody enables it; the second time is refused."""
    pool = up.endpoint.pool_id
    up.client.disable_node_scheduling(pool, NODE, DISABLE({"nodeDisableSchedulingOption": "requeue"}))
    node = up.until("offline")
    assert node.scheduling_state.value == "disabled"
    error = refusal(
        lambda: up.client.disable_node_scheduling(pool, NODE, DISABLE({"nodeDisableSchedulingOption": "requeue"}))
    )
    assert error.error.code == "NodeAlreadyInTargetSchedulingState"
    up.client.create_job(job("offline"))
    up.client.create_task("offline", task("t"))
    up.reboot()
    up.until("offline")
    assert up.client.get_task("offline", "t").state.value == "active"
    up.client.enable_node_scheduling(pool, NODE)
    assert completed(up.client, "offline", "t").execution_info.exit_code == 0


def test_a_removed_node_is_gone_with_its_agent(up: Up) -> None:
    """Its task runs nowhere else here, and waits; the pool is steady and empty."""
    pool = up.endpoint.pool_id
    up.client.create_job(job("removed"))
    up.client.create_task("removed", task("t", "sleep 600"))
    eventually(lambda: up.client.get_task("removed", "t").state.value, lambda state: state == "running")
    options = models.BatchNodeRemoveOptions(node_ids=[NODE])
    up.client.begin_remove_nodes(pool, options, polling_interval=0.05).wait(30)
    assert list(up.client.list_nodes(pool)) == []
    found = up.client.get_task("removed", "t")
    assert (found.state.value, found.execution_info.requeue_count) == ("active", 1)
    eventually(lambda: _agents(up), lambda agents: agents == [])
