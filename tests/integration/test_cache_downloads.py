"""The cache over real downloads, from nginx and from storage, and on a file system with reflinks."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest

from nodeagent.model.protocol import TransferPhase
from nodeagent.transfer.base import Download, Meter, Place, TransferFailedError, TransferSettings
from nodeagent.transfer.cache import CachingFetcher
from nodeagent.transfer.http_download import Downloads
from tests.integration.azurite import Container
from tests.integration.downloading import one_token
from tests.integration.nginx import Nginx, running_nginx

pytest_plugins = ["tests.integration.storage_fixtures"]

MIB = 1 << 20


class Node:
    """A cache over real downloads, and tasks with directories of their own."""

    def __init__(self, root: Path, cache: CachingFetcher) -> None:
        self.root = root
        self.cache = cache

    async def bring(self, url: str, task: str) -> Path:
        """Bring a file to a task; where it is."""
        directory = self.root / "tasks" / task
        directory.mkdir(parents=True)
        meter = Meter(task, TransferPhase.DOWNLOADING)
        await self.cache.bring(Download(url, "in/f", 0o750), Place(directory), meter)
        file = directory / "in/f"
        assert meter.progress().bytes_done == file.stat().st_size
        return file

    def assert_tidy(self) -> None:
        """Nothing is under way."""
        assert list((self.root / "staging").iterdir()) == []
        assert list((self.root / "cache/copies").iterdir()) == []


@asynccontextmanager
async def node(
    root: Path, max_bytes: int = 256 * MIB, verify: Literal["stat", "content"] = "stat", **settings: float
) -> AsyncIterator[Node]:
    """Run the cache of a node whose files are below `root`."""
    limits = TransferSettings(**settings)  # type: ignore[arg-type]
    async with Downloads(limits, root / "staging", one_token).connected() as downloads:
        cache = CachingFetcher(downloads, root / "cache", max_bytes, verify)
        await cache.open()
        try:
            yield Node(root, cache)
        finally:
            await cache.close()


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    """An nginx of the test's own."""
    with running_nginx(tmp_path / "nginx") as running:
        yield running


