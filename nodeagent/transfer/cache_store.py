"""The cache's folder: whole files that are found by key, in use or not, and never more than so many bytes.

    <folder>/index.db       what is known of each file (cache_index)
    <folder>/entries/<name> the files; a name is never used twice
    <folder>/copies/<name>  copies on their way to a task; emptied when the cache is opened

A file is in the folder, and on the disk, before the index knows it, and the index forgets it before it goes: whatever
is killed in between leaves a file without a record, which goes when the cache is opened. Tasks have their copies while
the file is still being written to the disk: they do not wait for that. All state is changed on the event loop,
all file work is done in threads that no cancellation leaves behind.
"""

import asyncio
import errno
import os
import secrets
import sqlite3
import stat
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Literal

import structlog

from nodeagent.transfer.cache_index import CacheIndex, Record, stamp_of
from nodeagent.transfer.copying import can_clone, clone, copy, digest
from nodeagent.transfer.http_download import Fetched, Validator
from nodeagent.transfer.uninterrupted import in_thread, uninterrupted

MOST_ENTRIES = 50_000
"""So that opening the cache and remembering it stay cheap, however small the files are."""
COPIES = 4
"""Copies made at a time: more only fight for the same disk and memory."""
SYNCS = 2
"""Files that are written to the disk at a time."""
_COARSE_SECONDS = 60
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Verify = Literal["stat", "content"]
log = structlog.get_logger(__name__)


class NotWholeError(Exception):
    """A cached file is not what was put there."""


@dataclass(eq=False, slots=True)
class Entry:
    """A cached file."""

    record: Record
    users: int = 0
    """Who reads it now: it stays until they are done."""
    dropped: bool = field(default=False)
    """Nobody finds it any more; it goes with its last user."""

    @property
    def validator(self) -> Validator:
        """What the server must still say of it."""
        return Validator(self.record.etag, self.record.last_modified)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.record.stamp.size


