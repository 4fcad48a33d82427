"""What the zip of an application package may hold, decided before anything of it is written (spec/node.md §6).

Service and node decide by the same rules: the service so that a bad package is refused when it is added, the node
because it trusts nobody. Only the table of contents and the targets of links are read, from a file that the caller
has opened.
"""

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import BinaryIO, TypeAlias

MAX_ENTRIES = 200_000
MAX_DEPTH = 100
MAX_RATIO = 1100
"""No stream of deflate grows by more than 1032; what claims more lies about its size."""

_MAX_TABLE_BYTES = 32 << 20
"""The table of contents is read whole, and each entry takes most of a kilobyte of memory."""
_MAX_PATH_BYTES = 4095
_MAX_NAME_BYTES = 255
_SMALL = 1 << 20
"""Below this size the ratio says nothing: a stored size of a few bytes has overheads."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Others can take gigabytes of memory to unpack a few bytes."""
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_UTF8 = 0x800
_UNIX = 3
_LOCAL_HEADER_BYTES = 30
_DRIVE = re.compile(r"[A-Za-z]:")


_Tree: TypeAlias = dict[str, "_Tree | None"]
"""Directories by the names in them; None is what is no directory."""


class PackageZipError(ValueError):
    """The file is no zip, or holds what a package may not hold; the text says what, and in which entry."""


class Kind(Enum):
    """What an entry becomes."""

    FILE = auto()
    DIRECTORY = auto()
    LINK = auto()


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry that may be unpacked."""

    info: zipfile.ZipInfo
    path: tuple[str, ...]
    """Components below the package's directory, at least one."""
    kind: Kind
    mode: int
    """Permission bits: everybody may read, nobody but the owner may write."""
    target: str = ""
    """Of a link."""


@dataclass(frozen=True, slots=True)
class PackageZip:
    """An opened package whose entries have all been looked at."""

    opened: zipfile.ZipFile
    entries: tuple[Entry, ...]
    """Directories first, then files, links last: so nothing is ever written through a link."""
    size: int
    """Bytes of all files, unpacked."""


@contextmanager
def package_zip(file: BinaryIO) -> Iterator[PackageZip]:
    """Read the table of contents of a zip file. Raises PackageZipError; OSError if the file cannot be read."""
    bounded = _BoundedReads(file)
    with damage_told():
        opened = zipfile.ZipFile(bounded)
    with opened:
        bounded.limit = None
        yield PackageZip(opened, entries := _entries(opened), sum(entry.info.file_size for entry in entries))


@contextmanager
def damage_told(name: str = "") -> Iterator[None]:
    """Turn everything that zipfile raises for damaged bytes into PackageZipError; `name` is the entry's."""
    try:
        yield
    except PackageZipError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError) as error:
        where = f"'{name}' in it" if name else "it"
        raise PackageZipError(f"the package is not a zip file, or {where} is damaged: {error}") from error


class _BoundedReads:
    """A file that refuses to read more than the largest table of contents at once: zipfile does it unasked."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.limit: int | None = _MAX_TABLE_BYTES
        self.seek = file.seek
        self.tell = file.tell
        self.seekable = file.seekable
        self.close = file.close

    def read(self, size: int = -1) -> bytes:
        if self.limit is not None and size > self.limit:
            raise PackageZipError(f"the package has more than {MAX_ENTRIES} entries, or names that are far too long")
        return self._file.read(size)


def _entries(opened: zipfile.ZipFile) -> tuple[Entry, ...]:
    infos = opened.infolist()
    if len(infos) > MAX_ENTRIES:
        raise PackageZipError(f"the package has {len(infos)} entries, more than {MAX_ENTRIES}")
    _refuse_overlaps(infos, opened.start_dir)
    found = tuple(entry for info in infos if (entry := _entry(opened, info)) is not None)
    ordered = tuple(sorted(found, key=lambda entry: (entry.kind is Kind.LINK, entry.kind is Kind.FILE)))
    _refuse_conflicts(ordered)
    return ordered


def _refuse_overlaps(infos: Iterable[zipfile.ZipInfo], table: int) -> None:
    """Entries that share bytes let a small file unpack to any size."""
    before = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < before:
            raise PackageZipError(f"{_shown(info)} shares its bytes with another entry")
        before = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
    if before > table:
        raise PackageZipError("the last entry of the package reaches into its table of contents")


def _entry(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry | None:
    """Return what an entry becomes; None for the package's own directory (`./`)."""
    path = _path(info)
    mode = info.external_attr >> 16
    directory = _name(info).endswith("/") or stat.S_ISDIR(mode)
    if directory:
        if info.file_size:
            raise PackageZipError(f"{_shown(info)} is a directory with content")
        return Entry(info, path, Kind.DIRECTORY, 0o755) if path else None
    if not path:
        raise PackageZipError(f"{_shown(info)} is no name of a file")
    _refuse_content(info)
    if stat.S_ISLNK(mode):
        return Entry(info, path, Kind.LINK, 0o777, _target(opened, info, path))
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise PackageZipError(f"{_shown(info)} is a special file: only files, directories and links are unpacked")
    return Entry(info, path, Kind.FILE, 0o755 if mode & 0o111 else 0o644)


