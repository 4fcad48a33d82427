"""What is wrong with a task's files, as far as it can be seen before anything is transferred (spec/node.md §4, §5).

The models say what a file looks like; here is what Batch refuses beyond that, property by property.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

from nodeagent.model.files import OutputFile, ResourceFile, UploadHeader
from nodeagent.model.job import JobCreate, JobManagerTask, JobPreparationTask, JobReleaseTask
from nodeagent.model.pool import StartTask
from nodeagent.model.task import TaskCreate
from nodeagent.model.values import NodeIdentityReference
from nodeagent.rules.resource_paths import checked, file_mode

AnyTask: TypeAlias = TaskCreate | JobManagerTask | JobPreparationTask | JobReleaseTask | StartTask

MAX_START_TASK_CHARACTERS = 32768
"""Of a start task as a whole, files and environment included (spec/node.md §18)."""
AUTO_STORAGE_NEEDED = "needs the settings auto_storage_url and auto_storage_key of the service"

_CONTAINER = re.compile(r"\$root|\$web|\$logs|(?=.{3,63}$)[a-z0-9](-?[a-z0-9])*", re.ASCII)
_BLANK = re.compile(r"[\x00-\x20]")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_OWN_HEADERS = frozenset({"authorization", "content-length", "host", "transfer-encoding", "x-ms-date", "x-ms-version"})
"""What the upload itself must say; a task that says it too could only break it."""


@dataclass(frozen=True, slots=True)
class FileFault:
    """One thing that is wrong; the value is not repeated, because most of these may hold a SAS."""

    path: str
    """JSON path of the property, e.g. `resourceFiles[1].filePath`."""
    reason: str | None
    """What would be right; None for a property that is missing."""


def task_file_faults(task: AnyTask, *, auto_storage: bool) -> Iterator[FileFault]:
    """Yield what is wrong with a task's files; `auto_storage` tells whether containers may be named without a URL."""
    for number, resource in enumerate(task.resource_files or ()):
        for fault in _of_resource(resource, auto_storage=auto_storage):
            yield FileFault(f"resourceFiles[{number}].{fault.path}", fault.reason)
    outputs: Sequence[OutputFile] = getattr(task, "output_files", None) or ()
    for number, output in enumerate(outputs):
        yield from _prefixed(f"outputFiles[{number}]", _of_output(output))


def job_file_faults(job: JobCreate, *, auto_storage: bool) -> Iterator[FileFault]:
    """Yield what is wrong with the files of a job's manager, preparation and release task."""
    special: dict[str, AnyTask | None] = {
        "jobManagerTask": job.job_manager_task,
        "jobPreparationTask": job.job_preparation_task,
        "jobReleaseTask": job.job_release_task,
    }
    for name, task in special.items():
        if task is not None:
            yield from _prefixed(name, task_file_faults(task, auto_storage=auto_storage))


def start_task_faults(task: StartTask, *, auto_storage: bool) -> Iterator[FileFault]:
    """Yield what is wrong with the files of a pool's start task, and with its size as a whole."""
    yield from _prefixed("startTask", task_file_faults(task, auto_storage=auto_storage))
    if len(task.to_json()) > MAX_START_TASK_CHARACTERS:
        yield FileFault("startTask", f"must not be longer than {MAX_START_TASK_CHARACTERS} characters as JSON")


def _prefixed(prefix: str, faults: Iterator[FileFault]) -> Iterator[FileFault]:
    for fault in faults:
        yield FileFault(f"{prefix}.{fault.path}", fault.reason)


def _of_resource(resource: ResourceFile, *, auto_storage: bool) -> Iterator[FileFault]:
    if resource.http_url is not None:
        yield from _told("httpUrl", _url_fault(resource.http_url))
    if resource.storage_container_url is not None:
        yield from _told("storageContainerUrl", _container_url_fault(resource.storage_container_url))
    name = resource.auto_storage_container_name
    if name is not None:
        yield from _told("autoStorageContainerName", _auto_storage_fault(name, auto_storage=auto_storage))
        if resource.identity_reference is not None:
            yield FileFault("identityReference", "goes only with httpUrl or storageContainerUrl")
    if resource.file_path is not None:
        yield from _told("filePath", _path_fault(resource.file_path, is_file=resource.http_url is not None))
    if resource.file_mode is not None:
        yield from _told("fileMode", _mode_fault(resource.file_mode))
    yield from _identity_faults(resource.identity_reference)


def _of_output(output: OutputFile) -> Iterator[FileFault]:
    if not output.file_pattern.strip():
        yield FileFault("filePattern", "must not be empty")
    elif "\x00" in output.file_pattern:
        yield FileFault("filePattern", "must not have a NUL character")
    container = output.destination.container
    where = "destination.container"
    yield from _told(f"{where}.containerUrl", _container_url_fault(container.container_url))
    if container.path is not None and "\x00" in container.path:
        yield FileFault(f"{where}.path", "must not have a NUL character")
    yield from _prefixed(where, _identity_faults(container.identity_reference))
    for number, header in enumerate(container.upload_headers or ()):
        yield from _prefixed(f"{where}.uploadHeaders[{number}]", _header_faults(header))


def _told(path: str, reason: str | None) -> Iterator[FileFault]:
    if reason is not None:
        yield FileFault(path, reason)


def _identity_faults(identity: NodeIdentityReference | None) -> Iterator[FileFault]:
    if identity is not None and not identity.resource_id:
        yield FileFault("identityReference.resourceId", None)


def _header_faults(header: UploadHeader) -> Iterator[FileFault]:
    if _HEADER.fullmatch(header.name) is None:
        yield FileFault("name", "must be the name of an HTTP header")
    elif header.name.lower() in _OWN_HEADERS:
        yield FileFault("name", "is a header that the upload itself sets")
    if any(character in (header.value or "") for character in "\r\n\x00"):
        yield FileFault("value", "must be one line")


def _path_fault(path: str, *, is_file: bool) -> str | None:
    if is_file and path.endswith("/"):
        return "must name the file, not only its directory"
    try:
        checked(path)
    except ValueError as error:
        return str(error)
    return None


def _mode_fault(text: str | None) -> str | None:
    try:
        file_mode(text)
    except ValueError as error:
        return str(error)
    return None


def _url_fault(url: str) -> str | None:
    parts = _split(url)
    if parts is None or parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        return "must be an http:// or https:// URL"
    return None


def _container_url_fault(url: str) -> str | None:
    fault = _url_fault(url)
    parts = _split(url)
    if fault is not None or parts is None:
        return fault
    segments = [segment for segment in parts.path.split("/") if segment]
    if len(segments) <= (1 if _names_no_account(parts.hostname or "") else 0):
        return "must name a container, as in https://account.blob.core.windows.net/container"
    return None


def _names_no_account(host: str) -> bool:
    """Emulators are reached by an address, or by localhost: there the account is the first part of the path."""
    if host == "localhost":
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _auto_storage_fault(name: str, *, auto_storage: bool) -> str | None:
    if _CONTAINER.fullmatch(name) is None:
        return "must be the name of a container: 3 to 63 lower-case letters, digits and single hyphens"
    return None if auto_storage else AUTO_STORAGE_NEEDED


def _split(url: str) -> SplitResult | None:
    """Return the parts of a URL; None for what no client could request."""
    if _BLANK.search(url) is not None:
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts
