"""Resource files: what is brought from where, and where the blobs of a container go (spec/node.md §4)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit, urlunsplit

from nodeagent.model.files import ResourceFile
from nodeagent.model.values import NodeIdentityReference
from nodeagent.rules import resource_paths

FOLDER_METADATA = "hdi_isfolder"
"""Metadata of a blob that only stands for a directory, where storage has directories (and tools make them)."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """One file behind a URL."""

    url: str = field(repr=False)
    """With its SAS, if it has one: never shown, see `rules.urls.shown`."""
    path: str
    """Where it goes, relative to the place."""
    mode: int
    identity: NodeIdentityReference | None


@dataclass(frozen=True, slots=True)
class ContainerSource:
    """The blobs of a container whose names begin with a prefix; the empty prefix means all."""

    url: str = field(repr=False)
    """With its SAS, if it has one: never shown, see `rules.urls.shown`."""
    prefix: str
    directory: str
    """Where the blobs go, relative to the place; empty for the place itself."""
    mode: int
    identity: NodeIdentityReference | None


def source_of(file: ResourceFile) -> FileSource | ContainerSource:
    """Return what a resource file asks for.

    Raises ValueError, with a sentence that says what would be right, for a path that leaves the place or cannot be.
    """
    mode = resource_paths.file_mode(file.file_mode)
    if file.http_url is not None:
        if (file.file_path or "").endswith("/"):
            raise ValueError("the path must name the file, not only its directory")
        path = "/".join(resource_paths.checked(file.file_path or ""))
        return FileSource(file.http_url, path, mode, file.identity_reference)
    if file.storage_container_url is None:
        raise ValueError("a container of the linked storage has no URL of its own: the service replaces it by one")
    return ContainerSource(
        file.storage_container_url,
        file.blob_prefix or "",
        _directory(file.file_path),
        mode,
        file.identity_reference,
    )


def _directory(file_path: str | None) -> str:
    """Return the directory that blobs go to; none, empty and `.` mean the place itself."""
    if file_path is None or file_path in ("", ".", "./"):
        return ""
    return "/".join(resource_paths.checked(file_path.removesuffix("/")))


def is_folder(name: str, metadata: Mapping[str, str]) -> bool:
    """Whether a blob only stands for a directory: no file is made of it."""
    return name.endswith("/") or any(
        key.lower() == FOLDER_METADATA and value.lower() == "true" for key, value in metadata.items()
    )


def destination(directory: str, name: str) -> str:
    """Return where a blob goes: it keeps its full name below the directory.

    Raises ValueError where no file can have that name: an empty part (`a//b`, `/a`), `.` and `..`, NUL, too long. No
    name is changed to one that can be, or two blobs might become one file.
    """
    for part in name.split("/"):
        if part in ("", ".", ".."):
            raise ValueError(f"the blob name {name!r} has the part {part!r}, which no file can be named")
    try:
        return "/".join(resource_paths.checked(f"{directory}/{name}" if directory else name))
    except ValueError as error:
        raise ValueError(f"the blob name {name!r} cannot be a file's name here: {error}") from None


def blob_url(container_url: str, name: str) -> str:
    """Return the URL of a blob: that of its container with the name, percent-encoded, before the SAS.

    Raises ValueError for what is no URL.
    """
    parts = urlsplit(container_url)
    return urlunsplit(
        (parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{quote(name, safe='/~')}", parts.query, "")
    )
