"""A task may put anything into its directory: nothing makes the file server hang, fail, or show what is outside."""

import asyncio
import json
import os
import random
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from time import monotonic
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yarl import URL

from nodeagent.agent import safe_paths, trees
from nodeagent.agent.directories import Directories
from nodeagent.agent.file_server import FileServer
from nodeagent.agent.safe_paths import NotThereError, TooManyError
from nodeagent.rules.layout import NodeLayout

SECRET = b"the secret outside"


@pytest.fixture
def layout(tmp_path: Path) -> NodeLayout:
    """A node root with a task's directory, and a secret beside it."""
    found = NodeLayout(tmp_path / "root")
    Directories(found).make_node()
    found.task("job", "t").wd.mkdir(parents=True)
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(SECRET)
    return found


@pytest.fixture
def wd(layout: NodeLayout) -> Path:
    """The working directory of the task."""
    return layout.task("job", "t").wd


class Client:
    """Requests for what is in a task's directory; paths are bytes."""

    BASE = b"workitems/job/job-1/t/wd/"

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(self, method: str, what: str, path: bytes, **more: str) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body and headers, within five seconds."""
        query = "".join(f"&{name}={value}" for name, value in more.items())
        url = URL(f"{self._url}/v1/{what}?path={quote_from_bytes(self.BASE + path)}{query}", encoded=True)
        async with asyncio.timeout(5), self._session.request(method, url) as response:
            return response.status, await response.read(), response.headers

    async def names(self, path: bytes = b"", *, recursive: bool = False) -> list[bytes]:
        """The names that a listing has, as bytes."""
        status, body, _ = await self.ask("GET", "list", path, recursive=str(recursive).lower())
        assert status == 200
        return [_bytes_of(entry) for entry in json.loads(body)["value"]]


def _bytes_of(entry: Mapping[str, Any]) -> bytes:
    return unquote_to_bytes(entry["encodedName"]) if "encodedName" in entry else entry["name"].encode()


@pytest.fixture
async def client(layout: NodeLayout) -> AsyncIterator[Client]:
    """A client of a running file server."""
    async with FileServer(layout, "127.0.0.1", 0).serving() as address:
        headers = {"Authorization": f"Bearer {address.token}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            yield Client(session, address.url)


NAMES = [
    b"\xff\xfe not utf-8",
    b"half \xc3",
    "é".encode(),
    "e\u0301".encode(),
    "日本語 🎉".encode(),
    b"new\nline",
    b"\x01\x1b[31m",
    b"a b+c&d=e;f",
    b"%41%2e%2e",
    b"quote\"'`$(x)",
    b"back\\slash",
    b"-rf",
    b"...",
    b".. ",
    b"#?",
    b"x" * 255,
    b"\x7f",
    "\u202egpj.exe".encode(),
    b"nul",
]


@pytest.mark.parametrize("name", NAMES)
async def test_a_file_of_any_name_is_listed_read_and_deleted(name: bytes, client: Client, wd: Path) -> None:
    """Any bytes but NUL and the slash are a name; what is shown of it is text, and what opens it are the bytes."""
    (wd / os.fsdecode(name)).write_bytes(b"content")
    (wd / "other").write_bytes(b"")

    assert sorted(await client.names()) == sorted([name, b"other"])
    assert (await client.ask("GET", "file", name))[1] == b"content"
    assert (await client.ask("HEAD", "file", name))[2]["Content-Length"] == "7"
    assert (await client.ask("DELETE", "file", name))[0] == 200
    assert await client.names() == [b"other"]


async def test_a_directory_of_any_name_is_gone_through(client: Client, wd: Path) -> None:
    """The names of what is below it have all its bytes."""
    (wd / os.fsdecode(b"d\xff") / os.fsdecode(b"\xfe")).mkdir(parents=True)
    (wd / os.fsdecode(b"d\xff/\xfe/f\xfd")).write_bytes(b"x")

    assert await client.names(recursive=True) == [b"d\xff", b"d\xff/\xfe", b"d\xff/\xfe/f\xfd"]
    assert await client.names(b"d\xff/\xfe") == [b"f\xfd"]
    _, body, _ = await client.ask("GET", "list", b"")
    assert json.loads(body)["value"][0]["name"] == "d\ufffd"


@given(name=st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_come_back_as_they_were(name: bytes, tmp_path: Path) -> None:
    """Through a listing of the real file system."""
    folder = tmp_path / "any"
    folder.mkdir(exist_ok=True)
    if name in (b".", b".."):
        return
    path = folder / os.fsdecode(name)
    path.write_bytes(name)
    try:
        (entry,) = safe_paths.listing(folder, "", recursive=True)
        assert os.fsencode(entry.name) == name
        handle, found = safe_paths.open_file(folder, entry.name)
        with os.fdopen(handle, "rb") as file:
            assert file.read() == name
        assert found.st_size == len(name)
    finally:
        path.unlink()


def _sockets(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


TRICKS: dict[str, Callable[[Path], None]] = {
    "link to a file": lambda path: path.symlink_to("../../../../../../secret"),
    "link to a directory": lambda path: path.symlink_to("../../../../../../outside"),
    "absolute link": lambda path: path.symlink_to("/etc/passwd"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path),
    "link to the parent": lambda path: path.symlink_to(".."),
    "handles of a process": lambda path: path.symlink_to("/proc/self/fd"),
    "one handle": lambda path: path.symlink_to("/proc/self/fd/0"),
    "root of init": lambda path: path.symlink_to("/proc/1/root"),
    "directory of the agent": lambda path: path.symlink_to("/proc/self/cwd"),
    "memory": lambda path: path.symlink_to("/proc/self/mem"),
    "pipe": os.mkfifo,
    "socket": _sockets,
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
    "block device": lambda path: os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(7, 250)),
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("depth", [0, 2])
async def test_what_is_no_file_is_not_there(trick: str, depth: int, client: Client, wd: Path, tmp_path: Path) -> None:
    """Not listed, not read, not described, nothing behind it; but it can be deleted, and only it."""
    below = wd.joinpath(*["sub"] * depth)
    below.mkdir(parents=True, exist_ok=True)
    try:
        TRICKS[trick](below / "trick")
    except PermissionError:
        pytest.skip("making a device needs root")
    path = b"sub/" * depth + b"trick"

    assert path not in await client.names(recursive=True)
    for what in (path, path + b"/", path + b"/secret", path + b"/0", path + b"/etc/passwd", path + b"/../trick"):
        for method in ("GET", "HEAD"):
            status, body, _ = await client.ask(method, "file", what)
            assert status == 404
            assert SECRET not in body
        assert (await client.ask("GET", "list", what))[0] == 404
        assert (await client.ask("DELETE", "file", path + b"/secret"))[0] == 404
    assert (await client.ask("DELETE", "file", path, recursive="true"))[0] == 200
    assert below / "trick" not in set(below.iterdir())
    assert (tmp_path / "outside" / "secret").exists()
    assert (tmp_path / "secret").exists()


async def test_a_link_in_place_of_any_directory_above_leads_nowhere(
    client: Client, layout: NodeLayout, tmp_path: Path
) -> None:
    """At every level of the tree."""
    for level in ("workitems", "workitems/job", "workitems/job/job-1", "workitems/job/job-1/t"):
        moved = tmp_path / "moved"
        (layout.root / level).rename(moved)
        (layout.root / level).symlink_to(moved)
        (moved / "x").write_bytes(SECRET)
        assert (await client.ask("GET", "list", b""))[0] == 404
        (layout.root / level).unlink()
        (moved / "x").unlink()
        moved.rename(layout.root / level)


async def test_fifty_thousand_files_are_listed_and_the_loop_goes_on(client: Client, wd: Path) -> None:
    """In seconds, with heartbeats in between."""
    for number in range(50_000):
        os.close(os.open(wd / f"f{number}", os.O_CREAT | os.O_WRONLY))
    longest, ends = 0.0, False

    async def beat() -> None:
        nonlocal longest
        last = monotonic()
        while not ends:
            await asyncio.sleep(0.005)
            longest, last = max(longest, monotonic() - last), monotonic()

    beating = asyncio.create_task(beat())
    began = monotonic()
    status, body, _ = await client.ask("GET", "list", b"")
    seconds = monotonic() - began
    ends = True
    await beating
    assert status == 200
    assert body.count(b'"isDirectory"') == 50_000
    assert seconds < 5
    assert longest < 1


def test_more_entries_than_fit_are_refused_with_a_way_out(
    wd: Path, layout: NodeLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of the agent is bounded; no handle is left open."""
    for number in range(20):
        (wd / f"d{number % 5}").mkdir(exist_ok=True)
        (wd / f"d{number % 5}" / f"f{number}").touch()
    monkeypatch.setattr(safe_paths, "MOST_ENTRIES", 10)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count

    with pytest.raises(TooManyError):
        safe_paths.listing(layout.root, "workitems/job/job-1/t/wd", recursive=True)

    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above
    assert len(safe_paths.listing(layout.root, "workitems/job/job-1/t/wd", recursive=False)) == 5


