"""Files in an attempt's life: they come before the command and go after it, a stop cuts both short, the clock runs."""

import asyncio
import hashlib
import io
import os
import stat
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from shutil import rmtree

import pytest

from nodeagent.agent.daemon import run_agent
from nodeagent.agent.testing import ScriptedService, agent_settings, task
from nodeagent.model.protocol import (
    ApplicationPackage,
    AttemptKind,
    Outcome,
    RemoveFiles,
    StopAttempt,
    StopReason,
    TransferPhase,
)
from nodeagent.transfer.base import Place
from nodeagent.transfer.resource_files import ResourceFiles
from tests.integration.azurite import Container
from tests.integration.faulty_server import Asked, Reply, faulty_server

pytest_plugins = ["tests.integration.storage_fixtures"]


@dataclass(frozen=True)
class Node:
    """A registered agent, and where its things are."""

    service: ScriptedService
    folder: Path

    def job(self, name: str = "job") -> Path:
        """The directory of a job."""
        return self.folder / "root" / "workitems" / name / "job-1"

    async def outcome(self, attempt_id: str) -> Outcome:
        """How an attempt ended."""
        outcome = (await self.service.terminal(attempt_id)).outcome
        assert outcome is not None
        return outcome

    def output(self, task_id: str) -> str:
        """What a task printed."""
        return (self.job() / task_id / "stdout.txt").read_text()


@asynccontextmanager
async def running_node(folder: Path, **settings: object) -> AsyncIterator[Node]:
    """A scripted service with one agent below `folder`."""
    async with ScriptedService() as service, living_agent(folder, service, **settings):
        yield Node(service, folder)


@asynccontextmanager
async def living_agent(folder: Path, service: ScriptedService, **settings: object) -> AsyncIterator[None]:
    """One life of an agent."""
    stop = asyncio.Event()
    given = {"cache_bytes": 64 << 20} | settings
    running = asyncio.create_task(run_agent(agent_settings(folder, service.url, **given), stop))
    await service.registered()
    yield
    assert not running.done()
    stop.set()
    assert await running == 0


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node with settings as they are."""
    async with running_node(tmp_path) as made:
        yield made


def code(outcome: Outcome) -> str | None:
    """The failure's code."""
    return None if outcome.failure_info is None else outcome.failure_info.code


def details(outcome: Outcome) -> dict[str, str]:
    """The failure's details."""
    return (
        {} if outcome.failure_info is None else {item.name: item.value or "" for item in outcome.failure_info.details}
    )


def output_file(pattern: str, container: Container, path: str, **options: str) -> dict[str, object]:
    """An output file that goes to a container."""
    target = {"container_url": container.url_with_sas("racwl"), "path": path}
    return {"file_pattern": pattern, "destination": {"container": target}, "upload_options": options}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nothing announces."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0.01)


