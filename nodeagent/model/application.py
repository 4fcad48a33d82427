"""Applications as the Batch API shows them (spec/rest.md §2.7), and what this service adds to manage them."""

from nodeagent.model.base import BatchModel
from nodeagent.model.times import UtcTime
from nodeagent.model.values import DisplayName


class Application(BatchModel):
    """An application as "get an application" shows it."""

    id: str
    display_name: str
    """Its id if it was given none: clients require one."""
    versions: tuple[str, ...]


class ApplicationUpdate(BatchModel):
    """The body of `PATCH /nodeagent/v1/applications/<id>`: what is left out stays."""

    display_name: DisplayName | None = None
    default_version: str | None = None


class PackageInfo(BatchModel):
    """One version of an application; `size` is that of its zip file in bytes."""

    version: str
    sha256: str
    size: int
    added: UtcTime


class ManagedApplication(BatchModel):
    """An application as `GET /nodeagent/v1/applications` shows it."""

    id: str
    display_name: str | None = None
    default_version: str | None = None
    packages: tuple[PackageInfo, ...]
