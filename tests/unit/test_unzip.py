"""Unpacking a package: what comes out, and that nothing ever comes out anywhere else."""

import contextlib
import io
import os
import stat
import threading
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.rules.package_zip import PackageZipError
from nodeagent.transfer import unzip as unzip_module
from nodeagent.transfer.uninterrupted import AbandonedError
from nodeagent.transfer.unzip import NoRoomError, unzip
from tests.unit.package_zips import Made, folder, link, zipped


def unpack(folder_: Path, data: bytes, *, max_bytes: int = 1 << 30, abandoned: threading.Event | None = None) -> int:
    """Unpack into `folder_/package`; return how many bytes were told."""
    (folder_ / "package.zip").write_bytes(data)
    (folder_ / "package").mkdir(exist_ok=True)
    expected: list[int] = []
    moved: list[int] = []
    unzip(
        folder_ / "package.zip",
        folder_ / "package",
        max_bytes=max_bytes,
        abandoned=abandoned or threading.Event(),
        expect=expected.append,
        moved=moved.append,
    )
    assert expected == [sum(moved)]
    return sum(moved)


def test_a_package_comes_out_as_it_went_in(tmp_path: Path) -> None:
    """Content, modes whatever our umask is, links, and directories that no entry names."""
    before = os.umask(0o077)
    try:
        size = unpack(
            tmp_path,
            zipped(
                [
                    link("current", "deep/er"),
                    Made("deep/er/tool", b"#!/bin/sh\n" * 99_999, mode=stat.S_IFREG | 0o6711),
                    Made("read me.txt", "Grüße".encode(), mode=stat.S_IFREG | 0o666),
                    folder("empty/"),
                    Made("stored", b"as it is", method=zipfile.ZIP_STORED),
                ]
            ),
        )
    finally:
        os.umask(before)
    package = tmp_path / "package"
    assert size == 999_990 + 7 + 8 + len("deep/er")
    assert (package / "current" / "tool").read_bytes() == b"#!/bin/sh\n" * 99_999
    assert (package / "read me.txt").read_text() == "Grüße"
    modes = {path.relative_to(package).as_posix(): stat.S_IMODE(path.lstat().st_mode) for path in package.rglob("*")}
    assert modes == {
        "current": 0o777,
        "deep": 0o755,
        "deep/er": 0o755,
        "deep/er/tool": 0o755,
        "read me.txt": 0o644,
        "empty": 0o755,
        "stored": 0o644,
    }


def test_a_package_larger_than_allowed_is_refused_before_it_is_written(tmp_path: Path) -> None:
    """The limit counts what it unpacks to: 16 MiB of zeros are some kilobytes in the zip."""
    with pytest.raises(PackageZipError, match="more than this node allows"):
        unpack(tmp_path, zipped([Made("zeros", bytes(16 << 20))]), max_bytes=1 << 20)
    assert list((tmp_path / "package").iterdir()) == []


def test_a_package_larger_than_the_free_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node keeps a reserve."""
    found = os.statvfs(tmp_path)
    monkeypatch.setattr(unzip_module, "RESERVE_BYTES", found.f_bavail * found.f_frsize)
    with pytest.raises(NoRoomError):
        unpack(tmp_path, zipped([Made("some", b"bytes" * 1000)]))


@pytest.mark.parametrize("position", [0.3, 0.6])
def test_damaged_bytes_are_told(tmp_path: Path, position: float) -> None:
    """Checksums are compared: a package that was damaged is no package."""
    content = os.urandom(200_000)
    data = bytearray(zipped([Made("random", content)]))
    data[int(len(data) * position)] ^= 0xFF
    with pytest.raises(PackageZipError, match="'random' in it is damaged"):
        unpack(tmp_path, bytes(data))


def test_it_ends_when_it_is_abandoned(tmp_path: Path) -> None:
    """A cancelled task need not wait for a large package."""
    abandoned = threading.Event()
    abandoned.set()
    with pytest.raises(AbandonedError):
        unpack(tmp_path, zipped([Made("a"), Made("b")]), abandoned=abandoned)
    assert list((tmp_path / "package").iterdir()) == []


def test_a_directory_that_became_a_link_is_not_entered(tmp_path: Path) -> None:
    """Not even somebody who swaps directories for links gets a file written elsewhere."""
    (tmp_path / "package").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "package" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="sub"):
        unpack(tmp_path, zipped([Made("sub/file", b"x")]))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_no_handle_stays_open(tmp_path: Path) -> None:
    """Neither after success nor after a failure in the middle."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    unpack(tmp_path, zipped([Made(f"a/{number}/b/c", b"x") for number in range(20)]))
    data = zipped([Made("x/y/z", b"x"), Made("a/b", os.urandom(1000))]).replace(b"x/y/z", b"a/b/z", 1)
    with contextlib.suppress(PackageZipError, OSError):
        unpack(tmp_path, data)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


