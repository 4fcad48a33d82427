"""Answers of handlers, before they become HTTP (spec/rest.md §1.2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nodeagent.model.times import etag

WARNINGS_HEADER = "nodeagent-warnings"
"""Of "add a job" and "add a task": how many warnings there are, which "get" tells. Absent for none."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler answers. `url` becomes DataServiceId; `modified` becomes ETag and Last-Modified."""

    status: int
    body: Mapping[str, Any] | None = None
    url: str | None = None
    modified: datetime | None = None
    headers: Mapping[str, str] | None = None
    """More headers than those of every answer."""
    located: bool = False
    """Whether `url` is that of a new resource: `Location` is sent as well."""

    @property
    def etag(self) -> str | None:
        """The entity's ETag, if the answer carries one."""
        return None if self.modified is None else etag(self.modified)


def created(url: str, modified: datetime, headers: Mapping[str, str] | None = None) -> Reply:
    """Answer 201 with the place of the new entity."""
    return Reply(201, url=url, modified=modified, located=True, headers=headers)
