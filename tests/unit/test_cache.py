"""What many tasks ask for is downloaded once, and nobody gets what his own URL does not open now."""

import asyncio
import dataclasses
import errno
import os
import shutil
import sqlite3
import stat
import threading
import time
from pathlib import Path

import pytest

from nodeagent.model.protocol import TransferPhase
from nodeagent.rules.cache_key import content_key
from nodeagent.transfer import cache_flight, cache_store, copying
from nodeagent.transfer.base import Download, Meter, Place, TransferFailedError
from nodeagent.transfer.cache_index import Record, stamp_of
from nodeagent.transfer.fetch import DirectFetcher
from tests.unit.cache_world import Web, World, sas, world

URL = "http://h/file"
KIB = 1 << 10
CONTENT = os.urandom(10 * KIB)


async def failed(work: "asyncio.Task[bytes]") -> str:
    """Code with which a task's file could not be brought."""
    with pytest.raises(TransferFailedError) as caught:
        await work
    return caught.value.failure.code


async def joined(there: World, tasks: int) -> None:
    """Wait until so many tasks wait for one download."""
    async with asyncio.timeout(10):
        await there.web.begun.wait()
        while sum(1 for moved in there.moved() if moved) < tasks:  # noqa: ASYNC110 - joining announces nothing else
            await asyncio.sleep(0)


async def test_a_wave_of_tasks_downloads_once(tmp_path: Path) -> None:
    """200 tasks with SAS of their own: one download, each other URL is asked, and every meter knows all bytes."""
    async with world(tmp_path) as there:
        there.web.files[URL] = (CONTENT, '"1"')
        urls = [sas(URL, f"s{number}") for number in range(200)]
        assert await there.wave(urls) == [CONTENT] * 200
        assert len(there.web.fetched) == 1
        assert sorted(there.web.authorized) == sorted(set(urls) - set(there.web.fetched))
        assert there.moved() == [len(CONTENT)] * 200
        there.assert_tidy()
        assert len(there.entries) == 1


