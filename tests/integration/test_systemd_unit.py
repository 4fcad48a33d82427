"""The units of systemd/ in a booted machine: a restart of the agent leaves its tasks running.

The machine is systemd-nspawn's, over the tests' base system; it shares the network of this one, so the service's port
is chosen here and the SDK speaks to it from outside. All its files are in memory and gone at the end.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from azure.batch import BatchClient, models
from azure.core.credentials import AzureNamedKeyCredential

from tests.integration.batch_endpoint import POOL, Sdk, completed, eventually, job, task

REPOSITORY = Path(__file__).parents[2]
ACCOUNT = "unittest"
KEY = "c3lzdGVtZCB1bml0IHRlc3Qga2V5"
AGENT, SERVICE = "nodeagent.service", "nodeagent-service.service"

INSTALL = """
python3 -m venv /opt/nodeagent
/opt/nodeagent/bin/pip install --quiet --no-index --find-links /srv/wheels nodeagent
install -m 0644 /srv/units/*.service /etc/systemd/system/
systemctl daemon-reload
"""

SETTINGS = """
[service]
port = {port}
account = "{account}"
key = "{key}"
state_dir = "/var/lib/nodeagent-service"

[agent]
service = "http://127.0.0.1:{port}"
node = "booted"
slots = 4
node_key_file = "/etc/nodeagent/node.key"
"""

# A task that ends when it is told to, with a code that nothing else gives.
TRUE_CODE = 17
LONG = f"echo $$; while [ ! -e /run/finish-{{name}} ]; do sleep 0.1; done; exit {TRUE_CODE}"


@dataclass(frozen=True)
class Process:
    """A process of the machine as no later one can be: pid and start ticks."""

    pid: int
    start_ticks: int


@dataclass(frozen=True)
class Machine:
    """A booted machine; `leader` is its first process as this machine numbers it."""

    leader: int

    def run(self, *argv: str, timeout: float = 120) -> str:
        """Run a program in the machine and return what it printed; a failure shows all of it."""
        enter = ["nsenter", "--target", str(self.leader), "--all", "--"]
        clean = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        done = subprocess.run(
            [*enter, *clean, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(argv)} ended with {done.returncode} in the machine:\n{done.stdout}"
        return done.stdout

    def unit(self, name: str, prop: str) -> str:
        """One property of a unit, as `systemctl show` prints it."""
        return self.run("systemctl", "show", "--value", f"--property={prop}", name).strip()

    def journal(self) -> str:
        """The last lines of the units' log."""
        return self.run("journalctl", "--no-pager", "--lines=100", f"--unit={AGENT}", f"--unit={SERVICE}")

    def write(self, path: str, text: str) -> None:
        """Write a file that only root of the machine reads."""
        file = self._file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(text)

    def exists(self, path: str) -> bool:
        """Whether the machine has a file of that name."""
        return self._file(path).exists()

    def read(self, path: str) -> str:
        """A file's text; nothing if there is no such file yet."""
        return self._file(path).read_text() if self.exists(path) else ""

    def _file(self, path: str) -> Path:
        return Path(f"/proc/{self.leader}/root{path}")

    def process(self, pid: int) -> Process:
        """The process that has that pid in the machine now."""
        return Process(pid, int(self.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[19]))


def own_cgroups(name: str) -> list[Path]:
    """Make a cgroup for the machine in each hierarchy of systemd's, unless this machine has a systemd that does."""
    if Path("/run/systemd/system").exists():
        return []
    hierarchies = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/systemd")]
    made = [hierarchy / name for hierarchy in hierarchies if (hierarchy / "cgroup.procs").exists()]
    for cgroup in made:
        cgroup.mkdir()
    return made


def remove_cgroups(cgroups: list[Path]) -> None:
    """Remove cgroups with all below them, once the last process in them is gone."""
    eventually(lambda: [file for top in cgroups for file in top.rglob("cgroup.procs") if file.read_text()], _none)
    for cgroup in cgroups:
        for folder, _, _ in sorted(os.walk(cgroup), reverse=True):  # children before their parents
            Path(folder).rmdir()


def _none(found: list[Path]) -> bool:
    return not found


@contextmanager
def booted(rootfs: Path, wheelhouse: Path, log: Path) -> Generator[Machine]:
    """Boot a machine, and power it off at the end."""
    name = f"nodeagent-test-{os.getpid()}"
    cgroups = own_cgroups(name)
    enter_cgroups = "".join(f"echo $$ > {cgroup}/cgroup.procs; " for cgroup in cgroups)
    # without a systemd of its own, this machine has nobody with whom the new one could be registered
    registration = ["--keep-unit", "--register=no"] if cgroups else []
    home = Path(tempfile.mkdtemp(prefix="nodeagent-nspawn-"))  # the path of a socket must be short
    argv = [
        "sh",
        "-ec",
        f'{enter_cgroups}exec "$@"',
        "sh",
        "setpriv",
        "--pdeathsig=KILL",  # however the tests end, the machine does not outlive them
        "systemd-nspawn",
        f"--directory={rootfs}",
        "--boot",
        "--volatile=overlay",
        f"--machine={name}",
        *registration,
        "--notify-ready=yes",
        "--console=pipe",
        "--link-journal=no",
        f"--bind-ro={wheelhouse}:/srv/wheels",
        f"--bind-ro={REPOSITORY / 'systemd'}:/srv/units",
    ]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, log.open("wb") as out:
        ready.bind(str(home / "notify"))
        ready.settimeout(90)
        environment = os.environ | {"NOTIFY_SOCKET": str(home / "notify")}
        nspawn = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
        )
        try:
            leader = 0
            while (message := ready.recv(4096).decode()) and "READY=1" not in message:
                for line in message.splitlines():
                    if line.startswith("X_NSPAWN_LEADER_PID="):
                        leader = int(line.partition("=")[2])
            machine = Machine(leader)
            machine.run("systemctl", "is-system-running", "--wait")
            yield machine
            os.kill(leader, signal.SIGRTMIN + 4)  # power off
            nspawn.wait(60)
        finally:
            nspawn.kill()
            nspawn.wait(10)
            shutil.rmtree(home)
            remove_cgroups(cgroups)


@pytest.fixture(scope="module")
def machine(debian_rootfs: Path, wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Machine]:
    """A booted machine with nodeagent and its units installed as the README says, and nothing started."""
    assert os.geteuid() == 0, "systemd-nspawn needs root: sudo make test"
    assert shutil.which("systemd-nspawn"), "systemd-nspawn is missing: scripts/debian-packages systemd-container"
    with booted(debian_rootfs, wheelhouse, tmp_path_factory.mktemp("machine") / "console") as machine:
        machine.run("sh", "-ec", INSTALL)
        yield machine


@pytest.fixture(autouse=True)
def _journal(machine: Machine, request: pytest.FixtureRequest) -> Generator[None]:
    """What the units logged stands beside a test's failure."""
    yield
    request.node.add_report_section("teardown", "journal", machine.journal())


@pytest.fixture(scope="module")
def batch(machine: Machine) -> Generator[Sdk]:
    """Start both units as docs/systemd.md says, make the pool, and give the SDK's client."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    machine.write("/etc/nodeagent/nodeagent.toml", SETTINGS.format(port=port, account=ACCOUNT, key=KEY))
    machine.run("systemctl", "enable", "--now", SERVICE)
    eventually(lambda: listens(port), bool)
    with BatchClient(f"http://127.0.0.1:{port}", AzureNamedKeyCredential(ACCOUNT, KEY)) as client:
        client.create_pool(models.BatchPoolCreateOptions(id=POOL, vm_size="standard_d2_v2"))
        machine.run("install", "-m", "0600", "/var/lib/nodeagent-service/node.key", "/etc/nodeagent/node.key")
        machine.run("systemctl", "enable", "--now", AGENT)
        yield client


def listens(port: int) -> bool:
    """Whether somebody listens on a port of loopback."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def started(batch: Sdk, machine: Machine, name: str) -> Process:
    """Submit a long task as a job of that name, wait until it runs, and return its process."""
    batch.create_job(job(name))
    batch.create_task(name, task("long", LONG.format(name=name)))
    eventually(lambda: batch.get_task(name, "long").state, lambda state: state == models.BatchTaskState.RUNNING)
    stdout = f"/var/lib/nodeagent/tasks/workitems/{name}/job-1/long/stdout.txt"
    return machine.process(int(eventually(lambda: machine.read(stdout), bool)))


def finish(batch: Sdk, machine: Machine, name: str) -> Sdk:
    """Let the long task end, and return it as the service knows it then."""
    machine.run("touch", f"/run/finish-{name}")
    return completed(batch, name, "long")


def test_systemd_has_nothing_to_say_about_the_units(machine: Machine) -> None:
    """No unknown key, no missing program: `systemd-analyze verify` is silent."""
    units = [f"/etc/systemd/system/{name}" for name in (AGENT, SERVICE)]
    assert machine.run("systemd-analyze", "verify", "--man=no", *units) == ""


def test_agent_unit_is_ready_when_systemctl_start_returns(batch: Sdk, machine: Machine) -> None:
    """`Type=notify`: the node is registered by then, and the unit is up as long as its process."""
    assert machine.unit(AGENT, "ActiveState") == "active"
    assert [node.id for node in batch.list_nodes(POOL)] == ["booted"]


def test_restart_of_the_unit_leaves_tasks_running(batch: Sdk, machine: Machine) -> None:
    """The same process goes on under a new agent, and its exit code arrives."""
    process = started(batch, machine, "restart")
    before = machine.unit(AGENT, "MainPID")
    machine.run("systemctl", "restart", AGENT)
    assert machine.unit(AGENT, "MainPID") not in (before, "0")
    assert machine.process(process.pid) == process
    assert batch.get_task("restart", "long").state == models.BatchTaskState.RUNNING
    ended = finish(batch, machine, "restart")
    assert (ended.execution_info.exit_code, ended.execution_info.retry_count) == (TRUE_CODE, 0)
    assert ended.execution_info.requeue_count == 0


def test_killed_agent_is_started_again_and_leaves_tasks_running(batch: Sdk, machine: Machine) -> None:
    """`kill -9` of the main process: systemd starts another one, which adopts the task."""
    process = started(batch, machine, "killed")
    before = machine.unit(AGENT, "MainPID")
    machine.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", AGENT)
    eventually(
        lambda: (machine.unit(AGENT, "ActiveState"), machine.unit(AGENT, "MainPID")),
        lambda unit: unit[0] == "active" and unit[1] not in (before, "0"),
    )
    assert machine.process(process.pid) == process
    ended = finish(batch, machine, "killed")
    assert (ended.execution_info.exit_code, ended.execution_info.retry_count) == (TRUE_CODE, 0)
    assert ended.execution_info.requeue_count == 0


def test_task_that_ends_while_the_unit_is_stopped_keeps_its_exit_code(batch: Sdk, machine: Machine) -> None:
    """Stopping the agent is no drain: the task runs to its end without it, and the next agent tells how it was."""
    process = started(batch, machine, "stopped")
    machine.run("systemctl", "stop", AGENT)
    assert machine.process(process.pid) == process
    machine.run("touch", "/run/finish-stopped")
    eventually(lambda: machine.exists(f"/proc/{process.pid}"), lambda exists: not exists)
    machine.run("systemctl", "start", AGENT)
    ended = completed(batch, "stopped", "long")
    assert (ended.execution_info.exit_code, ended.execution_info.retry_count) == (TRUE_CODE, 0)


def test_agent_unit_lives_in_a_delegated_cgroup_and_tasks_below_it(batch: Sdk, machine: Machine) -> None:
    """What `Delegate=yes` is for: the boundary of a task is a cgroup of its own, below the unit's."""
    process = started(batch, machine, "cgroup")
    unit = machine.unit(AGENT, "ControlGroup")
    own = machine.run("cat", f"/proc/{process.pid}/cgroup").splitlines()[-1].removeprefix("0::")
    assert own.startswith(f"{unit}/")
    hierarchy = "/sys/fs/cgroup/unified" if machine.exists("/sys/fs/cgroup/unified") else "/sys/fs/cgroup"
    assert machine.run("head", "-1", f"{hierarchy}{own}/cgroup.procs").strip() == str(process.pid)
    assert finish(batch, machine, "cgroup").execution_info.exit_code == TRUE_CODE


def test_service_unit_runs_as_a_user_without_rights(batch: Sdk, machine: Machine) -> None:
    """It has no need of root, and the key in the settings file reaches it all the same."""
    status = machine.read(f"/proc/{machine.unit(SERVICE, 'MainPID')}/status").splitlines()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in status)}
    assert "0" not in fields["Uid"]
    assert fields["CapEff"] == ["0000000000000000"]
