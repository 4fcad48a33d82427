"""What is uploaded, under which name and with which headers (spec/node.md §5)."""

import mimetypes
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nodeagent.model.enums import UploadCondition
from nodeagent.model.files import UploadHeader
from nodeagent.rules.file_patterns import FilePattern

LONGEST_BLOB_NAME = 1024
"""Characters (Azure Storage)."""

_TYPES = mimetypes.MimeTypes(())  # Python's own table: what a node's machine has installed makes no difference
_OCTETS = "application/octet-stream"
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_OURS = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "content-md5",
        "date",
        "expect",
        "host",
        "range",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-ms-blob-content-md5",
        "x-ms-blob-type",
        "x-ms-content-crc64",
        "x-ms-copy-source",
        "x-ms-date",
        "x-ms-range",
        "x-ms-structured-body",
        "x-ms-version",
    }
)
"""What a request needs to be the one it is."""
_OF_BLOB = ("cache-control", "content-disposition", "content-encoding", "content-language", "content-type")
"""Properties of a blob. As `x-ms-blob-*` they mean the same on Put Blob, and the blob on Put Block List, too."""
_OF_EACH_BLOCK = ("x-ms-encryption-", "x-ms-lease-id")


class UploadHeaderError(ValueError):
    """A header of `uploadHeaders` that can't be sent; its text names it, never its value."""


@dataclass(frozen=True, slots=True)
class BlobHeaders:
    """Headers of the requests that make one blob."""

    of_blob: Mapping[str, str]
    """Of Put Blob and Put Block List."""
    of_block: Mapping[str, str]
    """Of Put Block."""


def applies(condition: UploadCondition, exit_code: int) -> bool:
    """Tell whether a rule's files are uploaded after this exit code."""
    if condition is UploadCondition.TASK_SUCCESS:
        return exit_code == 0
    if condition is UploadCondition.TASK_FAILURE:
        return exit_code != 0
    return True


def blob_name(path: str | None, pattern: FilePattern, relative: str) -> str:
    """Return the name of a file's blob: `relative` is its path below the pattern's base directory.

    Without a wildcard `path` is the whole name; with one it is a virtual directory before it.
    """
    if not path:
        return relative
    if not pattern.has_wildcard:
        return path
    return f"{path.rstrip('/')}/{relative}"


def blob_headers(given: Iterable[UploadHeader], blob: str) -> BlobHeaders:
    """Return what is sent with a blob; the content type is guessed from its name if it is not given.

    Raises UploadHeaderError.
    """
    headers = {"x-ms-blob-content-type": content_type(blob)}
    for header in given:
        name, value = header.name.lower(), header.value or ""
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise UploadHeaderError(f"uploadHeaders: {header.name!r} is not a header that HTTP can carry")
        if name in _OURS:
            raise UploadHeaderError(f"uploadHeaders: {header.name} is set by the node and can't be another one")
        headers[f"x-ms-blob-{name}" if name in _OF_BLOB else name] = value
    each = {name: value for name, value in headers.items() if name.startswith(_OF_EACH_BLOCK)}
    return BlobHeaders(headers, each)


def content_type(name: str) -> str:
    """Guess a content type from a name; what is compressed is called so, and not what it is inside."""
    guessed, encoding = _TYPES.guess_type(f"/{name}", strict=False)
    if encoding == "gzip":
        return "application/gzip"
    return _OCTETS if guessed is None or encoding is not None else guessed