def _path(info: zipfile.ZipInfo) -> tuple[str, ...]:
    """Return the components of an entry's name. Raises PackageZipError for what could lead out of the package."""
    name = _name(info)
    reason = next((reason for wrong, reason in _NAME_RULES if wrong(name)), None)
    if reason is not None:
        raise PackageZipError(f"{_shown(info)} {reason}")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if any(len(_bytes(part)) > _MAX_NAME_BYTES for part in parts):
        raise PackageZipError(f"{_shown(info)} has a name of more than {_MAX_NAME_BYTES} bytes")
    if len(parts) > MAX_DEPTH:
        raise PackageZipError(f"{_shown(info)} lies more than {MAX_DEPTH} directories deep")
    return parts


def _name(info: zipfile.ZipInfo) -> str:
    """Return an entry's name; those that were made on Unix are bytes there, whatever the zip says of their encoding."""
    if info.flag_bits & _UTF8 or info.create_system != _UNIX:
        return info.orig_filename
    return info.orig_filename.encode("cp437").decode(errors="surrogateescape")


_NAME_RULES: tuple[tuple[Callable[[str], object], str], ...] = (
    (lambda name: "\0" in name, "has a NUL in its name"),
    (lambda name: "\\" in name, "has a backslash in its name: zip files separate directories by slashes"),
    (lambda name: name.startswith("/"), "has an absolute name: names are relative to the package"),
    (_DRIVE.match, "has a name with a drive letter: names are relative to the package"),
    (lambda name: ".." in name.split("/"), "leads out of the package"),
    (lambda name: len(_bytes(name)) > _MAX_PATH_BYTES, f"has a name of more than {_MAX_PATH_BYTES} bytes"),
)


def _refuse_content(info: zipfile.ZipInfo) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise PackageZipError(f"{_shown(info)} is encrypted: packages are unpacked without a password")
    if info.compress_type not in _METHODS:
        raise PackageZipError(f"{_shown(info)} is compressed by method {info.compress_type}: use deflate, or none")
    if info.file_size > _SMALL and info.file_size > MAX_RATIO * info.compress_size:
        raise PackageZipError(f"{_shown(info)} claims to unpack to more than {MAX_RATIO} times its size")


def _target(opened: zipfile.ZipFile, info: zipfile.ZipInfo, path: tuple[str, ...]) -> str:
    """Return where a link leads. It stays in the package: it climbs first, no higher than the package, then descends.

    What it descends through may be links, for which the same holds.
    """
    if info.file_size > _MAX_PATH_BYTES:
        raise PackageZipError(f"{_shown(info)} is a link with a target of more than {_MAX_PATH_BYTES} bytes")
    with damage_told(info.filename):
        target = opened.read(info).decode(errors="surrogateescape")
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    outside = target.startswith("/") or ".." in parts[climbs:] or climbs > len(path) - 1
    if outside or not target or "\0" in target or any(len(_bytes(part)) > _MAX_NAME_BYTES for part in parts):
        raise PackageZipError(f"{_shown(info)} is a link that could lead out of the package")
    return target


def _refuse_conflicts(entries: Iterable[Entry]) -> None:
    """No path twice, nothing below what is no directory, and no more directories than entries may be."""
    tree: _Tree = {}
    made = 0
    for entry in entries:
        here = tree
        for part in entry.path if entry.kind is Kind.DIRECTORY else entry.path[:-1]:
            made += part not in here
            below = here.setdefault(part, {})
            if below is None:
                raise PackageZipError(f"{_shown(entry.info)} lies below a file or link of the package")
            here = below
        if made > MAX_ENTRIES:
            raise PackageZipError(f"the package has more than {MAX_ENTRIES} directories")
        if entry.kind is not Kind.DIRECTORY:
            if entry.path[-1] in here:
                raise PackageZipError(f"{_shown(entry.info)} is in the package twice")
            here[entry.path[-1]] = None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _shown(info: zipfile.ZipInfo) -> str:
    """Return an entry's name as a message may show it: short, printable, on one line."""
    name = _name(info).encode("ascii", "backslashreplace").decode("ascii")
    printable = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in name)
    return f"entry '{printable[:200]}'"