class Held:
    """A server whose answers wait for the test; then they are the content."""

    def __init__(self, content: bytes = b"the content") -> None:
        self.content = content
        self.asked = asyncio.Event()
        self.let_go = asyncio.Event()

    async def answer(self, asked: Asked, reply: Reply) -> None:
        """Send half of it, and the rest when the test says so."""
        start, end = asked.range(len(self.content)) if "range" in asked.headers else (0, len(self.content))
        part = self.content[start:end]
        span = {"Content_Range": f"bytes {start}-{end - 1}/{len(self.content)}"} if "range" in asked.headers else {}
        await reply.head(206 if span else 200, Content_Length=str(len(part)), ETag='"one"', **span)
        await reply.body(part[: len(part) // 2])
        self.asked.set()
        await self.let_go.wait()
        await reply.body(part[len(part) // 2 :])


KINDS = [AttemptKind.USER, AttemptKind.JOB_MANAGER, AttemptKind.JOB_PREPARATION, AttemptKind.JOB_RELEASE]


@pytest.mark.parametrize("kind", KINDS)
async def test_resource_files_are_there_before_the_command(node: Node, container: Container, kind: AttemptKind) -> None:
    """For every kind of task: one file, a container with a prefix, a mode; half a file never has its name."""
    container.put("a.txt", b"one file")
    container.put("data/x/1", b"1")
    container.put("data/y", b"22")
    files = (
        {"http_url": container.blob_url("a.txt"), "file_path": "in/a", "file_mode": "0640"},
        {"storage_container_url": container.url_with_sas("rl"), "blob_prefix": "data/", "file_path": "all"},
    )
    command = "/bin/sh -c 'cat in/a all/data/x/1 all/data/y; stat -c %a in/a all/data/y'"
    node.service.send(task("a1", command, kind=kind, task_id="t", work={"resource_files": files}))

    assert (await node.outcome("a1")).exit_code == 0
    assert node.output("t") == "one file122640\n770\n"


async def test_a_file_that_cannot_be_brought_fails_the_task_without_an_exit_code(
    node: Node, container: Container
) -> None:
    """The command never runs; nothing of the SAS is told. The next attempt has a directory of its own."""
    container.put("there", b"x")
    files = (
        {"http_url": container.blob_url("there"), "file_path": "there"},
        {"http_url": container.blob_url("missing"), "file_path": "missing"},
    )
    node.service.send(task("a1", "/bin/true", task_id="t", work={"resource_files": files}))
    outcome = await node.outcome("a1")

    assert (outcome.exit_code, code(outcome)) == (None, "BlobNotFound")
    assert details(outcome)["FilePath"] == "missing"
    assert "sig=" not in outcome.to_json()
    assert not (node.job() / "t" / "stdout.txt").exists()

    node.service.send(task("a2", "/bin/sh -c 'ls; echo ran'", task_id="t", work={"resource_files": files[:1]}))
    assert (await node.outcome("a2")).exit_code == 0
    assert node.output("t") == "there\nran\n"


async def test_a_stop_ends_a_download_at_once(node: Node) -> None:
    """Whoever asks for it; and no half file lies anywhere afterwards."""
    held = Held()
    async with faulty_server(held.answer) as server:
        file = {"http_url": server.url(), "file_path": "f"}
        node.service.send(task("a1", "/bin/true", task_id="t", work={"resource_files": (file,)}))
        await held.asked.wait()
        node.service.send(StopAttempt(attempt_id="a1", reason=StopReason.JOB_TERMINATE))
        outcome = await node.outcome("a1")

    assert (outcome.exit_code, code(outcome), outcome.stop_reason) == (None, "TaskEnded", StopReason.JOB_TERMINATE)
    assert list((node.job() / "t" / "wd").iterdir()) == []
    await until(lambda: not list((node.folder / "root" / "volatile" / "staging").iterdir()))


async def test_the_wall_clock_runs_while_files_come(node: Node) -> None:
    """Spec/node.md §9: it counts from the start of the downloads, and ends them."""
    held = Held()
    async with faulty_server(held.answer) as server:
        file = {"http_url": server.url(), "file_path": "f"}
        limit = timedelta(seconds=0.5)
        node.service.send(task("a1", "/bin/true", work={"resource_files": (file,)}, max_wall_clock_time=limit))
        outcome = await node.outcome("a1")

    assert held.asked.is_set()
    assert (outcome.exit_code, code(outcome), outcome.stop_reason) == (None, "TaskEnded", StopReason.WALL_CLOCK)
    assert details(outcome)["Limit"] == "maxWallClockTime PT0.5S"


async def test_the_service_is_told_how_far_a_download_is_and_that_it_is_over(node: Node) -> None:
    """At most once a second, and once with nothing in it."""
    held = Held(b"x" * 4_000_000)
    async with faulty_server(held.answer) as server:
        file = {"http_url": server.url(), "file_path": "f"}
        node.service.send(task("a1", "/bin/true", work={"resource_files": (file,)}))
        await node.service.until(lambda: bool(node.service.progress), "progress")
        (told,) = node.service.progress[0].transfers
        held.let_go.set()
        await node.outcome("a1")
    await node.service.until(lambda: not node.service.progress[-1].transfers, "the end of the transfers")

    assert (told.attempt_id, told.phase, told.files_done, told.files_total) == ("a1", TransferPhase.DOWNLOADING, 0, 1)
    assert 0 < told.bytes_done < 4_000_000


async def test_a_service_that_takes_no_progress_costs_nothing(node: Node) -> None:
    """One of a former version, or one that is busy."""
    node.service.refuse("progress", 404, "NotFound")
    node.service.refuse("progress", 503, "Busy")
    held = Held()
    async with faulty_server(held.answer) as server:
        file = {"http_url": server.url(), "file_path": "f"}
        node.service.send(task("a1", "/bin/true", work={"resource_files": (file,)}))
        await node.service.until(lambda: not node.service._refusals["progress"][1:], "a call")
        held.let_go.set()
        assert (await node.outcome("a1")).exit_code == 0


async def test_output_files_go_before_the_end_is_told(node: Node, container: Container) -> None:
    """Logs and files, by condition; the end of the logs comes with the report."""
    files = (
        output_file("../std*.txt", container, "logs"),
        output_file("out/**/*", container, "out", upload_condition="taskSuccess"),
        output_file("out/b", container, "failed", upload_condition="taskFailure"),
    )
    command = "/bin/sh -c 'mkdir -p out/a; echo 1 > out/a/x; echo 2 > out/b; echo said'"
    node.service.send(task("a1", command, work={"output_files": files}))
    outcome = await node.outcome("a1")

    assert (outcome.exit_code, outcome.failure_info) == (0, None)
    assert container.names() == ["logs/stderr.txt", "logs/stdout.txt", "out/a/x", "out/b"]
    assert container.content("logs/stdout.txt") == b"said\n"
    (log,) = (await node.service.terminal("a1")).logs
    assert (log.name, log.tail) == ("stdout.txt", b"said\n")


async def test_an_upload_that_fails_fails_the_task_and_keeps_its_exit_code(node: Node, container: Container) -> None:
    """FileUploadContainerNotFound, and no SAS in it."""
    container.client.delete_container()
    node.service.send(task("a1", "/bin/true", work={"output_files": (output_file("../stdout.txt", container, "x"),)}))
    outcome = await node.outcome("a1")

    assert (outcome.exit_code, code(outcome)) == (0, "FileUploadContainerNotFound")
    assert "sig=" not in outcome.to_json()


@pytest.mark.parametrize("reason", [StopReason.USER_TERMINATE, StopReason.JOB_DISABLE_REQUEUE])
async def test_a_stop_ends_an_upload_at_once(node: Node, reason: StopReason) -> None:
    """The exit code is told, and that the uploads were cut short."""
    asked = asyncio.Event()

    async def hang(_: Asked, __: Reply) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with faulty_server(hang) as server:
        target = {"container": {"container_url": server.url("/c?sig=SECRET"), "path": "p"}}
        rule = {"file_pattern": "../stdout.txt", "destination": target}
        node.service.send(task("a1", "/bin/sh -c 'echo x; exit 3'", work={"output_files": (rule,)}))
        await asked.wait()
        await node.service.running("a1")
        assert len(node.service.reports_of("a1")) == 1
        node.service.send(StopAttempt(attempt_id="a1", reason=reason))
        outcome = await node.outcome("a1")

    assert (outcome.exit_code, code(outcome), outcome.stop_reason) == (3, "TaskEnded", reason)
    assert details(outcome)["Uploads"] == "its uploads were cut short"
    assert "SECRET" not in outcome.to_json()


async def test_a_task_that_the_wall_clock_ended_is_a_failure_to_its_uploads(node: Node, container: Container) -> None:
    """Also one that answers SIGTERM with an exit code of 0 (spec/node.md §5)."""
    files = tuple(
        output_file("../stdout.txt", container, condition, upload_condition=condition)
        for condition in ("taskSuccess", "taskFailure", "taskCompletion")
    )
    command = "/bin/sh -c 'trap \"exit 0\" TERM; echo x; sleep 60 & wait'"
    node.service.send(task("a1", command, work={"output_files": files}, max_wall_clock_time=timedelta(seconds=0.5)))
    outcome = await node.outcome("a1")

    assert (code(outcome), outcome.stop_reason) == ("TaskEnded", StopReason.WALL_CLOCK)
    assert container.names() == ["taskCompletion", "taskFailure"]


async def test_logs_go_while_the_task_runs_where_that_is_asked_for(tmp_path: Path, container: Container) -> None:
    """`live_logs_seconds`; what is in storage grows, and is whole at the end."""
    command = f"/bin/sh -c 'echo first; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo last'"
    async with running_node(tmp_path, live_logs_seconds=1) as node:
        files = (output_file("../stdout.txt", container, "log"),)
        node.service.send(task("a1", command, work={"output_files": files}))
        await until(lambda: container.names() == ["log"])
        assert container.content("log") == b"first\n"
        (tmp_path / "go").touch()
        assert (await node.outcome("a1")).failure_info is None

    assert container.content("log") == b"first\nlast\n"


async def test_a_retried_preparation_gets_its_files_again(node: Node, container: Container) -> None:
    """Every execution begins with a fresh wd (spec/node.md §4)."""
    container.put("f", b"fresh")
    file = {"http_url": container.blob_url("f"), "file_path": "f"}
    marker = "$AZ_BATCH_NODE_SHARED_DIR/once"
    command = f"/bin/sh -c 'cat f; echo spoilt > f; test -e {marker} || {{ touch {marker}; exit 1; }}'"
    node.service.send(
        task("p", command, kind=AttemptKind.JOB_PREPARATION, max_task_retry_count=1, work={"resource_files": (file,)})
    )

    assert (await node.outcome("p")).exit_code == 0
    assert node.output("jobpreparation") == "fresh"
    assert (node.job() / "jobpreparation~1" / "wd" / "f").read_text() == "spoilt\n"


async def test_files_of_a_failed_transfer_are_removed_like_others(node: Node, container: Container) -> None:
    """A directory in which no command ran has an owner all the same."""
    files = ({"http_url": container.blob_url("missing"), "file_path": "missing"},)
    node.service.send(task("a1", "/bin/true", task_id="t", work={"resource_files": files}))
    await node.outcome("a1")
    assert (node.job() / "t").exists()
    node.service.send(RemoveFiles(job_id="job", attempt_ids=("a1",)))

    await until(lambda: not (node.job() / "t").exists())
    assert not (node.folder / "state" / "attempts" / "a1").exists()


async def test_the_next_attempt_waits_until_the_one_before_writes_no_more(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being put in place cannot be cancelled half-way: it must not land in the directory of another attempt."""
    held, let_go, put = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def bring(_: ResourceFiles, __: object, place: Place, ___: object) -> None:
        if held.is_set():
            return
        held.set()
        try:
            await asyncio.Event().wait()
        finally:
            await let_go.wait()
            (place.directory / "late").touch()
            put.set()

    monkeypatch.setattr(ResourceFiles, "bring", bring)
    work = {"resource_files": ({"http_url": "http://127.0.0.1:1/f", "file_path": "f"},)}
    node.service.send(task("a1", "/bin/true", task_id="t", work=work))
    await held.wait()
    node.service.send(StopAttempt(attempt_id="a1", reason=StopReason.JOB_DISABLE_REQUEUE))
    assert (await node.outcome("a1")).stop_reason is StopReason.JOB_DISABLE_REQUEUE
    node.service.send(task("a2", "/bin/ls", task_id="t", work=work))
    await node.service.running("a2")
    assert len(node.service.reports_of("a2")) == 1
    let_go.set()

    assert (await node.outcome("a2")).exit_code == 0
    assert put.is_set()
    assert node.output("t") == ""
    assert (node.job() / "t~1" / "wd" / "late").exists()


def zipped(**files: str) -> tuple[str, bytes]:
    """A zip file, and its digest."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return hashlib.sha256(held.getvalue()).hexdigest(), held.getvalue()


async def test_packages_of_the_pool_are_there_before_any_task_and_in_every_environment(tmp_path: Path) -> None:
    """Installed before the node asks for work; a task's own ones are installed for it."""
    digest, content = zipped(tool="of the pool")
    own_digest, own = zipped(data="of the task")
    async with ScriptedService() as service:
        service.packages = {digest: content, own_digest: own}
        service.pool_packages = (
            ApplicationPackage(application_id="Tool", version="1.0", sha256=digest, size=len(content)),
        )
        package = ApplicationPackage(
            application_id="data", version="2", is_default=True, sha256=own_digest, size=len(own)
        )
        async with living_agent(tmp_path, service):
            node = Node(service, tmp_path)
            command = "/bin/sh -c 'cat $AZ_BATCH_APP_PACKAGE_Tool_1_0/tool $AZ_BATCH_APP_PACKAGE_data/data'"
            service.send(task("a1", command, task_id="t", work={"application_packages": (package,)}))
            assert (await node.outcome("a1")).exit_code == 0
            service.send(task("a2", "/bin/sh -c env", task_id="u"))
            assert (await node.outcome("a2")).exit_code == 0

    assert node.output("t") == "of the poolof the task"
    assert "AZ_BATCH_APP_PACKAGE_TOOL_1_0=" in node.output("u")
    assert "AZ_BATCH_APP_PACKAGE_data" not in node.output("u")


async def test_a_package_of_the_pool_that_cannot_be_installed_is_told_before_work_is_asked_for(tmp_path: Path) -> None:
    """With the error that Batch gives such a node."""
    async with ScriptedService(heartbeat_seconds=1000) as service:
        service.pool_packages = (ApplicationPackage(application_id="a", version="1", problem="there is none"),)
        async with living_agent(tmp_path, service):
            await service.until(lambda: bool(service.polls), "a poll")
            beats = [beat.errors for beat in service.heartbeats]
    assert [[error.code for error in errors] for errors in beats][-1] == ["ApplicationPackageError"]


async def test_a_node_that_registers_again_has_the_packages_that_its_pool_refers_to_then(tmp_path: Path) -> None:
    """The pool was made anew, say: what could not be had is told no more, and tasks wait for what is new."""
    digest, content = zipped(tool="new")
    async with ScriptedService(heartbeat_seconds=0.1) as service:
        service.pool_packages = (ApplicationPackage(application_id="a", version="1", problem="there is none"),)
        async with living_agent(tmp_path, service):
            node = Node(service, tmp_path)
            await service.until(lambda: any(beat.errors for beat in service.heartbeats), "the error")
            service.packages = {digest: content}
            service.pool_packages = (
                ApplicationPackage(application_id="Tool", version="1", sha256=digest, size=len(content)),
            )
            service.forget_node()
            service.send(task("a1", "/bin/sh -c 'cat $AZ_BATCH_APP_PACKAGE_Tool_1/tool'", task_id="t"))
            assert (await node.outcome("a1")).exit_code == 0
            seen = len(service.heartbeats)
            await service.until(
                lambda: len(service.heartbeats) > seen and not service.heartbeats[-1].errors, "no error"
            )
    assert node.output("t") == "new"


async def test_an_agent_that_ends_leaves_a_download_to_its_next_life(tmp_path: Path) -> None:
    """The step is simply done again; the start time stays that of the first."""
    held = Held()
    async with ScriptedService() as service, faulty_server(held.answer) as server:
        node = Node(service, tmp_path)
        async with living_agent(tmp_path, service):
            file = {"http_url": server.url(), "file_path": "f"}
            service.send(task("a1", "/bin/cat f", task_id="t", work={"resource_files": (file,)}))
            await held.asked.wait()
        held.let_go.set()
        before = time.monotonic()
        async with living_agent(tmp_path, service):
            assert (await node.outcome("a1")).exit_code == 0
            assert node.output("t") == "the content"
    assert time.monotonic() - before < 20
    assert not (node.job() / "t~1").exists()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may pass: pytest's own is closed to users."""
    folder = Path(tempfile.mkdtemp(prefix="transfers-"))
    folder.chmod(0o755)
    yield folder
    rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")
async def test_files_belong_to_the_user_of_the_task(open_folder: Path, container: Container) -> None:
    """Owner, group and mode as Batch sets them; its output is read with that user's permissions."""
    async with running_node(open_folder, accounts="uids", uid_range=(60820, 60830)) as node:
        container.put("f", b"x")
        work = {
            "resource_files": ({"http_url": container.blob_url("f"), "file_path": "sub/f"},),
            "output_files": (output_file("*", container, "out"), output_file("/etc/shadow", container, "stolen")),
        }
        command = "/bin/sh -c 'echo y > made; ln -s /etc/shadow link; stat -c %u:%a sub sub/f; id -u'"
        node.service.send(task("a1", command, task_id="t", work=work))
        outcome = await node.outcome("a1")
        sub, file, uid = node.output("t").split()
        assert sub.split(":")[0] == file.split(":")[0] == uid != "0"
        assert stat.S_IMODE(int(file.split(":")[1], 8)) == 0o770
        assert container.names() == ["f", "out/made"]
        assert (outcome.exit_code, code(outcome)) == (0, "FileUploadMiscError")