PARTS = st.sampled_from(["a", "b", "..", ".", "", "x" * 255, "Ä", "a b", "C:", "\\", "-", "~", "\n", "outside"])
NAMES = st.one_of(
    st.lists(PARTS, min_size=1, max_size=4).map("/".join), st.text(st.characters(codec="utf-8"), max_size=20)
)
MODES = st.sampled_from([0, 0o777, *(kind | 0o7777 for kind in (0o010000, 0o040000, 0o060000, 0o100000, 0o120000))])
ENTRIES = st.builds(
    Made,
    name=NAMES,
    content=st.one_of(st.binary(max_size=64), NAMES.map(lambda name: name.encode())),
    mode=MODES,
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)


@given(
    entries=st.lists(ENTRIES, max_size=8),
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), max_size=2),
)
def test_whatever_a_zip_says_nothing_leaves_the_directory(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Made], flips: list[tuple[int, int]]
) -> None:
    """Made entries, and flipped bytes: all is refused or lies in the package, as a file, directory or safe link."""
    place = tmp_path_factory.mktemp("fuzz")
    (place / "outside").mkdir()
    (place / "outside" / "canary").write_bytes(b"untouched")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of duplicates
        data = bytearray(zipped(entries))
    for at, bits in flips:
        data[at % len(data)] ^= bits
    with contextlib.suppress(PackageZipError):
        unpack(place, bytes(data))
    assert {path.name for path in place.iterdir()} <= {"outside", "package.zip", "package"}
    assert [path.name for path in (place / "outside").iterdir()] == ["canary"]
    assert (place / "outside" / "canary").read_bytes() == b"untouched"
    for path in (place / "package").rglob("*"):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            assert (place / "package").resolve() in (path.resolve(), *path.resolve().parents)
        elif stat.S_ISDIR(found.st_mode):
            assert stat.S_IMODE(found.st_mode) == 0o755
        else:
            assert stat.S_ISREG(found.st_mode)
            assert stat.S_IMODE(found.st_mode) in (0o600, 0o644, 0o755)  # 0600: refused in the middle of it


def test_the_fuzzed_zips_are_not_all_refused(tmp_path: Path) -> None:
    """What the strategy makes of ordinary parts is unpacked: the test above has something to look at."""
    unpack(tmp_path, zipped([Made("a/b", b"1"), link("b", "a"), Made("Ä/a b", b"2"), Made("outside/\n", b"3")]))
    assert (tmp_path / "package" / "b" / "b").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["Grüße".encode(), b"Gr\xfc\xdf__e"])
def test_names_of_unix_are_the_bytes_that_were_packed(tmp_path: Path, name: bytes) -> None:
    """Old tools do not say that a name is UTF-8; and not every name of a file is."""
    unpack(tmp_path, zipped([Made("GrXXXXe", b"1"), link("link", "GrXXXXe")]).replace(b"GrXXXXe", name))
    assert sorted(os.listdir(os.fsencode(tmp_path / "package"))) == sorted([name, b"link"])  # noqa: PTH208 - bytes


def test_zips_of_other_makers_are_taken(tmp_path: Path) -> None:
    """A zip as Python's own ZipFile makes it from a tree, with no Unix modes for what is written as text."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as made:
        made.writestr("tool/config.json", "{}")
        made.mkdir("tool/logs")
    unpack(tmp_path, target.getvalue())
    assert (tmp_path / "package" / "tool" / "logs").is_dir()