class CacheStore:
    """The files and what is known of them; one process at a time."""

    def __init__(self, folder: Path, max_bytes: int, verify: Verify) -> None:
        self._folder = folder
        self._entries_folder = folder / "entries"
        self._copies_folder = folder / "copies"
        self._index = CacheIndex(folder / "index.db")
        self._max_bytes = max_bytes
        self._verify = verify
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._bytes = 0
        self._clones = False
        self._copying = asyncio.Semaphore(COPIES)
        self._syncing = asyncio.Semaphore(SYNCS)
        self._settling: set[asyncio.Task[None]] = set()

    @property
    def largest(self) -> int:
        """Files of more bytes are not cached: one of them would drive out everything else."""
        return self._max_bytes // 2

    @property
    def bytes(self) -> int:
        """Bytes of all files in the folder, those that are dropped and still in use included."""
        return self._bytes

    @property
    def clones(self) -> bool:
        """Copies share the bytes of the cached file until they are changed."""
        return self._clones

    async def open(self) -> None:
        """Make the folder, and drop what an earlier life left half done. Raises OSError, sqlite3.Error."""
        records = await in_thread(self._open)
        self._entries = OrderedDict((record.key, Entry(record)) for record in records)
        self._bytes = sum(record.stamp.size for record in records)
        await self._make_room(0)
        log.info("cache opened", files=len(self._entries), bytes=self._bytes, reflinks=self._clones)

    async def close(self) -> None:
        """Close the index; the files stay for the next life."""
        await self.settle()
        await in_thread(lambda _: self._index.close())

    async def settle(self) -> None:
        """Wait until all files are on the disk and in the index, or dropped because that failed."""
        while self._settling:
            await asyncio.wait(self._settling)

    def find(self, key: str) -> Entry | None:
        """Return the cached file of a key, if there is one."""
        return self._entries.get(key)

    @asynccontextmanager
    async def using(self, entry: Entry) -> AsyncIterator[Entry]:
        """Keep a file where it is for the `with` block."""
        entry.users += 1
        if not entry.dropped:
            self._entries.move_to_end(entry.record.key)
        try:
            yield entry
        finally:
            entry.users -= 1
            if entry.dropped and not entry.users:
                await uninterrupted(self._unlink([entry]))

    async def admit(self, key: str, fetched: Fetched) -> Entry | None:
        """Take a downloaded file in, which is moved; or return None, and it stays where it is.

        None is for what is too large, has no validator or finds no room. Nothing is left half done by a cancellation.
        """
        return await uninterrupted(self._admit(key, fetched))

    async def drop(self, entry: Entry) -> None:
        """Forget a file: it is not whole, or there is another version. It goes when its last user is done."""
        await uninterrupted(self._drop([entry]))

    async def shrink(self, wanted: int) -> int:
        """Free `wanted` bytes, least recently used first, as far as files are not in use; return the bytes freed."""
        victims: list[Entry] = []
        freed = 0
        for entry in self._entries.values():
            if freed >= wanted:
                break
            if not entry.users:
                victims.append(entry)
                freed += entry.size
        await uninterrupted(self._drop(victims))
        return freed

    async def copy_of(self, entry: Entry) -> Path:
        """Return a verified copy, private to the caller, who moves or removes it.

        Raises NotWholeError if the file is not what was put there, OSError if there is no copy of it.
        """
        path = self._copies_folder / secrets.token_hex(16)
        async with self._copying:
            try:
                await in_thread(partial(self._copy, entry, path))
            except asyncio.CancelledError:
                path.unlink(missing_ok=True)
                raise
        return path

    async def take(self, entry: Entry) -> Path | None:
        """Give the file itself to its only user, who has no space for a copy; None if there are others.

        Raises NotWholeError if it is not what was put there, OSError.
        """
        return await uninterrupted(self._take(entry))

    async def _admit(self, key: str, fetched: Fetched) -> Entry | None:
        if fetched.validator is None or fetched.size > self.largest or not await self._make_room(fetched.size):
            return None
        self._bytes += fetched.size
        try:
            record = await asyncio.to_thread(self._move_in, key, fetched.path, fetched.validator)
        except OSError as error:
            self._bytes -= fetched.size
            log.warning("a file is not cached", reason=error.strerror)
            return None
        earlier = self._entries.pop(key, None)
        entry = self._entries[key] = Entry(record)
        if earlier is not None:
            await self._let_go([earlier])
        settling = asyncio.create_task(self._settle(entry))
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)
        return entry

    async def _settle(self, entry: Entry) -> None:
        """Make a file one that the next life finds, unless it is dropped meanwhile."""
        try:
            async with self._syncing:
                if not entry.dropped:
                    await asyncio.to_thread(self._sync, entry.record)
                if not entry.dropped:
                    await asyncio.to_thread(self._index.add, entry.record)
        except (OSError, sqlite3.Error) as error:
            if not entry.dropped:
                log.warning("a file is not cached", reason=str(error))
                await self._drop([entry])

    async def _make_room(self, size: int) -> bool:
        """Remove what was not used for longest until `size` more bytes fit."""
        victims: list[Entry] = []
        left, files = self._bytes + size, len(self._entries)
        for entry in self._entries.values():
            if left <= self._max_bytes and files < MOST_ENTRIES:
                break
            if not entry.users:
                victims.append(entry)
                left -= entry.size
                files -= 1
        if left > self._max_bytes:
            return False
        await self._drop(victims)
        return True

    async def _drop(self, entries: list[Entry]) -> None:
        known = [entry for entry in entries if not entry.dropped]
        for entry in known:
            del self._entries[entry.record.key]
        if known:
            await self._let_go(known)

    async def _let_go(self, entries: list[Entry]) -> None:
        """Of what nobody finds any more."""
        for entry in entries:
            entry.dropped = True
        idle = [entry for entry in entries if not entry.users]
        try:
            await asyncio.to_thread(self._index.remove, [entry.record.name for entry in entries])
        except sqlite3.Error as error:
            log.warning("the index of the cache cannot be written", reason=str(error))  # a record without a file
        await self._unlink(idle)

    async def _unlink(self, entries: list[Entry]) -> None:
        names = [entry.record.name for entry in entries]
        await asyncio.to_thread(_remove, [self._entries_folder / name for name in names])
        self._bytes -= sum(entry.size for entry in entries)

    async def _take(self, entry: Entry) -> Path | None:
        if entry.users > 1 or entry.dropped:
            return None
        path = self._copies_folder / secrets.token_hex(16)
        del self._entries[entry.record.key]
        entry.dropped = True
        await asyncio.to_thread(self._move_out, entry, path)
        return path

    # What follows runs in threads.

    def _open(self, _: Event) -> list[Record]:
        for folder in (self._folder, self._entries_folder, self._copies_folder):
            _make_private(folder)
        _remove(self._copies_folder.iterdir())
        self._clones = can_clone(self._copies_folder)
        try:
            records = self._index.open()
        except sqlite3.DatabaseError as error:
            log.warning("the cache begins anew: its index cannot be read", reason=str(error))
            _remove(self._folder.glob("index.db*"))
            records = self._index.open()
        return self._whole(records)

    def _whole(self, records: list[Record]) -> list[Record]:
        """Those whose files are there; every other file goes, and every other record."""
        sizes = {}
        with os.scandir(self._entries_folder) as scanned:
            for item in scanned:
                sizes[item.name] = item.stat(follow_symlinks=False).st_size
        whole = [record for record in records if sizes.get(record.name) == record.stamp.size]
        kept = {record.name for record in whole}
        self._index.remove([record.name for record in records if record.name not in kept])
        _remove(self._entries_folder / name for name in sizes.keys() - kept)
        return whole

    def _move_in(self, key: str, staged: Path, validator: Validator) -> Record:
        name = secrets.token_hex(16)
        with _opened(staged) as handle:
            summed = digest(handle, Event()) if self._verify == "content" else None
            staged.rename(self._entries_folder / name)
            stamp = stamp_of(os.fstat(handle))  # after the rename, which changes ctime
        return Record(name, key, validator.etag, validator.last_modified, stamp, summed, int(time.time()))

    def _sync(self, record: Record) -> None:
        with _opened(self._entries_folder / record.name) as handle:
            os.fsync(handle)

    def _copy(self, entry: Entry, path: Path, abandoned: Event) -> None:
        with self._checked(entry) as source:
            target = os.open(path, _NEW_FILE, 0o600)
            try:
                if not (self._clones and clone(source, target)):
                    copy(source, target, abandoned)
                self._compare(entry, target, abandoned)
            except BaseException:
                path.unlink()
                raise
            finally:
                os.close(target)
        self._note_use(entry)

    def _move_out(self, entry: Entry, path: Path) -> None:
        try:
            with self._checked(entry) as source:
                self._compare(entry, source, Event())
            self._index.remove([entry.record.name])
        except sqlite3.Error as error:
            log.warning("the index of the cache cannot be written", reason=str(error))  # a record without a file
        (self._entries_folder / entry.record.name).rename(path)

    @contextmanager
    def _checked(self, entry: Entry) -> Iterator[int]:
        """Open a file that is as it was recorded."""
        try:
            handle = os.open(self._entries_folder / entry.record.name, _READ)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotWholeError from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise NotWholeError from error
            raise
        try:
            if stamp_of(os.fstat(handle)) != entry.record.stamp:
                raise NotWholeError
            yield handle
        finally:
            os.close(handle)

    def _compare(self, entry: Entry, handle: int, abandoned: Event) -> None:
        if self._verify == "content" and digest(handle, abandoned) != entry.record.digest:
            raise NotWholeError

    def _note_use(self, entry: Entry) -> None:
        """For after a restart: once a minute is enough, and no use depends on it."""
        now = int(time.time())
        if now - entry.record.used < _COARSE_SECONDS:
            return
        entry.record = replace(entry.record, used=now)
        try:
            self._index.used(entry.record.name, now)
        except sqlite3.Error as error:
            log.warning("the index of the cache cannot be written", reason=str(error))


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "the folder of the cache belongs to somebody else", str(folder))
        os.fchmod(handle, stat.S_IRWXU)
    finally:
        os.close(handle)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, _READ)
    try:
        yield handle
    finally:
        os.close(handle)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("a file of the cache cannot be removed", path=str(path), reason=error.strerror)
