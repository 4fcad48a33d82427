"""Output files are found and opened with the task user's own permissions, on a real kernel (invariant I9)."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import pytest

from nodeagent.transfer.base import Owner
from nodeagent.transfer.file_walk import open_regular
from nodeagent.transfer.run_as import RunAs, UserThread, open_here
from tests.integration.azurite import Container
from tests.integration.output_files import Task, details, rule

pytest_plugins = ["tests.integration.storage_fixtures"]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can take another user's permissions")

MINE = 60770
OTHERS = 60771
GROUP = 60772


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may pass."""
    path = Path(tempfile.mkdtemp(prefix="task-user-"))
    path.chmod(0o711)
    yield path
    rmtree(path)


@pytest.fixture
def task(folder: Path) -> Task:
    """A directory of the task's user."""
    made = Task(folder / "task")
    for directory in (made.root, made.wd):
        os.chown(directory, MINE, MINE)
        directory.chmod(0o700)
    return made


async def upload(task: Task) -> dict[str, str] | None:
    """Upload as the task's user, return the details of the failure."""
    failure = await task.upload(run_as=RunAs(MINE, MINE, (GROUP,)), log_owner=Owner(MINE, MINE))
    return None if failure is None else details(failure)


async def test_links_open_only_what_the_task_itself_may_open(task: Task, container: Container, folder: Path) -> None:
    """Root's files and another task's directory are refused, by name; what the user may read is uploaded."""
    secret = folder / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    other = folder / "other"
    other.mkdir(0o700)
    (other / "result").write_text("another task's")
    (other / "result").chmod(0o644)
    os.chown(other, OTHERS, OTHERS)
    task.file("mine")
    os.chown(task.wd / "mine", MINE, MINE)
    (task.wd / "mine").chmod(0o600)
    links = {"shadow": Path("/etc/shadow"), "secret": secret, "theirs": other / "result", "dir": other}
    for name, target in links.items():
        (task.wd / name).symlink_to(target)
    url = container.url_with_sas("cw")
    task.rules = [rule("*", url), rule("theirs", url, "x"), rule("dir/result", url), rule(f"{other}/**", url)]
    found = await upload(task)
    assert container.names() == ["mine"]
    assert found is not None
    told = task.log("fileuploaderr.txt")
    for path in (task.wd / "shadow", task.wd / "secret"):
        assert f"{path} -> {container.url}/{path.name}: it cannot be opened: Permission denied" in told
    for path in (task.wd / "theirs", task.wd / "dir/result", other):
        assert f"{path}: Permission denied" in told
    assert found["Failed"] == "6 of 7 files"


async def test_supplementary_groups_count(task: Task, container: Container, folder: Path) -> None:
    """A file of a group that the user is in is opened, one of another group is not."""
    for name, group in {"ours": GROUP, "not-ours": OTHERS}.items():
        path = task.file(name, name)
        os.chown(path, 0, group)
        path.chmod(0o040)
    task.rules = [rule("*", container.url_with_sas("cw"))]
    found = await upload(task)
    assert container.names() == ["ours"]
    assert found is not None
    assert found["Failed"] == "1 of 2 files"


async def test_the_agent_itself_is_not_seen_through_proc(task: Task, container: Container, folder: Path) -> None:
    """In /proc `self` is the agent, and its open files have passed doors that are closed to the task."""
    closed = folder / "closed"
    closed.mkdir(0o700)
    readable = closed / "readable"
    readable.write_text("of the agent")
    readable.chmod(0o644)
    with readable.open() as held:
        (task.wd / "held").symlink_to(f"/proc/self/fd/{held.fileno()}")
        (task.wd / "cwd").symlink_to("/proc/self/cwd/pyproject.toml")
        (task.wd / "root").symlink_to("/proc/1/root/etc/passwd")
        (task.wd / "environ").symlink_to("/proc/self/environ")
        url = container.url_with_sas("cw")
        task.rules = [rule("*", url), rule("/proc/self/cwd/*", url), rule("/proc/self/root/etc/passwd", url)]
        found = await upload(task)
    assert container.names() == []
    assert found is not None
    assert "of the agent" not in task.log("fileuploaderr.txt")


async def test_the_logs_belong_to_the_task(task: Task, container: Container) -> None:
    """Its user can read and remove them."""
    task.rules = [rule("nothing", container.url_with_sas("cw"))]
    await upload(task)
    found = (task.root / "fileuploadout.txt").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (MINE, MINE, 0o660)


async def test_only_the_thread_changes_and_it_can_do_nothing_else(task: Task) -> None:
    """The agent keeps its rights; the thread has no capability, and no way back."""

    def credentials() -> dict[str, str]:
        lines = Path("/proc/thread-self/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    before = credentials()
    async with UserThread(RunAs(MINE, OTHERS, (GROUP,))) as user:
        inside = await user.call(credentials)
        with pytest.raises(PermissionError):
            await user.call(lambda: os.chroot("/"))
    assert inside["Uid"].split()[3] == str(MINE)
    assert inside["Gid"].split()[3] == str(OTHERS)
    assert inside["Groups"] == str(GROUP)
    assert all(int(inside[name], 16) == 0 for name in ("CapEff", "CapPrm", "CapInh"))
    after = credentials()
    assert all(after[name] == before[name] for name in ("Uid", "Gid", "Groups", "CapEff", "CapPrm"))


async def test_without_a_user_nothing_is_switched(folder: Path) -> None:
    """As where all tasks run as the agent's own user."""
    async with UserThread(None) as user:
        handle, found = await user.open(lambda: open_regular("/etc/shadow"), lambda opened: os.close(opened[0]))
    os.close(handle)
    assert found.st_size > 0


async def test_files_cannot_be_opened_as_a_user_that_cannot_be_taken(
    task: Task, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing is opened, least of all as root."""
    task.file("a")
    task.rules = [rule("*", container.url_with_sas("cw"))]
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    failure = await task.upload(run_as=RunAs(MINE, MINE))
    assert failure is not None
    assert failure.code == "FileUploadMiscError"
    assert "the files can't be opened as the task's user" in details(failure)["Message"]
    assert container.names() == []


def test_opening_never_waits_and_follows_no_link_of_proc(folder: Path) -> None:
    """A pipe without a writer is open at once; a path with a NUL is none."""
    os.mkfifo(folder / "pipe")
    os.close(open_here(str(folder / "pipe"), os.O_RDONLY))
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        open_here("/proc/self/cwd", os.O_RDONLY)
    with pytest.raises(ValueError, match="null byte"):
        open_here("a\0b", os.O_RDONLY)
    with pytest.raises(OSError, match="it is a named pipe"):
        open_regular(str(folder / "pipe"))
