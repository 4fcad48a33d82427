"""The image of the Dockerfile: an agent in a container runs a task of a service outside of it.

Nothing of the machine is used but its programs: an engine of its own, started here by hand, and a base image made of
the tests' base system, so that no registry is asked.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
from azure.batch import BatchClient, models
from azure.core.credentials import AzureNamedKeyCredential

from tests.integration.batch_endpoint import POOL, Sdk, completed, eventually, job, task

REPOSITORY = Path(__file__).parents[2]
NODEAGENT = REPOSITORY / ".venv" / "bin" / "nodeagent"
BASE_IMAGE = "nodeagent-test-base"
IMAGE = "nodeagent-test"
USER = 10001
ACCOUNT = "containertest"
KEY = "Y29udGFpbmVyIGltYWdlIHRlc3Qga2V5"


@contextmanager
def running(
    argv: list[str], log: Path, environment: dict[str, str] | None = None
) -> Generator[subprocess.Popen[bytes]]:
    """Run a program, with its output in `log`; at the end SIGTERM, and SIGKILL if that is not enough."""
    with log.open("wb") as out:
        program = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, env=environment
        )
    try:
        yield program
    finally:
        program.terminate()
        try:
            program.wait(30)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait(10)


@dataclass(frozen=True)
class Engine:
    """A private container engine, reached by its own socket."""

    socket: Path

    def docker(self, *argv: str, stdin: IO[bytes] | None = None) -> str:
        """Run one `docker` command and return what it printed; a failure shows it."""
        done = self._run(*argv, stdin=stdin)
        assert done.returncode == 0, f"docker {argv[0]}: {done.stdout}"
        return done.stdout

    def answers(self) -> bool:
        """Whether the engine serves requests yet."""
        return self._run("version").returncode == 0

    def _run(self, *argv: str, stdin: IO[bytes] | None = None) -> subprocess.CompletedProcess[str]:
        # the builder inside the engine: the other one is a plug-in that not every installation has
        environment = os.environ | {"DOCKER_HOST": f"unix://{self.socket}", "DOCKER_BUILDKIT": "0"}
        return subprocess.run(
            ["docker", *argv],
            env=environment,
            stdin=stdin or subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.fixture(scope="module")
def engine() -> Generator[Engine]:
    """Start dockerd with folders, socket and pid file of its own, without a bridge and without firewall rules."""
    assert os.geteuid() == 0, "dockerd needs root: sudo make test"
    assert shutil.which("dockerd"), "dockerd is missing: scripts/debian-packages docker.io"
    # not pytest's folder: the path of a socket must be short, and images are not worth keeping
    home = Path(tempfile.mkdtemp(prefix="nodeagent-docker-"))
    (home / "daemon.json").write_text("{}")  # instead of the machine's own settings
    argv = [
        "dockerd",
        f"--data-root={home / 'data'}",
        f"--exec-root={home / 'exec'}",
        f"--pidfile={home / 'pid'}",
        f"--config-file={home / 'daemon.json'}",
        f"--host=unix://{home / 'sock'}",
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
    ]
    private = Engine(home / "sock")
    try:
        with running(argv, home / "log") as dockerd:
            eventually(lambda: private.answers() or dockerd.poll() is not None, bool, 60)
            assert dockerd.poll() is None, f"dockerd ended: {(home / 'log').read_text()[-2000:]}"
            yield private
    finally:
        for mount in Path("/proc/self/mounts").read_text().splitlines():
            if mount.split()[1].startswith(f"{home}/"):  # network namespaces: dockerd leaves them mounted
                subprocess.run(["umount", mount.split()[1]], check=True)
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def image(engine: Engine, debian_rootfs: Path, wheelhouse: Path) -> str:
    """Build the image with the repository's Dockerfile, without a network."""
    with subprocess.Popen(["tar", "-C", debian_rootfs, "-c", "."], stdout=subprocess.PIPE) as tar:
        engine.docker("import", "-", BASE_IMAGE, stdin=tar.stdout)
    base = f"--build-arg=BASE={BASE_IMAGE}"
    engine.docker("build", "--network=none", base, f"--tag={IMAGE}", str(REPOSITORY))
    return IMAGE