async def test_waiting_tasks_see_the_progress_of_the_one_download(tmp_path: Path) -> None:
    """Also who comes late."""
    async with world(tmp_path) as there:
        there.web.files[URL] = (CONTENT, '"1"')
        there.web.gate.clear()
        tasks = [there.begin(URL, "a"), there.begin(URL, "b")]
        await joined(there, 2)
        tasks.append(there.begin(URL, "c"))
        await joined(there, 3)
        assert there.moved() == [len(CONTENT) // 2] * 3
        there.web.gate.set()
        assert await asyncio.gather(*tasks) == [CONTENT] * 3
        assert there.moved() == [len(CONTENT)] * 3


async def test_a_copy_is_its_tasks_own(tmp_path: Path) -> None:
    """A task that changes its file, or the file's mode, changes nobody else's and not the cache's."""
    async with world(tmp_path) as there:
        there.web.files[URL] = (CONTENT, '"1"')
        for name in ("a", "b"):
            assert await there.bring(URL, name) == CONTENT
        mine, other = (tmp_path / "tasks" / name / "in/f" for name in ("a", "b"))
        assert mine.stat().st_nlink == 1
        with mine.open("r+b") as file:
            file.write(b"changed")
        mine.chmod(0o777)
        assert other.read_bytes() == CONTENT
        assert stat.S_IMODE(other.stat().st_mode) == 0o750
        assert await there.bring(URL, "c") == CONTENT
        assert len(there.web.fetched) == 1


async def test_nobody_gets_what_his_own_url_does_not_open(tmp_path: Path) -> None:
    """Neither from the cache nor as one who waited."""
    async with world(tmp_path) as there:
        there.web.files[URL] = (CONTENT, '"1"')
        there.web.denied = {sas(URL, "expired")}
        there.web.gate.clear()
        good, bad = there.begin(sas(URL), "good"), there.begin(sas(URL, "expired"), "bad")
        await joined(there, 2)
        there.web.gate.set()
        assert await good == CONTENT
        assert await failed(bad) == "BlobAccessDenied"
        assert await failed(there.begin(sas(URL, "expired"), "later")) == "BlobAccessDenied"
        assert not (tmp_path / "tasks/later/in").exists()
        assert there.moved() == [len(CONTENT), 0, 0]
        there.assert_tidy()


async def test_another_version_is_downloaded_once_and_the_old_one_goes(tmp_path: Path) -> None:
    """Content is never stale: each use asks the server."""
    async with world(tmp_path) as there:
        there.web.files[URL] = (CONTENT, '"1"')
        assert await there.bring(URL, "old") == CONTENT
        there.web.files[URL] = (CONTENT[::-1], '"2"')
        assert await there.wave([URL] * 20) == [CONTENT[::-1]] * 20
        assert len(there.web.fetched) == 2
        assert len(there.entries) == 1
        there.assert_tidy()


async def test_when_the_first_is_cancelled_the_download_goes_on(tmp_path: Path) -> None:
    """And when all are, it ends and leaves nothing; who comes then begins anew."""
    async with world(tmp_path) as there:
        there.web.files[URL] = (CONTENT, '"1"')
        there.web.gate.clear()
        first, second = there.begin(URL, "first"), there.begin(URL, "second")
        await joined(there, 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        there.web.gate.set()
        assert await second == CONTENT
        assert len(there.web.fetched) == 1
        assert len(there.web.authorized) == 1  # the second's own URL

        other = f"{URL}2"
        there.web.files[other] = (CONTENT, '"1"')
        there.web.gate.clear()
        there.web.begun.clear()
        alone = there.begin(other, "alone")
        await there.web.begun.wait()
        alone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await alone
        there.assert_tidy()
        there.web.gate.set()
        assert await there.bring(other, "anew") == CONTENT


async def test_when_a_download_fails_one_of_those_who_waited_tries_itself(tmp_path: Path) -> None:
    """The first is told its failure; the others share the second download."""
    async with world(tmp_path) as there:
        there.web.files[URL] = (CONTENT, '"1"')
        there.web.failures = ["BlobDownloadTimedOut"]
        there.web.gate.clear()
        tasks = [there.begin(URL, f"t{number}") for number in range(10)]
        await joined(there, 10)
        there.web.gate.set()
        assert await failed(tasks[0]) == "BlobDownloadTimedOut"
        assert await asyncio.gather(*tasks[1:]) == [CONTENT] * 9
        assert len(there.web.fetched) == 2
        assert there.moved() == [0] + [len(CONTENT)] * 9
        there.assert_tidy()


async def test_where_the_server_is_gone_nobody_waits_for_ever(tmp_path: Path) -> None:
    """After two downloads that failed each task makes its own, side by side, and is told its own failure."""
    async with world(tmp_path) as there:
        there.web.files[URL] = (CONTENT, '"1"')
        there.web.failures = ["BlobDownloadMiscError"] * 10
        tasks = [there.begin(URL, f"t{number}") for number in range(10)]
        assert {await failed(task) for task in tasks} == {"BlobDownloadMiscError"}
        assert len(there.web.fetched) == 10
        assert there.moved() == [0] * 10
        there.assert_tidy()


@pytest.mark.parametrize("etag", [None, '"1"'])
async def test_what_cannot_be_cached_is_downloaded_by_each(tmp_path: Path, etag: str | None) -> None:
    """Without a version, or larger than half of the cache: nobody waits for the first's download to its end."""
    async with world(tmp_path, max_bytes=20 * KIB - 2) as there:
        there.web.files[URL] = (CONTENT if etag else CONTENT[:100], etag)
        expected = there.web.files[URL][0]
        assert await there.wave([URL] * 5) == [expected] * 5
        assert len(there.web.fetched) == 5
        assert there.entries == []
        assert await there.wave([URL] * 5, "again") == [expected] * 5
        assert there.moved() == [len(expected)] * 10
        there.assert_tidy()


async def test_a_known_size_that_is_too_large_never_waits(tmp_path: Path) -> None:
    """A listing has told it."""
    async with world(tmp_path, max_bytes=10 * KIB) as there:
        there.web.files[URL] = (CONTENT, '"1"')
        there.web.gate.clear()
        tasks = [there.begin(URL, f"t{number}", size=len(CONTENT)) for number in range(3)]
        async with asyncio.timeout(10):
            while len(there.web.fetched) < 3:  # noqa: ASYNC110 - counting announces nothing
                await asyncio.sleep(0)
        there.web.gate.set()
        assert await asyncio.gather(*tasks) == [CONTENT] * 3


async def test_who_waits_leaves_a_download_that_turns_out_too_large(tmp_path: Path) -> None:
    """While the first still downloads, the others begin their own."""
    async with world(tmp_path, max_bytes=8 * KIB) as there:
        there.web.files[URL] = (CONTENT, '"1"')
        there.web.gate.clear()
        tasks = [there.begin(URL, f"t{number}") for number in range(4)]
        async with asyncio.timeout(10):
            while len(there.web.fetched) < 4:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
        there.web.gate.set()
        assert await asyncio.gather(*tasks) == [CONTENT] * 4
        assert there.moved() == [len(CONTENT)] * 4
        there.assert_tidy()


async def test_the_file_of_a_cancelled_first_that_cannot_be_cached_is_nobodys(tmp_path: Path) -> None:
    """Nobody else's URL has opened it: it is removed, and the others download their own."""
    async with world(tmp_path) as there:
        there.web.files[URL] = (CONTENT, None)
        there.web.gate.clear()
        first, second = there.begin(URL, "first"), there.begin(sas(URL, "expired"), "second")
        await joined(there, 2)
        first.cancel()
        there.web.denied = {sas(URL, "expired")}
        there.web.gate.set()
        assert await failed(second) == "BlobAccessDenied"
        with pytest.raises(asyncio.CancelledError):
            await first
        there.assert_tidy()


async def test_least_recently_used_goes_first_and_the_size_is_bounded(tmp_path: Path) -> None:
    """The bound holds at every moment, and what was used last stays."""
    async with world(tmp_path, max_bytes=35 * KIB) as there:
        for name in "abcd":
            there.web.files[f"http://h/{name}"] = (CONTENT, '"1"')
        for number, name in enumerate("abcabd"):
            assert await there.bring(f"http://h/{name}", f"t{number}") == CONTENT
            assert there.cache.bytes <= 35 * KIB
            there.assert_tidy()
        assert len(there.entries) == 3
        there.web.fetched.clear()
        for name in "abd":
            await there.bring(f"http://h/{name}", f"again-{name}")
        assert there.web.fetched == []
        await there.bring("http://h/c", "again-c")
        assert there.web.fetched == ["http://h/c"]


async def test_files_are_bounded_in_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are: opening the cache looks at each."""
    monkeypatch.setattr(cache_store, "MOST_ENTRIES", 3)
    async with world(tmp_path) as there:
        for number in range(5):
            there.web.files[f"http://h/{number}"] = (b"", '"1"')
            await there.bring(f"http://h/{number}", f"t{number}")
        assert len(there.entries) == 3
        there.assert_tidy()


async def test_what_is_in_use_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is being copied survives pressure and another version; it goes with its last user."""
    async with world(tmp_path) as there:
        there.web.files[URL] = (CONTENT, '"1"')
        await there.bring(URL, "first")
        store = there.cache._store
        entry = store.find(next(iter(store._entries)))
        assert entry is not None
        async with store.using(entry):
            assert await there.cache.shrink(1 << 30) == 0
            await store.drop(entry)
            assert len(there.entries) == 1
            there.assert_tidy()
        assert there.entries == []
        there.assert_tidy()


async def test_shrink_frees_no_more_than_is_wanted(tmp_path: Path) -> None:
    """Oldest first; it tells what it freed."""
    async with world(tmp_path) as there:
        for name in "abc":
            there.web.files[f"http://h/{name}"] = (CONTENT, '"1"')
            await there.bring(f"http://h/{name}", name)
        assert await there.cache.shrink(len(CONTENT) + 1) == 2 * len(CONTENT)
        there.web.fetched.clear()
        await there.bring("http://h/c", "again")
        assert there.web.fetched == []
        assert await there.cache.shrink(1 << 30) == len(CONTENT)
        assert await there.cache.shrink(1) == 0
        there.assert_tidy()


async def test_the_cache_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another life finds the files, and knows which were used last; a smaller bound is obeyed at once."""
    now = time.time()
    async with world(tmp_path) as there:
        web = there.web
        for number, name in enumerate("abc"):
            monkeypatch.setattr(time, "time", lambda number=number: now + number)
            web.files[f"http://h/{name}"] = (CONTENT, '"1"')
            await there.bring(f"http://h/{name}", name)
        monkeypatch.setattr(time, "time", lambda: now + 100)
        await there.bring("http://h/a", "again")
    web.fetched.clear()
    async with world(tmp_path, web=web) as there:
        assert len(there.entries) == 3
        assert await there.bring("http://h/b", "b2") == CONTENT
        assert web.fetched == []
    async with world(tmp_path, web=web, max_bytes=25 * KIB) as there:
        assert len(there.entries) == 2
        await there.bring("http://h/a", "a2")
        assert web.fetched == []
        there.assert_tidy()


@pytest.mark.parametrize("verify", ["stat", "content"])
async def test_a_cached_file_that_was_touched_is_downloaded_again(tmp_path: Path, verify: str) -> None:
    """Changed in size, in place, replaced, removed or exchanged for a link or a directory: nobody gets that."""
    async with world(tmp_path, verify="content" if verify == "content" else "stat") as there:
        there.web.files[URL] = (CONTENT, '"1"')

        def append(file: Path) -> None:
            with file.open("ab") as opened:
                opened.write(b"x")

        def overwrite(file: Path) -> None:
            found = file.stat()
            with file.open("r+b") as opened:
                opened.write(b"changed")
            os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))

        def link(file: Path) -> None:
            file.rename(tmp_path / "moved")
            file.symlink_to(tmp_path / "moved")

        def replace(file: Path) -> None:
            shutil.copy2(file, tmp_path / "copy")
            (tmp_path / "copy").rename(file)

        def remove(file: Path) -> None:
            file.unlink()

        for number, touch in enumerate((append, overwrite, link, replace, remove)):
            assert await there.bring(URL, f"before{number}") == CONTENT
            there.web.fetched.clear()
            touch(there.entries[0])
            assert await there.bring(URL, f"after{number}") == CONTENT
            assert there.web.fetched == [URL]
            assert len(there.entries) == 1
            there.assert_tidy()


async def test_content_is_compared_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotten bytes that no time stamp tells are seen by `content`, before any task has them."""
    async with world(tmp_path, verify="content") as there:
        there.web.files[URL] = (CONTENT, '"1"')
        await there.bring(URL, "before")
        file = there.entries[0]
        with file.open("r+b") as opened:
            opened.write(b"rotten")
        stamp = stamp_of(file.stat())
        entry = next(iter(there.cache._store._entries.values()))
        entry.record = dataclasses.replace(entry.record, stamp=stamp)
        assert await there.bring(URL, "after") == CONTENT
        assert len(there.web.fetched) == 2
        there.assert_tidy()


async def test_what_a_killed_agent_left_is_dropped(tmp_path: Path) -> None:
    """Files without a record, records without a whole file, copies on their way."""
    async with world(tmp_path) as there:
        web = there.web
        for name in "abc":
            web.files[f"http://h/{name}"] = (CONTENT, '"1"')
            await there.bring(f"http://h/{name}", name)
        names = {path.name for path in there.entries}
        records = {entry.record.key: entry.record.name for entry in there.cache._store._entries.values()}
    short, gone, _ = records.values()
    cache = tmp_path / "cache"
    os.truncate(cache / "entries" / short, 5)
    (cache / "entries" / gone).unlink()
    (cache / "entries/unknown").write_bytes(b"x")
    (cache / "copies/half").write_bytes(b"x")
    async with world(tmp_path, web=web) as there:
        assert {path.name for path in there.entries} == names - {short, gone}
        there.assert_tidy()
    rows = sqlite3.connect(cache / "index.db").execute("SELECT name FROM entries").fetchall()
    assert {name for (name,) in rows} == names - {short, gone}


@pytest.mark.parametrize("damage", ["garbage", "version", "type"])
async def test_an_index_that_cannot_be_read_begins_anew(tmp_path: Path, damage: str) -> None:
    """A cache may always be empty; it must never stop the agent."""
    async with world(tmp_path) as there:
        web = there.web
        web.files[URL] = (CONTENT, '"1"')
        await there.bring(URL, "a")
    index = tmp_path / "cache/index.db"
    if damage == "garbage":
        index.write_bytes(b"no database" * 1000)
    else:
        statement = "PRAGMA user_version=99" if damage == "version" else "UPDATE entries SET size = 'x'"
        connection = sqlite3.connect(index)
        with connection:
            connection.execute(statement)
        connection.close()
    async with world(tmp_path, web=web) as there:
        assert there.entries == []
        there.assert_tidy()
        assert await there.bring(URL, "b") == CONTENT
        assert len(there.entries) == 1


async def test_the_folder_is_the_agents_alone(tmp_path: Path) -> None:
    """Mode 0700, also if it was not; a link is not followed."""
    (tmp_path / "cache").mkdir(mode=0o777)
    async with world(tmp_path) as there:
        for folder in ("cache", "cache/entries", "cache/copies"):
            assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700
        there.assert_tidy()
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        async with world(tmp_path):
            pass


async def test_an_index_that_cannot_be_written_costs_the_cache_and_no_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is placed, and nothing is cached."""

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async with world(tmp_path) as there:
        there.web.files[URL] = (CONTENT, '"1"')
        with monkeypatch.context() as patched:
            patched.setattr(there.cache._store._index, "add", full)
            assert await there.wave([URL] * 3) == [CONTENT] * 3
            await there.cache._store.settle()
            assert there.entries == []
            there.assert_tidy()


async def test_no_task_waits_until_the_file_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies are there first; the index knows the file only after it is on the disk, or never if it goes before."""
    go_on = threading.Event()
    order: list[str] = []
    fsync = os.fsync

    def slow(handle: int) -> None:
        assert go_on.wait(10)
        fsync(handle)
        order.append("on the disk")

    async with world(tmp_path) as there:
        there.web.files = {URL: (CONTENT, '"1"'), "http://h/b": (CONTENT, '"1"')}
        index = there.cache._store._index
        add = index.add

        def noted(record: Record) -> None:
            add(record)
            order.append("in the index")

        monkeypatch.setattr(os, "fsync", slow)
        monkeypatch.setattr(index, "add", noted)
        assert await there.wave([URL] * 3) == [CONTENT] * 3
        assert order == []
        await there.bring("http://h/b", "b")
        entry = there.cache._store.find(content_key("http://h/b"))
        assert entry is not None
        await there.cache._store.drop(entry)
        go_on.set()
        await there.cache._store.settle()
        assert order.count("in the index") == 1
        assert order.index("on the disk") < order.index("in the index")
        there.assert_tidy()


async def test_no_space_for_the_download_shrinks_the_cache(tmp_path: Path) -> None:
    """What is cached goes before a task fails; when that is not enough, it fails."""
    async with world(tmp_path) as there:
        there.web.files = {"http://h/a": (CONTENT, '"1"'), URL: (CONTENT, '"1"')}
        await there.bring("http://h/a", "a")
        there.web.failures = ["DiskFull"]
        assert await there.bring(URL, "b") == CONTENT
        assert len(there.entries) == 1
        assert await there.cache.shrink(1 << 30)
        there.web.failures = ["DiskFull"]
        assert await failed(there.begin(URL, "c")) == "DiskFull"
        there.assert_tidy()


async def test_no_space_for_a_copy_gives_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others go first; at last the cached file leaves the cache for its only user."""
    async with world(tmp_path) as there:
        for name in "ab":
            there.web.files[f"http://h/{name}"] = (CONTENT, '"1"')
            await there.bring(f"http://h/{name}", name)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(cache_store, "copy", full)
        monkeypatch.setattr(cache_store, "clone", lambda *_: False)
        assert await there.bring("http://h/a", "a2") == CONTENT
        assert there.entries == []
        assert len(there.web.fetched) == 2
        there.assert_tidy()
        # Two users at a time cannot both have it: it goes, and they download.
        assert await there.wave(["http://h/b"] * 2, "b") == [CONTENT] * 2
        there.assert_tidy()


async def test_a_file_that_cannot_be_read_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that has lost it: it is downloaded, at last without the cache."""
    async with world(tmp_path) as there:
        there.web.files[URL] = (CONTENT, '"1"')

        def broken(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(cache_store, "copy", broken)
        monkeypatch.setattr(cache_store, "clone", lambda *_: False)
        assert await there.bring(URL, "a") == CONTENT
        assert len(there.web.fetched) <= 3
        there.assert_tidy()


async def test_a_cancelled_copy_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread stops at its next look, and its file goes."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    real = copying.copy
    async with world(tmp_path) as there:
        there.web.files[URL] = (CONTENT, '"1"')
        await there.bring(URL, "a")

        def slow(source: int, target: int, abandoned: threading.Event) -> None:
            loop.call_soon_threadsafe(begun.set)
            assert abandoned.wait(10)
            real(source, target, abandoned)

        monkeypatch.setattr(cache_store, "copy", slow)
        monkeypatch.setattr(cache_store, "clone", lambda *_: False)
        task = there.begin(URL, "b")
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not (tmp_path / "tasks/b/in").exists()
        there.assert_tidy()


async def test_what_is_remembered_as_not_cacheable_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that lives for years must not remember every URL."""
    monkeypatch.setattr(cache_flight, "_REMEMBERED", 3)
    async with world(tmp_path) as there:
        for number in range(5):
            there.web.files[f"http://h/{number}"] = (b"x", None)
            await there.bring(f"http://h/{number}", f"t{number}")
        assert len(there.cache._flights._useless) == 3


async def test_what_is_no_url_is_told_by_the_download(tmp_path: Path) -> None:
    """The cache has no opinion."""

    class Refusing(Web):
        async def fetch(self, url: str, **_: object) -> None:  # type: ignore[override]
            raise AssertionError(url)

    async with world(tmp_path, web=Refusing(tmp_path)) as there:
        with pytest.raises(AssertionError, match="half"):
            await there.bring("http://[half/f", "t")


async def test_without_a_cache_each_file_is_downloaded(tmp_path: Path) -> None:
    """The other fetcher."""
    web = Web(tmp_path / "staging", {URL: (CONTENT, '"1"')})
    web.staging.mkdir()
    directory = tmp_path / "wd"
    directory.mkdir()
    meter = Meter("a", TransferPhase.DOWNLOADING)
    for _ in range(2):
        await DirectFetcher(web).bring(Download(URL, "f", 0o640), Place(directory), meter)
    assert (directory / "f").read_bytes() == CONTENT
    assert stat.S_IMODE((directory / "f").stat().st_mode) == 0o640
    assert meter.progress().bytes_done == 2 * len(CONTENT)
    assert list(web.staging.iterdir()) == []