@pytest.fixture
def reflinks(tmp_path: Path) -> Iterator[Path]:
    """A folder on an XFS of its own, in a file that is mounted by a loop device."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    if shutil.which("mkfs.xfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("mkfs.xfs is not installed (Debian package xfsprogs)")
    image, folder = tmp_path / "image", tmp_path / "xfs"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(512 * MIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def sent(nginx: Nginx) -> int:
    """Bytes of content that nginx has sent, by its log."""
    lines = (nginx.folder / "access.log").read_text().splitlines()
    return sum(int(line.split('"')[2].split()[1]) for line in lines)


async def test_forty_tasks_take_one_file_from_nginx_once(tmp_path: Path, nginx: Nginx) -> None:
    """20 MiB in ranges: the server sends them once, and one byte at most to each other task."""
    content = os.urandom(20 * MIB)
    (nginx.www / "f").write_bytes(content)
    async with node(tmp_path) as there:
        files = await asyncio.gather(*(there.bring(nginx.url("f"), f"t{number}") for number in range(40)))
        assert all(file.read_bytes() == content for file in files)
        assert len(content) <= sent(nginx) < len(content) + 40_000
        there.assert_tidy()
    async with node(tmp_path, verify="stat") as there:
        before = sent(nginx)
        assert (await there.bring(nginx.url("f"), "next-life")).read_bytes() == content
        assert sent(nginx) - before < 1000


async def test_a_file_that_changes_on_the_server_is_never_stale(tmp_path: Path, nginx: Nginx) -> None:
    """And what the server no longer has is not given from the cache."""
    served = nginx.www / "f"
    async with node(tmp_path) as there:
        served.write_bytes(b"first")
        assert (await there.bring(nginx.url("f"), "a")).read_bytes() == b"first"
        (nginx.www / "new").write_bytes(b"second, longer")
        (nginx.www / "new").rename(served)
        assert (await there.bring(nginx.url("f"), "b")).read_bytes() == b"second, longer"
        served.unlink()
        with pytest.raises(TransferFailedError) as caught:
            await there.bring(nginx.url("f"), "c")
        assert caught.value.failure.code == "BlobNotFound"
        there.assert_tidy()


async def test_a_server_that_is_gone_gives_nothing_from_the_cache(tmp_path: Path, nginx: Nginx) -> None:
    """Who cannot be asked has not allowed it."""
    (nginx.www / "f").write_bytes(b"content")
    async with node(tmp_path, transfer_tries=1) as there:
        await there.bring(nginx.url("f"), "a")
        nginx.kill()
        with pytest.raises(TransferFailedError) as caught:
            await there.bring(nginx.url("f"), "b")
        assert caught.value.failure.code == "BlobDownloadMiscError"
        nginx.start()
        assert (await there.bring(nginx.url("f"), "c")).read_bytes() == b"content"


async def test_storage_decides_for_each_sas(tmp_path: Path, container: Container) -> None:
    """Two SAS of one blob share the download; an expired, a forged and no SAS at all get nothing."""
    container.put("data/f", b"content" * 1000)
    good = [container.blob_url("data/f", expires=timedelta(hours=hours)) for hours in (1, 2)]
    assert good[0] != good[1]
    async with node(tmp_path) as there:
        files = [await there.bring(url, f"good{number}") for number, url in enumerate(good)]
        assert [file.read_bytes() for file in files] == [b"content" * 1000] * 2
        assert files[0].stat().st_ino != files[1].stat().st_ino
        assert len(list((tmp_path / "cache/entries").iterdir())) == 1
        expired = container.blob_url("data/f", expires=timedelta(hours=-1))
        forged = good[0].replace("sig=", "sig=A")
        bare = good[0].partition("?")[0]
        for name, url in (("expired", expired), ("forged", forged), ("bare", bare)):
            with pytest.raises(TransferFailedError) as caught:
                await there.bring(url, name)
            assert caught.value.failure.code in ("BlobAccessDenied", "BlobNotFound"), name
            assert "sig=" not in f"{caught.value} {caught.value.failure!r}"
        container.put("data/f", b"another")
        assert (await there.bring(good[1], "another")).read_bytes() == b"another"
        there.assert_tidy()
        stored = b"".join(path.read_bytes() for path in (tmp_path / "cache").glob("index.db*"))
        assert b"sig" not in stored
        assert b"127.0.0.1" not in stored


async def test_a_task_killed_in_the_middle_of_a_shared_download(tmp_path: Path, nginx: Nginx) -> None:
    """The first is cancelled while bytes arrive; the others get the whole file from the same download."""
    content = os.urandom(64 * MIB)
    (nginx.www / "f").write_bytes(content)
    arrived = asyncio.Event()

    class Told(Meter):
        def moved(self, size: int) -> None:
            super().moved(size)
            arrived.set()

    async with node(tmp_path) as there:
        wd = tmp_path / "first"
        wd.mkdir()
        meter = Told("first", TransferPhase.DOWNLOADING)
        first = asyncio.create_task(there.cache.bring(Download(nginx.url("f"), "f", 0o770), Place(wd), meter))
        others = [asyncio.create_task(there.bring(nginx.url("f"), f"t{number}")) for number in range(3)]
        await arrived.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert list(wd.iterdir()) == []
        for file in await asyncio.gather(*others):
            assert file.read_bytes() == content
        assert sent(nginx) < len(content) + 10_000
        there.assert_tidy()


@pytest.mark.parametrize("verify", ["stat", "content"])
async def test_reflinks_take_no_space_and_are_the_tasks_own(
    reflinks: Path, nginx: Nginx, verify: Literal["stat", "content"]
) -> None:
    """30 copies of 32 MiB on a disk of 512 MiB; a task that changes its copy changes nobody else's."""
    content = os.urandom(32 * MIB)
    (nginx.www / "f").write_bytes(content)
    async with node(reflinks, verify=verify) as there:
        assert there.cache.reflinks
        files = [await there.bring(nginx.url("f"), f"t{number}") for number in range(30)]
        with files[0].open("r+b") as file:
            file.write(b"changed")
        assert files[0].read_bytes() == b"changed" + content[7:]
        assert all(file.read_bytes() == content for file in files[1:])
        assert (await there.bring(nginx.url("f"), "late")).read_bytes() == content
        assert sent(nginx) < len(content) + 40_000  # sharing extents is not taken for a change of the file
        there.assert_tidy()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 24 MiB of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={24 * MIB}", "nodeagent-test", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


async def test_a_disk_that_becomes_full(small_disk: Path, nginx: Nginx) -> None:
    """A cache that may take all of the disk: old files go, the last leaves the cache for its task, then it is told."""
    contents = {name: os.urandom(5 * MIB) for name in "abcde"}
    for name, content in contents.items():
        (nginx.www / name).write_bytes(content)
    async with node(small_disk) as there:
        placed = [(await there.bring(nginx.url(name), name), name) for name in "abcd"]
        with pytest.raises(TransferFailedError) as caught:
            await there.bring(nginx.url("e"), "e")
        assert caught.value.failure.code == "DiskFull"
        assert all(file.read_bytes() == contents[name] for file, name in placed)
        there.assert_tidy()
        shutil.rmtree(small_disk / "tasks/a")
        assert (await there.bring(nginx.url("e"), "e2")).read_bytes() == contents["e"]
        there.assert_tidy()
