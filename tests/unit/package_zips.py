"""Zip files of packages, made entry by entry: honest ones and others."""

import io
import stat
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Made:
    """One entry as it shall stand in the zip; `mode` has the kind of file in its upper bits, as Unix has it."""

    name: str
    content: bytes = b""
    mode: int = stat.S_IFREG | 0o644
    flags: int = 0
    method: int = zipfile.ZIP_DEFLATED


def link(name: str, target: str) -> Made:
    """Return a symbolic link."""
    return Made(name, target.encode(), stat.S_IFLNK | 0o777)


def folder(name: str) -> Made:
    """Return a directory."""
    return Made(name, mode=stat.S_IFDIR | 0o755)


def zipped(entries: Iterable[Made]) -> bytes:
    """Return a zip with these entries, in this order, whatever is wrong with them."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as made:
        for entry in entries:
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = entry.name
            info.external_attr = entry.mode << 16
            info.create_system = 3
            info.compress_type = entry.method
            made.writestr(info, entry.content)
            info.flag_bits |= entry.flags  # goes into the table of contents only, which is what is read first
    return target.getvalue()
