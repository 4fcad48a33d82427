"""What the cache knows of its files after a restart: one SQLite file beside them.

Commits are written to the log without fsync (`synchronous=NORMAL`): killing the process loses none, a power cut at
worst the last ones, and then a file without a record or a record without a file goes when the cache is opened.
"""

import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_VERSION = 1
_SCHEMA = """
CREATE TABLE entries (
    name TEXT PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    etag TEXT,
    last_modified TEXT,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    digest BLOB,
    used INTEGER NOT NULL
) WITHOUT ROWID
"""
_COLUMNS = "name, key, etag, last_modified, size, mtime_ns, ctime_ns, inode, digest, used"
_MARKS = ", ".join("?" * 10)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the file system says of a file that nobody has touched."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def stamp_of(found: os.stat_result) -> Stamp:
    """Return the stamp of a file."""
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@dataclass(frozen=True, slots=True)
class Record:
    """One cached file."""

    name: str
    """Of the file in the cache's folder, never used again for another."""
    key: str
    """`rules.cache_key.content_key` of its URL: there is one version of each."""
    etag: str | None
    last_modified: str | None
    stamp: Stamp
    digest: bytes | None
    """BLAKE2b of its bytes, if the cache compares them."""
    used: int
    """When it was last used, in seconds since 1970; coarse."""


class CacheIndex:
    """The records. Called from threads, one at a time; everything raises sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def open(self) -> list[Record]:
        """Open or make the file, and return what it holds, least recently used first."""
        with self._lock:
            self._connection = _connected(self._path)
            rows = self._connection.execute(f"SELECT {_COLUMNS} FROM entries ORDER BY used").fetchall()  # noqa: S608 - constants
        return [_record(row) for row in rows]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def add(self, record: Record) -> None:
        """Commit a record; it takes the place of one with the same key."""
        stamp = record.stamp
        named = (record.name, record.key, record.etag, record.last_modified)
        seen = (stamp.size, stamp.mtime_ns, stamp.ctime_ns, stamp.inode)
        row = (*named, *seen, record.digest, record.used)
        self._commit(f"INSERT OR REPLACE INTO entries ({_COLUMNS}) VALUES ({_MARKS})", [row])  # noqa: S608 - constants

    def remove(self, names: Iterable[str]) -> None:
        """Commit that these are gone."""
        self._commit("DELETE FROM entries WHERE name = ?", [(name,) for name in names])

    def used(self, name: str, when: int) -> None:
        """Commit when a file was last used."""
        self._commit("UPDATE entries SET used = ? WHERE name = ?", [(when, name)])

    def _commit(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        with self._lock:
            if self._connection is None:
                raise sqlite3.ProgrammingError("the index of the cache is not open")
            with self._connection:
                self._connection.executemany(statement, rows)


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        _make_schema(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_schema(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == _VERSION:
        return
    if version != 0:
        raise sqlite3.DatabaseError(f"the index of the cache has version {version}, not {_VERSION}")
    with connection:
        connection.execute("BEGIN")
        connection.execute(_SCHEMA)
        connection.execute(f"PRAGMA user_version={_VERSION}")


def _record(row: Sequence[object]) -> Record:
    name, key, etag, last_modified, size, mtime_ns, ctime_ns, inode, digest, used = row
    stamp = Stamp(_number(size), _number(mtime_ns), _number(ctime_ns), _number(inode))
    return Record(
        name=str(name),
        key=str(key),
        etag=None if etag is None else str(etag),
        last_modified=None if last_modified is None else str(last_modified),
        stamp=stamp,
        digest=digest if isinstance(digest, bytes) else None,
        used=_number(used),
    )


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise sqlite3.DatabaseError(f"the index of the cache has {type(value).__name__} where a number belongs")
    return value
