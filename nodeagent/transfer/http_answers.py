"""What the headers of an answer say of a file: which version it is, which bytes these are, what its checksum is."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)
_MD5_BYTES = 16


@dataclass(frozen=True, slots=True)
class Validator:
    """What tells one version of a file from another; both as the server wrote them."""

    etag: str | None
    last_modified: str | None

    @property
    def strong(self) -> str | None:
        """The ETag, if bytes of two answers that have it can be put together (RFC 9110, 8.8.1)."""
        return None if self.etag is None or self.etag.startswith("W/") else self.etag

    def conditions(self) -> dict[str, str]:
        """Return the headers that ask for the file only if it is another version."""
        if self.etag is not None:
            return {"If-None-Match": self.etag}
        return {} if self.last_modified is None else {"If-Modified-Since": self.last_modified}

    def same(self, other: "Validator | None") -> bool:
        """Tell whether the other one is of the same version: by the ETag, if there is one."""
        if other is None:
            return False
        if self.etag is not None:
            return self.etag.removeprefix("W/") == (other.etag or "").removeprefix("W/")
        return self.last_modified is not None and self.last_modified == other.last_modified


def validator(headers: Mapping[str, str]) -> Validator | None:
    """Return what the answer says of the file's version, if anything."""
    etag, modified = headers.get("ETag") or None, headers.get("Last-Modified") or None
    return None if etag is None and modified is None else Validator(etag, modified)


@dataclass(frozen=True, slots=True)
class ContentRange:
    """Bytes of a file: from `start` up to, not including, `end`, of `total`."""

    start: int
    end: int
    total: int


def content_range(headers: Mapping[str, str]) -> ContentRange | None:
    """Return which bytes a 206 brings; None if it does not say, or nothing that makes sense."""
    matched = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if matched is None:
        return None
    first, last, total = map(int, matched.groups())
    return ContentRange(first, last + 1, total) if first <= last < total else None


def whole_length(headers: Mapping[str, str]) -> int | None:
    """Return the length of a 200's content, if it says."""
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


@dataclass(frozen=True, slots=True)
class Checksum:
    """The MD5 that a file must have, and the header that says so."""

    header: str
    md5: bytes


def checksum(headers: Mapping[str, str], *, whole: bool) -> Checksum | None:
    """Return the checksum of the whole file, if the answer tells one that can be read.

    `Content-MD5` is that of the content of the answer: it counts if that is the `whole` file. Storage tells the MD5
    of the blob in `x-ms-blob-content-md5` where the answer is a part of it.
    """
    for header in ("x-ms-blob-content-md5", "Content-MD5") if whole else ("x-ms-blob-content-md5",):
        try:
            md5 = base64.b64decode(headers.get(header, ""), validate=True)
        except binascii.Error:
            continue
        if len(md5) == _MD5_BYTES:
            return Checksum(header, md5)
    return None
