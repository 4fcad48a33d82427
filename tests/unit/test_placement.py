"""Files are put in place by handles: whatever names and links say, nothing lands outside, and nothing by halves."""

import asyncio
import ctypes
import errno
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeagent.transfer.base import Owner, Place, TransferFailedError
from nodeagent.transfer.placement import put_in_place

LIBC = ctypes.CDLL(None, use_errno=True)
NASTY_BUT_LEGAL = (
    "plain.txt",
    "-rf",
    "--",
    "two words",
    "new\nline",
    "tab\tand\x1bescape\x7f",
    "quote'double\"back`tick",
    "$HOME",
    "$(touch owned)",
    "; rm -rf ~",
    "back\\slash",
    "..\\..\\windows",
    "%2e%2e%2fpercent",
    "..hidden",
    "...",
    ".dot",
    "~",
    "*",
    "a/b/c/d/e/f",
    "a//double///slash",
    "./here/./there",
    "über/日本語/🦊.txt",
    "e\u0301 combining, not é",
    "\u202eright to left",
    "x" * 255,
    "ü" * 127,
    "/".join(["deep"] * 200),
    "CON",
    "name.",
    "wd",
)
REFUSED = (
    "",
    ".",
    "./",
    "/",
    "//",
    "..",
    "../x",
    "a/../x",
    "a/../../x",
    "wd/../..",
    "a/..",
    "/etc/passwd",
    "//etc/passwd",
    "nul\0byte",
    "a/nul\0/b",
    "trailing/",
    "x" * 256,
    "ü" * 128,
    "d/" * 2100 + "f",
    "half \ud800 pair",
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


class Stage:
    """A place with a staging folder beside it, and a folder outside that must stay as it is."""

    def __init__(self, folder: Path) -> None:
        self.place = Place(folder / "task" / "wd")
        self.place.directory.mkdir(parents=True)
        self.staging = folder / "staging"
        self.staging.mkdir(mode=0o700)
        self.outside = folder / "outside"
        self.outside.mkdir()
        (self.outside / "victim").write_bytes(b"untouched")

    def staged(self, content: bytes = b"content") -> Path:
        """Make a staged file."""
        file = self.staging / os.urandom(8).hex()
        file.write_bytes(content)
        file.chmod(0o600)
        return file

    def assert_nothing_escaped(self) -> None:
        """The staging folder is empty, and outside is what was there."""
        assert list(self.staging.iterdir()) == []
        assert [path.name for path in self.outside.iterdir()] == ["victim"]
        assert (self.outside / "victim").read_bytes() == b"untouched"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A stage of the test's own."""
    return Stage(tmp_path)


async def failure(stage: Stage, path: str, place: Place | None = None) -> tuple[str, dict[str, str | None]]:
    """Code and details of a placement that must fail; the staged file is gone afterwards."""
    with pytest.raises(TransferFailedError) as caught:
        await put_in_place(stage.staged(), place or stage.place, path, 0o770)
    stage.assert_nothing_escaped()
    return caught.value.failure.code, {item.name: item.value for item in caught.value.failure.details}


@pytest.mark.parametrize("path", NASTY_BUT_LEGAL)
async def test_any_legal_name_is_taken_literally(stage: Stage, path: str) -> None:
    """Every name that Linux allows is a name and nothing else."""
    await put_in_place(stage.staged(path.encode()), stage.place, path, 0o640)
    assert (stage.place.directory / path).read_bytes() == path.encode()
    stage.assert_nothing_escaped()


@pytest.mark.parametrize("path", REFUSED)
async def test_what_names_no_file_below_the_place_is_refused(stage: Stage, path: str) -> None:
    """Nothing is made for a path that cannot be, and the failure tells which."""
    code, details = await failure(stage, path)
    assert code == "ResourceFileCreateFailed"
    assert details["Message"]
    assert details.get("FilePath", "") == path
    assert list(stage.place.directory.iterdir()) == []


async def test_owner_and_modes(stage: Stage) -> None:
    """Made directories are 0770 whatever the umask is; the file has its mode without setuid, setgid and sticky."""
    before = os.umask(0o077)
    try:
        await put_in_place(stage.staged(), stage.place, "a/b/run", 0o7755)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((stage.place.directory / path).stat().st_mode) for path in ("a", "a/b", "a/b/run")]
    assert modes == [0o770, 0o770, 0o755]


