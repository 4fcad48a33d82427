"""Foresight about the SAS of a task's URLs: which will not open what the task needs, or not long enough.

Times and permissions stand in the SAS itself, so this is known when the task is added, before anything is computed.
The signature is never looked at beyond its form, and nothing of a SAS but its times is ever repeated.
"""

import binascii
import re
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote

from nodeagent.model.files import OutputFile, ResourceFile
from nodeagent.model.job import JobCreate, JobManagerTask, JobPreparationTask
from nodeagent.model.task import TaskCreate
from nodeagent.model.times import UNLIMITED, format_time

SAS_EXPIRED = "SasExpired"
SAS_NOT_YET_VALID = "SasNotYetValid"
SAS_EXPIRES_BEFORE_END = "SasExpiresBeforeEnd"
SAS_LACKS_PERMISSION = "SasLacksPermission"
SAS_MALFORMED = "SasMalformed"

OPEN_END_RESOURCES = timedelta(hours=1)
"""How long a SAS of resource files should hold for a task without a time limit: until its files have come."""
OPEN_END_OUTPUT = timedelta(hours=24)
"""The same for output files, which go when the task has ended, and nobody knows when that will be."""

_TIME = re.compile(r"(\d{4}-\d{2}-\d{2})(?:T(\d{2}:\d{2})(?::(\d{2})(?:\.\d{1,7})?)?(Z|[+-]\d{2}:\d{2}))?", re.ASCII)
_SIGNATURE_BYTES = 32
_CONTAINERS = ("c", "d")
"""Values of `sr` that open more than one blob: a container, a directory in it."""


class TaskWithFiles(Protocol):
    """Any kind of task; those without output files need not have the property."""

    @property
    def resource_files(self) -> Sequence[ResourceFile] | None:
        """The files to bring."""


@dataclass(frozen=True, slots=True)
class SasWarning:
    """One thing that will go wrong, or may."""

    code: str
    property: str
    """JSON path of the URL's property, e.g. `resourceFiles[0].httpUrl`."""
    message: str

    def to_wire(self) -> dict[str, str]:
        """Return the JSON form."""
        return {"code": self.code, "property": self.property, "message": self.message}


@dataclass(frozen=True, slots=True)
class _Need:
    """What a URL must be good for."""

    property: str
    url: str
    permissions: tuple[str, ...]
    """Each is a set of letters, one of which is enough."""
    container: bool
    """Whether more than one blob is opened."""
    open_end: timedelta


@dataclass(frozen=True, slots=True)
class _Sas:
    start: datetime | None
    expiry: datetime | None
    permissions: str | None
    """None where a stored access policy says them."""
    resource: str | None
    """`sr`; None for a SAS of the account."""
    resource_types: str | None
    """`srt` of a SAS of the account."""


class _MalformedError(ValueError):
    """A SAS that no service can accept; the text says why."""


def warnings(task: TaskWithFiles, now: datetime, max_wall_clock: timedelta) -> tuple[SasWarning, ...]:
    """Return what is wrong with the SAS of a task's files, in the order of the properties.

    A SAS must hold from `now` for `max_wall_clock`; where that is unlimited, for `OPEN_END_RESOURCES` or
    `OPEN_END_OUTPUT`. URLs without a SAS (public, or opened by an identity) are never complained about.
    """
    return tuple(
        SasWarning(code, need.property, message)
        for need in _needs(task)
        for code, message in _of_url(need, now, max_wall_clock)
    )


def task_warnings(task: TaskCreate | JobManagerTask | JobPreparationTask, now: datetime) -> tuple[SasWarning, ...]:
    """Return what is wrong with the SAS of a task that is to be added now."""
    limit = UNLIMITED if task.constraints is None else task.constraints.max_wall_clock_time
    return warnings(task, now, limit)


def job_warnings(job: JobCreate, now: datetime) -> tuple[SasWarning, ...]:
    """Return the same of a job's manager, preparation and release task, their properties named from the job on."""
    manager, preparation, release = job.job_manager_task, job.job_preparation_task, job.job_release_task
    found: list[tuple[str, tuple[SasWarning, ...]]] = []
    if manager is not None:
        found.append(("jobManagerTask", task_warnings(manager, now)))
    if preparation is not None:
        found.append(("jobPreparationTask", task_warnings(preparation, now)))
    if release is not None:
        found.append(("jobReleaseTask", warnings(release, now, release.max_wall_clock_time)))
    return tuple(
        SasWarning(item.code, f"{name}.{item.property}", item.message) for name, items in found for item in items
    )


def told(
    task: TaskWithFiles, created: datetime, now: datetime, max_wall_clock: timedelta, *, completed: bool
) -> tuple[SasWarning, ...]:
    """Return what is shown with a task: what was known when it was added, and what has expired since.

    Of a completed task only the former: its files have come and gone.
    """
    if completed:
        return warnings(task, created, max_wall_clock)
    return tuple(
        SasWarning(code, need.property, message)
        for need in _needs(task)
        for code, message in _told_of_url(need, created, now, max_wall_clock)
    )


def _told_of_url(need: _Need, created: datetime, now: datetime, max_wall_clock: timedelta) -> Iterator[tuple[str, str]]:
    expired = [item for item in _of_url(need, now, max_wall_clock) if item[0] == SAS_EXPIRED]
    yield from expired
    for item in _of_url(need, created, max_wall_clock):
        if not expired or item[0] in (SAS_LACKS_PERMISSION, SAS_MALFORMED):
            yield item


