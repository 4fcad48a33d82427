"""Files below the node root: what the file server shows and what it never opens, deleting, directories, last words."""

import asyncio
import json
import os
import socket
import string
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeagent.agent import safe_paths, trees
from nodeagent.agent.directories import Directories, directory_of
from nodeagent.agent.errors import AddressInUseError, UnwritableError
from nodeagent.agent.file_server import FileServer
from nodeagent.agent.safe_paths import NotThereError
from nodeagent.agent.task_words import error_message, stderr_tail
from nodeagent.rules.layout import NodeLayout, TaskPaths


@pytest.fixture
def layout(tmp_path: Path) -> NodeLayout:
    """A node root with one task in it, and a secret beside it."""
    found = NodeLayout(tmp_path / "root")
    Directories(found).make_node()
    paths = found.task("job", "t")
    paths.wd.mkdir(parents=True)
    paths.stdout.write_bytes(b"0123456789")
    (paths.wd / "a b é.txt").write_text("text")
    (tmp_path / "secret").write_text("secret")
    return found


@pytest.fixture
def task(layout: NodeLayout) -> TaskPaths:
    """The paths of the task."""
    return layout.task("job", "t")


class Client:
    """Requests to a file server."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str) -> None:
        self.url = url
        self._session = session
        self._headers = {"Authorization": f"Bearer {token}"}

    async def ask(self, method: str, what: str, path: str, **more: str) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body and headers."""
        headers = self._headers | ({"Range": more.pop("range")} if "range" in more else {})
        request = self._session.request(method, f"{self.url}/v1/{what}", params={"path": path} | more, headers=headers)
        async with request as response:
            return response.status, await response.read(), response.headers


@pytest.fixture
async def client(layout: NodeLayout) -> AsyncIterator[Client]:
    """A client of a file server over the root."""
    server = FileServer(layout, "127.0.0.1", 0)
    async with server.serving() as address, aiohttp.ClientSession() as session:
        yield Client(session, address.url, address.token)


async def test_a_file_is_served_whole_with_its_properties(client: Client) -> None:
    """Length, type, mode, and when it was changed."""
    status, body, headers = await client.ask("GET", "file", "workitems/job/job-1/t/stdout.txt")

    assert (status, body) == (200, b"0123456789")
    assert headers["Content-Length"] == headers["X-Nodeagent-Total-Size"] == "10"
    assert headers["Content-Type"] == "text/plain"
    assert headers["ocp-batch-file-isdirectory"] == "false"
    assert headers["ocp-batch-file-mode"].startswith("0o100")
    assert headers["Last-Modified"].endswith("GMT")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("bytes=0-3", b"0123"), ("bytes=8-", b"89"), ("bytes=8-99", b"89"), ("bytes=-3", b"789"), ("bytes=9-9", b"9")],
)
async def test_a_range_is_answered_with_200_and_the_slice(client: Client, asked: str, expected: bytes) -> None:
    """Batch never answers 206 (spec/rest.md)."""
    status, body, headers = await client.ask("GET", "file", "workitems/job/job-1/t/stdout.txt", range=asked)

    assert (status, body) == (200, expected)
    assert headers["X-Nodeagent-Total-Size"] == "10"


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=5-4", "bytes=x", "lines=1-2", "bytes=-"])
async def test_a_range_that_cannot_be_is_416(client: Client, asked: str) -> None:
    """Nothing of the file is sent."""
    assert (await client.ask("GET", "file", "workitems/job/job-1/t/stdout.txt", range=asked))[0] == 416


async def test_a_large_file_comes_whole(client: Client, task: TaskPaths) -> None:
    """In chunks, without being held in memory."""
    content = os.urandom(3 * 1024 * 1024 + 7)
    (task.wd / "large").write_bytes(content)

    status, body, _ = await client.ask("GET", "file", "workitems/job/job-1/t/wd/large")

    assert status == 200
    assert body == content


async def test_a_listing_shows_files_and_directories_sorted(client: Client) -> None:
    """Names relative to the directory that was asked for."""
    status, body, _ = await client.ask("GET", "list", "workitems/job/job-1/t", recursive="true")

    assert status == 200
    shown = json.loads(body)["value"]
    assert [(item["name"], item["isDirectory"], item.get("contentLength")) for item in shown] == [
        ("stdout.txt", False, 10),
        ("wd", True, None),
        ("wd/a b é.txt", False, 4),
    ]


async def test_the_head_of_a_directory_says_that_it_is_one(client: Client) -> None:
    """And of a file, its length."""
    status, _, headers = await client.ask("HEAD", "file", "workitems/job/job-1/t/wd")
    assert (status, headers["ocp-batch-file-isdirectory"]) == (200, "true")

    status, _, headers = await client.ask("HEAD", "file", "workitems/job/job-1/t/stdout.txt")
    assert (status, headers["Content-Length"]) == (200, "10")