def test_a_tree_deeper_than_any_path_is_listed_in_time(tmp_path: Path) -> None:
    """Down to where a path is too long for anybody; with one handle, and in one walk."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    began = monotonic()

    found = safe_paths.listing(tmp_path, "", recursive=True)

    assert len(found) == safe_paths.LONGEST_PATH // 2 + 1
    assert monotonic() - began < 5
    rmtree_deep(tmp_path)


def rmtree_deep(folder: Path) -> None:
    """Remove what is too deep for rmtree."""
    handle = os.open(folder, os.O_RDONLY)
    trees.empty_bin(handle)
    os.close(handle)


async def test_a_file_that_grows_is_served_as_it_was_and_one_that_shrinks_ends_short(client: Client, wd: Path) -> None:
    """Content-Length is a promise; a reader notices when it cannot be kept. A deleted file comes whole."""
    file = wd / "f"
    size = 64 << 20
    with file.open("wb") as made:
        made.truncate(size)

    async def read(change: Callable[[], object]) -> int:
        url = URL(f"{client._url}/v1/file?path={quote_from_bytes(Client.BASE)}f", encoded=True)
        async with client._session.get(url) as response:
            got = len(await response.content.readexactly(1000))
            change()
            with suppress(aiohttp.ClientPayloadError):
                async for chunk in response.content.iter_chunked(1 << 20):
                    got += len(chunk)
            return got

    async with asyncio.timeout(20):
        assert await read(lambda: os.truncate(file, 2 * size)) == size
        os.truncate(file, size)
        assert await read(lambda: os.truncate(file, 0)) < size
        os.truncate(file, size)
        assert await read(file.unlink) == size


def test_names_that_change_while_they_are_looked_at_never_lead_out(tmp_path: Path) -> None:
    """A task swaps directories for links and moves them about as fast as it can."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "a" / "b" / "c", root / "x", outside / "b" / "c"):
        folder.mkdir(parents=True)
    (root / "a" / "b" / "c" / "f").write_bytes(b"inside")
    (outside / "b" / "c" / "f").write_bytes(SECRET)
    (outside / "b" / "found").write_bytes(SECRET)
    ends = threading.Event()

    def swap() -> None:
        rng = random.Random(1)  # noqa: S311 - no secret
        while not ends.is_set():
            with suppress(OSError):
                match rng.randrange(3):
                    case 0:
                        (root / "a").rename(root / "aside")
                        (root / "a").symlink_to(outside)
                    case 1:
                        (root / "a" / "b").rename(root / "x" / "b")
                        (root / "a" / "b").symlink_to(outside / "b")
                    case _:
                        (root / "a" / "b" / "c").rename(root / "x" / "c")
            for name in ("a", "a/b"):
                if (root / name).is_symlink():
                    (root / name).unlink(missing_ok=True)
            with suppress(OSError):
                (root / "aside").rename(root / "a")
            with suppress(OSError):
                (root / "x" / "b").rename(root / "a" / "b")
            with suppress(OSError):
                (root / "x" / "c").rename(root / "a" / "b" / "c")

    swapping = threading.Thread(target=swap)
    swapping.start()
    seen = 0
    try:
        ends_at = monotonic() + 2
        while monotonic() < ends_at:
            for entry in safe_paths.listing(root, "", recursive=True):
                assert not entry.name.endswith("found")
                assert entry.found.st_size != len(SECRET)
            with suppress(NotThereError):
                handle, _ = safe_paths.open_file(root, "a/b/c/f")
                assert os.read(handle, 100) == b"inside"
                os.close(handle)
                seen += 1
    finally:
        ends.set()
        swapping.join()
    assert seen > 10
    rmtree(root)