@dataclass(frozen=True)
class Service:
    """A service on loopback of this machine: its URL, and the file with the key for nodes."""

    url: str
    node_key_file: Path


@pytest.fixture
def service(tmp_path: Path) -> Generator[Service]:
    """Run `nodeagent service`, outside of any container."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    state = tmp_path / "service"
    argv = [str(NODEAGENT), "service", f"--port={port}", f"--account={ACCOUNT}", f"--state-dir={state}"]
    with running(argv, tmp_path / "service.log", os.environ | {"NODEAGENT_SERVICE_KEY": KEY}) as program:
        eventually(lambda: listens(port) or program.poll() is not None, bool)
        assert program.poll() is None, (tmp_path / "service.log").read_text()
        yield Service(f"http://127.0.0.1:{port}", state / "node.key")


def listens(port: int) -> bool:
    """Whether somebody listens on a port of loopback."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def batch(service: Service) -> Generator[Sdk]:
    """Give the SDK's client, with the pool made that the agent will join."""
    with BatchClient(service.url, AzureNamedKeyCredential(ACCOUNT, KEY)) as client:
        client.create_pool(models.BatchPoolCreateOptions(id=POOL, vm_size="standard_d2_v2"))
        yield client


@pytest.fixture
def sidecar(engine: Engine, image: str, service: Service, tmp_path: Path) -> Generator[Callable[[], str]]:
    """Give what runs the agent as docs/container.md says, each time in a new container on the same volume."""
    key = tmp_path / "node.key"
    shutil.copyfile(service.node_key_file, key)
    os.chown(key, USER, USER)
    key.chmod(0o400)
    containers: list[str] = []

    def run() -> str:
        options = ["--detach", "--init", "--network=host", "--volume=nodeagent-state:/var/lib/nodeagent"]
        secret = f"--volume={key}:/run/secrets/node.key:ro"
        arguments = ["--node=sidecar", "--slots=2", "--node-key-file=/run/secrets/node.key"]
        printed = engine.docker("run", *options, secret, image, "agent", f"--service={service.url}", *arguments)
        containers.append(printed.split()[-1])
        return containers[-1]

    yield run
    for container in containers:
        engine.docker("rm", "--force", container)
    engine.docker("volume", "rm", "nodeagent-state")


def ran(batch: Sdk, engine: Engine, container: str, name: str) -> tuple[Sdk, list[str]]:
    """Run a task that tells where it is; return it with the lines of its output, read through REST."""
    batch.create_task("sidecar", task(name, "id -u; ls -d /opt/nodeagent; exit 3"))
    try:
        ended = completed(batch, "sidecar", name)
    finally:
        sys.stdout.write(engine.docker("logs", container))  # beside a failure
    return ended, b"".join(batch.download_task_file("sidecar", name, "stdout.txt")).decode().splitlines()


def test_task_runs_in_the_container_and_its_output_is_read_through_rest(
    engine: Engine, sidecar: Callable[[], str], batch: Sdk
) -> None:
    """The agent is an ordinary user, and what the task prints is true only inside of the container."""
    batch.create_job(job("sidecar"))
    ended, output = ran(batch, engine, sidecar(), "first")
    assert (ended.execution_info.exit_code, ended.node_info.node_id) == (3, "sidecar")
    assert output == [str(USER), "/opt/nodeagent"]


def test_a_new_container_on_the_volume_of_the_old_one_is_the_same_node(
    engine: Engine, sidecar: Callable[[], str], batch: Sdk
) -> None:
    """An upgrade: the old container stops when it is told to, and the new one goes on as its node."""
    batch.create_job(job("sidecar"))
    old = sidecar()
    ran(batch, engine, old, "before")
    engine.docker("stop", "--time=30", old)
    assert engine.docker("inspect", "--format={{.State.ExitCode}}", old).strip() == "0"
    ended, _ = ran(batch, engine, sidecar(), "after")
    assert (ended.execution_info.exit_code, ended.node_info.node_id) == (3, "sidecar")
    assert [node.id for node in batch.list_nodes(POOL)] == ["sidecar"]
    kept = b"".join(batch.download_task_file("sidecar", "before", "stdout.txt"))
    assert kept.decode().splitlines() == [str(USER), "/opt/nodeagent"]
