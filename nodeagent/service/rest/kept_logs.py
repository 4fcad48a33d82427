"""What clients see of a task's logs that the service keeps: the same as of a file on a node."""

import re
from typing import Any

from nodeagent.model.times import format_time, http_date
from nodeagent.service.errors import BatchError
from nodeagent.service.store.task_logs import LogRow

KEPT_HEADER = "nodeagent-kept"
"""Tells that a log comes from the service: `whole`, or `tail` where its beginning is missing."""

_TYPE = "text/plain"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)", re.ASCII)


def log_entry(log: LogRow) -> dict[str, Any]:
    """Return a log as an agent lists its files; how its mode was is not known."""
    return {
        "name": log.name,
        "isDirectory": False,
        "lastModified": format_time(log.modified),
        "contentLength": len(log.content),
        "contentType": _TYPE,
    }


def log_headers(log: LogRow) -> dict[str, str]:
    """Return the headers that describe a log."""
    return {"Content-Type": _TYPE, "Last-Modified": http_date(log.modified)}


def kept_as(log: LogRow) -> str:
    """Return the value of `KEPT_HEADER`."""
    return "whole" if log.whole else "tail"


def part_of(content: bytes, byte_range: str | None) -> bytes:
    """Return what a range (`bytes=a-b` or `bytes=a-`) asks for. Raises BatchError InvalidRange."""
    if byte_range is None:
        return content
    match = _RANGE.fullmatch(byte_range)
    first = int(match[1]) if match is not None else len(content)
    last = int(match[2]) if match is not None and match[2] else len(content) - 1
    if first >= len(content) or last < first:
        text = "The range specified is invalid for the current size of the resource."
        raise BatchError(416, "InvalidRange", text)
    return content[first : last + 1]