async def test_a_directory_cannot_be_read_as_a_file(client: Client) -> None:
    """409."""
    assert (await client.ask("GET", "file", "workitems/job/job-1/t/wd"))[0] == 409


@pytest.mark.parametrize(
    "path",
    [
        "nothing", "../secret", "/etc/passwd", "workitems/../../secret", "link", "linked/file", "pipe", "socket",
        "workitems/job/job-1/t/stdout.txt/x", "x\0y", "a" * 300, "workitems/job/job-1/t/loop/loop",
    ],
)  # fmt: skip
async def test_what_is_not_a_file_of_the_node_is_not_there(
    client: Client,
    layout: NodeLayout,
    task: TaskPaths,
    tmp_path: Path,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Links, pipes, sockets and everything outside are 404, whoever made them, and nothing hangs."""
    (layout.root / "link").symlink_to(tmp_path / "secret")
    (layout.root / "linked").symlink_to(task.root)
    (task.root / "file").touch()
    (task.root / "loop").symlink_to(task.root / "loop")
    os.mkfifo(layout.root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(layout.root)  # an address of a socket is short
        listener.bind("socket")

        for method, what in (("GET", "file"), ("HEAD", "file"), ("GET", "list")):
            assert (await client.ask(method, what, path))[0] == 404, (method, what)


async def test_links_and_pipes_are_not_listed(client: Client, layout: NodeLayout, tmp_path: Path) -> None:
    """A listing shows what can be read."""
    (layout.shared / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(layout.shared / "pipe")
    (layout.shared / "file").touch()

    _, body, _ = await client.ask("GET", "list", "shared", recursive="true")

    assert b'"file"' in body
    assert b"link" not in body
    assert b"pipe" not in body


async def test_without_the_token_there_is_nothing(client: Client) -> None:
    """401, also for what is not there."""
    async with aiohttp.ClientSession() as session:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer ü"}):
            async with session.get(f"{client.url}/v1/file", params={"path": "x"}, headers=headers) as response:
                assert response.status == 401


async def test_files_and_trees_can_be_deleted(client: Client, task: TaskPaths, tmp_path: Path) -> None:
    """A directory with something in it only if asked to; a link is deleted, not what it points to."""
    (task.wd / "link").symlink_to(tmp_path / "secret")
    path = "workitems/job/job-1/t"

    assert (await client.ask("DELETE", "file", f"{path}/stdout.txt"))[0] == 200
    assert (await client.ask("DELETE", "file", f"{path}/stdout.txt"))[0] == 404
    assert (await client.ask("DELETE", "file", f"{path}/wd"))[0] == 409
    assert (await client.ask("DELETE", "file", f"{path}/wd", recursive="true"))[0] == 200
    assert not task.wd.exists()
    assert (tmp_path / "secret").exists()
    assert [item.name for item in (task.root.parents[3] / "volatile").iterdir()] == []


@pytest.mark.parametrize("path", ["", "shared", "workitems", ".", "state"])
async def test_the_nodes_own_directories_cannot_be_deleted(client: Client, layout: NodeLayout, path: str) -> None:
    """409."""
    assert (await client.ask("DELETE", "file", path, recursive="true"))[0] == 409
    assert layout.shared.is_dir()


async def test_a_port_that_is_taken_is_told(layout: NodeLayout) -> None:
    """By an error of its own."""
    async with FileServer(layout, "127.0.0.1", 0).serving() as address:
        port = int(address.url.rpartition(":")[2])
        with pytest.raises(AddressInUseError):
            async with FileServer(layout, "127.0.0.1", port).serving():
                pass


@given(path=st.text(st.sampled_from(string.ascii_letters[:2] + "/.\0é~ "), max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_leads_out_of_the_root(tmp_path: Path, path: str) -> None:
    """Whatever is asked for is below the root, or not there."""
    root = tmp_path / "node"
    root.mkdir(exist_ok=True)
    (tmp_path / "a").write_text("outside")
    try:
        found = safe_paths.entry(root, path)
    except NotThereError:
        return
    assert found.found.st_ino == (root / path).stat().st_ino
    assert (root / path).resolve().is_relative_to(root.resolve())


# Deleting.


def emptied(folder: Path) -> list[Path]:
    """Empty a bin, and say what is left."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        trees.empty_bin(handle)
    finally:
        os.close(handle)
    return list(folder.iterdir())


def test_a_bin_is_emptied_without_following_links(tmp_path: Path) -> None:
    """Nested trees, closed directories, pipes, links to files and directories outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    bin_ = tmp_path / "bin"
    deep = bin_ / "tree" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    (deep / "link").symlink_to(outside)
    (bin_ / "tree" / "file-link").symlink_to(outside / "file")
    os.mkfifo(bin_ / "tree" / "pipe")
    deep.parent.chmod(0)

    assert emptied(bin_) == []
    assert (outside / "file").exists()


def test_a_tree_that_is_deeper_than_any_path_is_deleted(tmp_path: Path) -> None:
    """A task may make directories without end; neither the stack nor the number of open files grows with them."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    handle = os.open(bin_, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=handle)
        deeper = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = deeper
    os.close(handle)

    assert emptied(bin_) == []


# The directories of executions.


def test_the_first_execution_makes_its_directory(tmp_path: Path) -> None:
    """And the job's, however deep."""
    directories = Directories(NodeLayout(tmp_path))
    paths = directories.layout.task("schedule:job-3", "t")

    assert directories.make_task(paths)
    assert paths.wd.is_dir()


def test_a_directory_that_was_never_used_is_used(tmp_path: Path) -> None:
    """A life of the agent ended after it was made and before anything was launched."""
    directories = Directories(NodeLayout(tmp_path))
    paths = directories.layout.task("job", "t")
    assert directories.make_task(paths)

    assert directories.make_task(paths)


def test_a_directory_that_was_used_is_kept(tmp_path: Path) -> None:
    """Moved aside under its own number, or the next free one: nothing is overwritten."""
    directories = Directories(NodeLayout(tmp_path))
    paths = directories.layout.task("job", "t")
    for number in (1, 2):
        assert directories.make_task(paths)
        paths.stdout.write_text(str(number))
        assert not directories.make_task(paths)
        directories.move_aside(paths, 1)

    assert (tmp_path / "workitems/job/job-1/t~1/stdout.txt").read_text() == "1"
    assert (tmp_path / "workitems/job/job-1/t~2/stdout.txt").read_text() == "2"


def test_a_job_directory_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    """What is known of it is only a short cut."""
    directories = Directories(NodeLayout(tmp_path))
    paths = directories.layout.task("job", "t")
    directories.make_task(paths)
    paths.wd.rmdir()
    paths.root.rmdir()
    paths.root.parent.rmdir()

    assert directories.make_task(paths)


def test_whose_directory_it_is(tmp_path: Path) -> None:
    """The newest execution that has made one has `<task>`; earlier ones have `<task>~<n>`, if they made one."""
    layout = NodeLayout(tmp_path)
    paths = layout.task("job", "t")
    paths.root.mkdir(parents=True)
    (paths.root.parent / "t~1").mkdir()
    made = {1, 3}.__contains__

    assert directory_of(paths, 1, (2, 3), made) == paths.root.parent / "t~1"
    assert directory_of(paths, 2, (3,), made) is None
    assert directory_of(paths, 3, (), made) == paths.root
    assert directory_of(paths, 3, (4,), made) == paths.root


def test_a_root_that_is_a_file_is_told(tmp_path: Path) -> None:
    """One line with the path."""
    (tmp_path / "root").touch()
    with pytest.raises(UnwritableError, match="root"):
        Directories(NodeLayout(tmp_path / "root")).make_node()


# Last words.


def test_the_tail_of_a_file_is_its_last_four_kibibytes(tmp_path: Path) -> None:
    """As text, whatever is in it."""
    path = tmp_path / "stderr.txt"
    path.write_bytes(b"x" * 10_000 + b"\xff\0end\n")
    found = stderr_tail(path)

    assert found is not None
    assert found.endswith("\ufffd\ufffdend")
    assert len(found) == 4095


async def test_the_tail_of_a_pipe_or_a_link_is_nothing(tmp_path: Path) -> None:
    """A task may have put anything in the place of its stderr: nothing is followed and nothing hangs."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")

    async with asyncio.timeout(5):
        for name in ("link", "pipe", "missing", "."):
            assert await asyncio.to_thread(stderr_tail, tmp_path / name) is None


def test_the_tasks_own_message_is_its_first_two_kibibytes(tmp_path: Path) -> None:
    """A longer one is cut; an empty one, a link and somebody else's file under a second name are none."""
    path = tmp_path / "error.txt"
    assert error_message(path) is None
    path.write_text("  \n")
    assert error_message(path) is None
    path.write_text("m" * 5000)
    assert error_message(path) == "m" * 2048
    (tmp_path / "link").symlink_to(path)
    assert error_message(tmp_path / "link") is None
    (tmp_path / "other").hardlink_to(path)
    assert error_message(path) is None