def _needs(task: TaskWithFiles) -> Iterator[_Need]:
    for number, file in enumerate(task.resource_files or ()):
        where = f"resourceFiles[{number}]"
        if file.http_url is not None:
            yield _Need(f"{where}.httpUrl", file.http_url, ("r",), container=False, open_end=OPEN_END_RESOURCES)
        if file.storage_container_url is not None:
            url = file.storage_container_url
            yield _Need(f"{where}.storageContainerUrl", url, ("r", "l"), container=True, open_end=OPEN_END_RESOURCES)
    outputs: Sequence[OutputFile] = getattr(task, "output_files", None) or ()
    for number, output in enumerate(outputs):
        where = f"outputFiles[{number}].destination.container.containerUrl"
        url = output.destination.container.container_url
        yield _Need(where, url, ("wc",), container=True, open_end=OPEN_END_OUTPUT)


def _of_url(need: _Need, now: datetime, max_wall_clock: timedelta) -> Iterator[tuple[str, str]]:
    try:
        sas = _parse(need.url.partition("#")[0].partition("?")[2])
    except _MalformedError as error:
        yield SAS_MALFORMED, str(error)
        return
    if sas is None:
        return
    yield from _of_times(sas, need, now, max_wall_clock)
    lacking = _lacking(sas, need)
    if lacking is not None:
        yield SAS_LACKS_PERMISSION, lacking


def _of_times(sas: _Sas, need: _Need, now: datetime, max_wall_clock: timedelta) -> Iterator[tuple[str, str]]:
    if sas.start is not None and sas.start > now:
        yield SAS_NOT_YET_VALID, f"the SAS is not valid before {format_time(sas.start)}"
    if sas.expiry is None:
        return
    left = sas.expiry - now
    if left <= timedelta(0):
        yield SAS_EXPIRED, f"the SAS expired at {format_time(sas.expiry)}"
    elif max_wall_clock < UNLIMITED and left < max_wall_clock:
        yield (
            SAS_EXPIRES_BEFORE_END,
            f"the SAS expires at {format_time(sas.expiry)}, before maxWallClockTime is over",
        )
    elif max_wall_clock >= UNLIMITED and left < need.open_end:
        hours = need.open_end // timedelta(hours=1)
        yield (
            SAS_EXPIRES_BEFORE_END,
            f"the SAS expires at {format_time(sas.expiry)}, in less than {hours} h, and the task has no time limit",
        )


def _lacking(sas: _Sas, need: _Need) -> str | None:
    """Return what a SAS does not allow although the task needs it."""
    if need.container and sas.resource is not None and sas.resource not in _CONTAINERS:
        return "the SAS opens one blob, not the container"
    if sas.resource_types is not None:
        wanted = "co" if need.container and "l" in need.permissions else "o"
        missing = [letter for letter in wanted if letter not in sas.resource_types]
        if missing:
            return f"the SAS of the account does not have the resource type '{missing[0]}'"
    if sas.permissions is None:
        return None
    for letters in need.permissions:
        if not any(letter in sas.permissions for letter in letters):
            return f"the SAS does not have the permission {' or '.join(repr(letter) for letter in letters)}"
    return None


@lru_cache(maxsize=256)  # the many files of a task mostly have the SAS of one container
def _parse(text: str) -> _Sas | None:
    """Return the SAS of a URL's query; None if it has none, or is of another kind. Raises _MalformedError."""
    query = _query(text)
    signed = "sig" in query and not {"sr", "srt", "si"}.isdisjoint(query)
    if not signed and not {"sv", "se", "sp"} <= query.keys():
        return None
    _check_signature(query.get("sig"))
    policy = "si" in query
    for name, meaning in (("se", "expiry"), ("sp", "permissions")):
        if name not in query and not policy:
            raise _MalformedError(f"the SAS has no {meaning} ({name}) and names no stored access policy")
    return _Sas(
        start=_time(query, "st"),
        expiry=_time(query, "se"),
        permissions=query.get("sp"),
        resource=query.get("sr"),
        resource_types=None if "sr" in query else query.get("srt"),
    )


def _query(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split("&"):
        name, _, value = part.partition("=")
        found.setdefault(unquote(name).lower(), unquote(value))
    return found


def _check_signature(signature: str | None) -> None:
    if signature is None:
        raise _MalformedError("the SAS has no signature (sig)")
    if "%" in signature:
        raise _MalformedError("the signature of the SAS is percent-encoded twice")
    try:
        # some clients leave a '+' unencoded, which others read as a blank: storage takes both
        size = len(b64decode(signature.replace(" ", "+"), validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if size != _SIGNATURE_BYTES:
        raise _MalformedError("the signature of the SAS is cut off or is not base64")


def _time(query: dict[str, str], name: str) -> datetime | None:
    if name not in query:
        return None
    found = _moment(query[name])
    if found is None:
        raise _MalformedError(f"the {'expiry' if name == 'se' else 'start'} of the SAS ({name}) is not a time")
    return found


def _moment(text: str) -> datetime | None:
    """Return a time in one of the forms that storage takes: a day, to the minute, to the second."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    day, minute, second, zone = match.groups()
    try:
        offset = "+00:00" if zone in (None, "Z") else zone
        return datetime.fromisoformat(f"{day}T{minute or '00:00'}:{second or '00'}{offset}").astimezone(UTC)
    except (ValueError, OverflowError):
        return None