@needs_root
async def test_files_and_made_directories_belong_to_the_task(stage: Stage) -> None:
    """What was there before keeps its owner and mode."""
    (stage.place.directory / "kept").mkdir(mode=0o750)
    place = Place(stage.place.directory, Owner(60_001, 60_002))
    await put_in_place(stage.staged(), place, "kept/new/file", 0o4750)
    found = {path: (stage.place.directory / path).stat() for path in ("kept", "kept/new", "kept/new/file")}
    assert (found["kept"].st_uid, stat.S_IMODE(found["kept"].st_mode)) == (0, 0o750)
    for path, mode in (("kept/new", 0o770), ("kept/new/file", 0o750)):
        assert (found[path].st_uid, found[path].st_gid, stat.S_IMODE(found[path].st_mode)) == (60_001, 60_002, mode)


@needs_root
async def test_a_directory_that_a_killed_agent_left_closed_is_handed_over(stage: Stage) -> None:
    """Between its making and its handing over it is the agent's alone; the next life finishes it."""
    (stage.place.directory / "a").mkdir(mode=0o700)
    await put_in_place(stage.staged(), Place(stage.place.directory, Owner(60_001, 60_002)), "a/f", 0o770)
    found = (stage.place.directory / "a").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (60_001, 60_002, 0o770)


async def test_a_file_is_replaced_and_a_link_is_not_followed(stage: Stage) -> None:
    """The name gets the new file; what a link pointed to stays as it is."""
    target = stage.place.directory / "f"
    await put_in_place(stage.staged(b"old"), stage.place, "f", 0o770)
    await put_in_place(stage.staged(b"new"), stage.place, "f", 0o770)
    assert target.read_bytes() == b"new"
    target.unlink()
    target.symlink_to(stage.outside / "victim")
    await put_in_place(stage.staged(b"newer"), stage.place, "f", 0o770)
    assert target.read_bytes() == b"newer"
    assert not target.is_symlink()
    stage.assert_nothing_escaped()


@pytest.mark.parametrize("depth", [0, 1, 2])
async def test_a_link_on_the_way_is_refused_at_every_level(stage: Stage, depth: int) -> None:
    """Not even a link that stays below the place is followed."""
    parts = ["a", "b", "c"]
    above = stage.place.directory.joinpath(*parts[:depth])
    above.mkdir(parents=True, exist_ok=True)
    (above / parts[depth]).symlink_to(stage.outside)
    code, details = await failure(stage, "a/b/c/victim")
    assert code == "ResourceDirectoryCreateFailed"
    assert "a file or a link" in (details["Message"] or "")
    assert details["Path"] == f"{stage.place.directory}/a/b/c/victim"


async def test_the_place_itself_must_be_a_directory(stage: Stage) -> None:
    """A task that swaps its wd for a link gains nothing."""
    link = stage.place.directory.parent / "link"
    link.symlink_to(stage.outside)
    assert (await failure(stage, "victim", Place(link)))[0] == "ResourceDirectoryCreateFailed"
    assert (await failure(stage, "victim", Place(link / "missing")))[0] == "ResourceDirectoryCreateFailed"


async def test_a_name_is_a_file_or_a_directory_but_not_both(stage: Stage) -> None:
    """Names that are prefixes of others conflict, in either order; what was there first stays."""
    await put_in_place(stage.staged(b"first"), stage.place, "data", 0o770)
    assert (await failure(stage, "data/part"))[0] == "ResourceDirectoryCreateFailed"
    assert (stage.place.directory / "data").read_bytes() == b"first"
    await put_in_place(stage.staged(), stage.place, "dir/part", 0o770)
    code, details = await failure(stage, "dir")
    assert (code, details["Message"]) == ("ResourceFileCreateFailed", "A directory has the name of the file")
    (stage.place.directory / "empty").mkdir()
    assert (await failure(stage, "empty"))[0] == "ResourceFileCreateFailed"


