"""Several machines, one service: spread, a cable that is pulled and plugged in, a power cut, a cloned disk.

Every execution writes one line, with its attempt, into a log that all machines share: a command that ran twice under
one attempt (invariant I1) shows there, whatever agent and service believe.
"""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from azure.batch import BatchClient, models

from tests.faults.network_namespaces import Machine, Network, network
from tests.integration.batch_endpoint import ACCOUNT, KEY, POOL, BatchEndpoint, Sdk, eventually, job

LEASE = 5.0
SLOTS = 4
WAIT = 60.0
TERMINATE: Sdk = models._models.BatchJobTerminateOptions  # the SDK does not export what its own method wants
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


class Cluster:
    """A service in a process of its own, and an agent on each machine."""

    def __init__(self, folder: Path, net: Network) -> None:
        self.folder = folder
        self.ran = folder / "ran.log"
        self.machines = {f"node-{number}": machine for number, machine in enumerate(net.machines, start=1)}
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        with socket.socket() as probe:
            probe.bind((net.address, 0))
            port = int(probe.getsockname()[1])
        self.url = f"http://{net.address}:{port}"
        self._config = folder / "nodeagent.toml"
        self._config.write_text(
            f'[service]\nhost = "{net.address}"\nport = {port}\naccount = "{ACCOUNT}"\nkey = "{KEY}"\n'
            f'state_dir = "{folder}/service"\nlease_seconds = {LEASE}\nheartbeat_seconds = 0.5\n'
        )
        self._service: subprocess.Popen[bytes] | None = None

    @property
    def node_key_file(self) -> Path:
        """Where the service keeps the key of its nodes."""
        return self.folder / "service" / "node.key"

    def start_service(self) -> None:
        """Start the service, and wait until it answers."""
        with (self.folder / "service.log").open("ab") as log:
            self._service = subprocess.Popen(
                [sys.executable, "-m", "nodeagent", "service", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        eventually(self._answers, bool, WAIT)

    def _answers(self) -> bool:
        host, port = self.url.removeprefix("http://").split(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    def kill_service(self, number: int = signal.SIGKILL) -> None:
        """Send the service a signal, and wait for its end."""
        if self._service is not None:
            self._service.send_signal(number)
            self._service.wait(timeout=WAIT)
            self._service = None

    def start_agent(self, node: str, *, state: str | None = None, root: str | None = None) -> subprocess.Popen[bytes]:
        """Start the agent of a node on its machine."""
        machine = self.machines[node]
        folder = self.folder / node
        folder.mkdir(exist_ok=True)
        config = folder / "agent.toml"
        config.write_text(
            f'[agent]\nfile_server_host = "{machine.address}"\nretry_seconds = 0.5\ngrace_seconds = 1\n'
            "call_seconds = 2\npoll_seconds = 2\n"
        )
        agent = machine.start(
            "agent", "--config", str(config), "--service", self.url, "--pool", POOL, "--node", node,
            "--slots", str(SLOTS), "--accounts", "none", "--node-key-file", str(self.node_key_file),
            "--state-dir", state or str(folder / "state"), "--root", root or str(folder / "root"),
            log=folder / "agent.log",
        )  # fmt: skip
        self.agents[node] = agent
        return agent

    def client(self) -> Sdk:
        """Return the SDK's client."""
        endpoint = BatchEndpoint(self.url, ACCOUNT, KEY, POOL, "")
        return BatchClient(endpoint.url, endpoint.credential())

    def command(self, script: str = "true") -> str:
        """Return a command line that notes its execution in the shared log, and then runs a script."""
        note = f"echo $NODEAGENT_ATTEMPT $AZ_BATCH_TASK_ID $AZ_BATCH_NODE_ID >> {self.ran}"
        return f"/bin/sh -c '{note}; {script}'"

    def executions(self) -> list[tuple[str, str, str]]:
        """Return (attempt, task, node) of every execution so far."""
        lines = self.ran.read_text().splitlines() if self.ran.exists() else []
        return [(attempt, task, node) for attempt, task, node in (line.split() for line in lines)]

    def attempts(self) -> list[tuple[str, str, str]]:
        """Return (attempt, task, state) as the service has stored them, of tasks only."""
        with closing(sqlite3.connect(f"file:{self.folder}/service/service.db?mode=ro", uri=True)) as database:
            rows = database.execute(
                "SELECT a.id, t.id, a.state FROM attempts a JOIN tasks t ON t.num = a.task_num"
            ).fetchall()
        return [(str(attempt), str(task), str(state)) for attempt, task, state in rows]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Return a service with four machines, each with an agent that has joined."""
    with ExitStack() as stack:
        net = stack.enter_context(network(4))
        found = Cluster(tmp_path, net)
        found.start_service()
        stack.callback(found.kill_service)
        with found.client() as client:
            client.create_pool(
                models.BatchPoolCreateOptions(id=POOL, vm_size="standard_d2_v2", task_slots_per_node=SLOTS)
            )
            for node in found.machines:
                agent = found.start_agent(node)
                stack.callback(agent.wait, WAIT)
                stack.callback(found.machines[node].kill_everything)
            eventually(lambda: states(client), lambda now: now == dict.fromkeys(found.machines, "idle"), WAIT)
        yield found


def states(client: Sdk) -> dict[str, str]:
    """Return the state of every node."""
    return {node.id: str(node.state.value) for node in client.list_nodes(POOL)}


def add(client: Sdk, job_id: str, tasks: list[models.BatchTaskCreateOptions]) -> None:
    """Add tasks, all of which must be taken."""
    results = client.create_tasks(job_id, tasks)
    assert {str(result.status.value) for result in results.result_values} == {"success"}


def all_succeeded(client: Sdk, job_id: str, tasks: int) -> None:
    """Wait until so many tasks have succeeded; the counts must say what a listing says."""
    counts = eventually(
        lambda: client.get_job_task_counts(job_id).task_counts, lambda now: now.completed == tasks, WAIT
    )
    assert (counts.succeeded, counts.failed, counts.active, counts.running) == (tasks, 0, 0, 0)
    listed = list(client.list_tasks(job_id))
    assert Counter(str(found.execution_info.result.value) for found in listed) == {"success": tasks}
    assert {found.execution_info.exit_code for found in listed} == {0}
    assert {found.execution_info.retry_count for found in listed} == {0}
    assert {found.execution_info.requeue_count for found in listed} == {0}


def each_attempt_ran_once(cluster: Cluster) -> None:
    """No attempt's command ran twice, and each task has exactly one attempt that completed, which did run."""
    ran = Counter(attempt for attempt, _, _ in cluster.executions())
    assert {attempt: times for attempt, times in ran.items() if times != 1} == {}
    stored = cluster.attempts()
    completed = Counter(task for _, task, state in stored if state == "completed")
    assert set(completed.values()) == {1}
    assert {task for _, task, _ in stored} == set(completed)
    assert {attempt for attempt, _, state in stored if state == "completed"} <= set(ran)


def alive(pattern: str) -> list[int]:
    """Return the processes whose command line holds a text."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if pattern in line and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def holders(cluster: Cluster, count: int, gate: Path) -> list[models.BatchTaskCreateOptions]:
    """Return tasks that run until a file is there."""
    script = f"until [ -e {gate} ]; do sleep 0.05; done"
    return [
        models.BatchTaskCreateOptions(id=f"hold-{number}", command_line=cluster.command(script))
        for number in range(count)
    ]


def held_by(cluster: Cluster) -> Callable[[], dict[str, list[str]]]:
    """Return who runs which of the tasks that wait, by what they have noted."""

    def look() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {node: [] for node in cluster.machines}
        for _, task, node in cluster.executions():
            if task.startswith("hold-"):
                found[node].append(task)
        return found

    return look


def test_two_thousand_tasks_and_a_cable_that_is_pulled(cluster: Cluster) -> None:
    """A node is cut off for longer than its lease: its tasks run elsewhere, once; what it did meanwhile is void.

    Plugged in again it ends what it still runs, and takes work like before.
    """
    gate = cluster.folder / "gate"
    with cluster.client() as client:
        client.create_job(job("spread"))
        add(client, "spread", holders(cluster, 8, gate))
        held = eventually(held_by(cluster), lambda now: sum(map(len, now.values())) == 8, WAIT)
        assert {node: len(tasks) for node, tasks in held.items()} == dict.fromkeys(cluster.machines, 2)
        quick = [models.BatchTaskCreateOptions(id=f"t{n}", command_line=cluster.command()) for n in range(2000)]
        add(client, "spread", quick)

        cluster.machines["node-2"].cut()
        eventually(lambda: states(client)["node-2"], lambda state: state == "unknown", WAIT)
        again = eventually(held_by(cluster), lambda now: sum(map(len, now.values())) == 10, WAIT)
        moved = Counter(task for tasks in again.values() for task in tasks if task in held["node-2"])
        assert moved == dict.fromkeys(held["node-2"], 2)
        assert again["node-2"] == held["node-2"]

        cluster.machines["node-2"].connect()
        lost = [attempt for attempt, task, node in cluster.executions() if node == "node-2" and task in moved]
        given_up = [attempt for attempt, _, state in cluster.attempts() if state == "given_up"]
        assert set(lost) <= set(given_up)
        eventually(lambda: states(client)["node-2"], lambda state: state in ("idle", "running"), WAIT)
        eventually(lambda: _processes_of(lost), lambda now: now == [], WAIT)
        client.create_job(job("later"))
        later = [models.BatchTaskCreateOptions(id=f"late{n}", command_line=cluster.command()) for n in range(200)]
        add(client, "later", later)
        eventually(
            lambda: {node for _, task, node in cluster.executions() if task.startswith("late")},
            lambda nodes: "node-2" in nodes,
            WAIT,
        )
        gate.touch()
        all_succeeded(client, "spread", 2008)
        all_succeeded(client, "later", 200)
        used = Counter(node for _, _, node in cluster.executions())
        assert set(used) == set(cluster.machines)
        eventually(lambda: states(client), lambda now: now == dict.fromkeys(cluster.machines, "idle"), WAIT)
        run = {node.id: (node.total_tasks_run, node.total_tasks_succeeded) for node in client.list_nodes(POOL)}
    assert sum(total for total, _ in run.values()) == 2208
    assert all(total == succeeded for total, succeeded in run.values())
    each_attempt_ran_once(cluster)


def _processes_of(attempts: list[str]) -> list[int]:
    """Return the processes that carry the mark of one of these attempts."""
    marks = [f"NODEAGENT_ATTEMPT={attempt}".encode() for attempt in attempts]
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if any(mark in environment for mark in marks):
                found.append(int(entry.name))
    return found


def test_a_short_cut_changes_nothing(cluster: Cluster) -> None:
    """A cable that is plugged in again before the lease is over costs no execution."""
    gate = cluster.folder / "gate"
    with cluster.client() as client:
        client.create_job(job("short"))
        add(client, "short", holders(cluster, 8, gate))
        eventually(held_by(cluster), lambda now: sum(map(len, now.values())) == 8, WAIT)
        cluster.machines["node-3"].cut()
        gate.touch()  # its tasks end while nobody hears of it
        eventually(lambda: client.get_job_task_counts("short").task_counts.completed, lambda now: now == 6, LEASE * 0.8)
        cluster.machines["node-3"].connect()
        all_succeeded(client, "short", 8)
    assert len(cluster.executions()) == 8
    each_attempt_ran_once(cluster)


def test_a_machine_that_is_gone_for_good(cluster: Cluster) -> None:
    """Power cut: its tasks run elsewhere, and a job with a release task there still comes to its end."""
    gate = cluster.folder / "gate"
    with cluster.client() as client:
        client.create_job(
            job(
                "gone",
                job_preparation_task=models.BatchJobPreparationTask(command_line="/bin/true"),
                job_release_task=models.BatchJobReleaseTask(command_line="/bin/true"),
            )
        )
        add(client, "gone", holders(cluster, 8, gate))
        eventually(held_by(cluster), lambda now: sum(map(len, now.values())) == 8, WAIT)
        cluster.machines["node-4"].cut()
        cluster.machines["node-4"].kill_everything()
        eventually(held_by(cluster), lambda now: sum(map(len, now.values())) == 10, WAIT)
        gate.touch()
        all_succeeded(client, "gone", 8)
        client.begin_terminate_job("gone", TERMINATE(termination_reason="over"), polling_interval=0).wait(WAIT)
        eventually(lambda: str(client.get_job("gone").state.value), lambda state: state == "completed", WAIT)
        statuses = {str(found.node_id): found for found in client.list_job_preparation_and_release_task_status("gone")}
        assert set(statuses) == set(cluster.machines)
        released = {node for node, found in statuses.items() if found.job_release_task_execution_info is not None}
        assert released == set(cluster.machines) - {"node-4"}
    each_attempt_ran_once(cluster)


def test_a_cloned_node_is_refused(cluster: Cluster) -> None:
    """Of two machines with one disk image only the one that started last may speak for the node."""
    original = cluster.agents["node-1"]
    state = cluster.folder / "node-1" / "state"
    clone = cluster.folder / "clone"
    shutil.copytree(state, clone, ignore=shutil.ignore_patterns("*.sock", "zygote*"))
    cluster.machines["clone"] = cluster.machines["node-2"]
    second = _start_clone(cluster, cluster.machines["node-2"], clone)
    try:
        assert original.wait(timeout=WAIT) != 0
        with cluster.client() as client:
            eventually(lambda: states(client)["node-1"], lambda state: state == "idle", WAIT)
        assert "newer agent" in (cluster.folder / "node-1" / "agent.log").read_text()
        assert second.poll() is None
    finally:
        second.terminate()
        second.wait(timeout=WAIT)


def _start_clone(cluster: Cluster, machine: Machine, state: Path) -> "subprocess.Popen[bytes]":
    config = cluster.folder / "node-1" / "agent.toml"
    config.write_text(config.read_text().replace(cluster.machines["node-1"].address, machine.address))
    return machine.start(
        "agent", "--config", str(config), "--service", cluster.url, "--pool", POOL, "--node", "node-1",
        "--slots", str(SLOTS), "--accounts", "none", "--node-key-file", str(cluster.node_key_file),
        "--state-dir", str(state), "--root", str(cluster.folder / "clone-root"), log=cluster.folder / "clone.log",
    )  # fmt: skip


def test_the_service_is_killed_under_four_nodes(cluster: Cluster) -> None:
    """Kill -9 of the service while all nodes work: nothing is lost, nothing runs twice."""
    with cluster.client() as client:
        client.create_job(job("killed"))
        add(
            client,
            "killed",
            [models.BatchTaskCreateOptions(id=f"t{n}", command_line=cluster.command()) for n in range(1000)],
        )
        for done in (100, 400, 700):
            eventually(lambda: len(cluster.executions()), lambda now, done=done: now >= done, WAIT)  # type: ignore[misc]
            cluster.kill_service()
            cluster.start_service()
        all_succeeded(client, "killed", 1000)
    assert len(cluster.executions()) == 1000
    each_attempt_ran_once(cluster)