def exchange(one: Path, other: Path) -> None:
    """Exchange two names at once, as a task may do it: renameat2 with RENAME_EXCHANGE."""
    at_cwd, flag = -100, 2
    if LIBC.renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), flag) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


async def test_no_escape_while_the_task_swaps_directories_for_links(stage: Stage) -> None:
    """2000 placements against a thread that keeps exchanging the directory and a link to the outside."""
    directory, link = stage.place.directory / "d", stage.place.directory / "link"
    directory.mkdir()
    link.symlink_to(stage.outside)
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            exchange(directory, link)

    thread = threading.Thread(target=swap)
    thread.start()
    placed = refused = 0
    try:
        for _ in range(2000):
            try:
                await put_in_place(stage.staged(b"mine"), stage.place, "d/victim", 0o777)
                placed += 1
            except TransferFailedError as error:
                assert error.failure.code == "ResourceDirectoryCreateFailed"  # noqa: PT017 - some are placed
                refused += 1
    finally:
        ended.set()
        thread.join()
    stage.assert_nothing_escaped()
    assert placed > 0
    assert refused > 0


@contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """A tmpfs of the test's own."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "nodeagent-test", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@needs_root
async def test_across_file_systems_the_file_is_copied_and_then_shown(stage: Stage, tmp_path: Path) -> None:
    """The copy has content, owner and mode of the staged file, and no hidden name is left."""
    with mounted(tmp_path / "other", "size=16m") as other:
        place = Place(other, Owner(60_001, 60_002))
        content = os.urandom(3 << 20)
        await put_in_place(stage.staged(content), place, "sub/f", 0o750)
        found = (other / "sub/f").stat()
        assert (other / "sub/f").read_bytes() == content
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (60_001, 60_002, 0o750)
        assert [path.name for path in (other / "sub").iterdir()] == ["f"]
    stage.assert_nothing_escaped()


@needs_root
async def test_a_full_disk_is_told_as_such(stage: Stage, tmp_path: Path) -> None:
    """No space for the bytes and no inode for a directory are DiskFull; the old file stays."""
    with mounted(tmp_path / "small", "size=1m,nr_inodes=4") as small:
        (small / "f").write_bytes(b"old")
        with pytest.raises(TransferFailedError) as caught:
            await put_in_place(stage.staged(bytes(2 << 20)), Place(small), "f", 0o770)
        assert caught.value.failure.code == "DiskFull"
        assert (small / "f").read_bytes() == b"old"
        assert [path.name for path in small.iterdir()] == ["f"]
        (small / "g").touch()
        (small / "h").touch()
        assert (await failure(stage, "no/inode", Place(small)))[0] == "DiskFull"


async def test_what_the_kernel_refuses_has_a_code_and_a_reason(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota is like a full disk; other errors are those of the step."""
    for number, code in ((errno.EDQUOT, "DiskFull"), (errno.EIO, "ResourceFileCreateFailed")):

        def refuse(*_: object, number: int = number, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", refuse)
            given, details = await failure(stage, "f")
        assert given == code
        assert errno.errorcode[number] in (details["Message"] or "")


async def test_a_cancelled_placement_leaves_nothing_half_done(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cancellation is obeyed when the thread has ended: the file is in place, and the staged one is gone."""
    begun, go_on = threading.Event(), threading.Event()
    rename = os.rename

    def slowly(*arguments: object, **named: object) -> None:
        begun.set()
        assert go_on.wait(10)
        rename(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", slowly)
    placing = asyncio.create_task(put_in_place(stage.staged(), stage.place, "f", 0o770))
    assert await asyncio.to_thread(begun.wait, 10)
    placing.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await placing
    assert (stage.place.directory / "f").read_bytes() == b"content"
    stage.assert_nothing_escaped()
