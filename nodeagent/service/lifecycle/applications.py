"""The verbs of applications and their packages, and what references to them mean (spec/node.md §6, rest.md §2.7)."""

from collections.abc import Iterable
from datetime import datetime

from nodeagent.model.protocol import ApplicationPackage, Work
from nodeagent.model.values import ApplicationPackageReference
from nodeagent.rules.packages import id_problem, reference, version_problem
from nodeagent.service.errors import invalid_property, refusal
from nodeagent.service.store import applications, pools
from nodeagent.service.store.applications import ApplicationRow, PackageRow
from nodeagent.service.store.database import Transaction


def require(tx: Transaction, application_id: str) -> ApplicationRow:
    """Return an application. Raises ApplicationNotFound."""
    found = applications.get(tx, application_id)
    if found is None:
        raise refusal("ApplicationNotFound")
    return found


def require_package(tx: Transaction, application_id: str, version: str) -> PackageRow:
    """Return a package. Raises ApplicationNotFound, ApplicationPackageNotFound."""
    require(tx, application_id)
    found = applications.find(tx, application_id, version)
    if found is None or not version:
        raise refusal("ApplicationPackageNotFound")
    return found


def check_names(application_id: str, version: str) -> None:
    """Refuse ids and versions that Batch would refuse. Raises InvalidPropertyValue."""
    for name, value, problem in (
        ("applicationId", application_id, id_problem(application_id)),
        ("version", version, version_problem(version)),
    ):
        if problem is not None:
            raise invalid_property(name, value[:256], problem)


def add_package(
    tx: Transaction, application_id: str, version: str, *, sha256: str, size: int, now: datetime
) -> tuple[PackageRow, bool]:
    """Add a version; return it, and whether it is new: the same content a second time changes nothing.

    Raises ApplicationPackageExists.
    """
    present = applications.find(tx, application_id, version)
    if present is None:
        applications.insert(tx, application_id, version, sha256, size, now)
    elif present.sha256 != sha256:
        raise refusal("ApplicationPackageExists", ("Reference", reference(present.application_id, present.version)))
    return require_package(tx, application_id, version), present is None


def remove_package(tx: Transaction, application_id: str, version: str) -> None:
    """Remove a version that nothing needs.

    Raises ApplicationNotFound, ApplicationPackageNotFound, ApplicationPackageInUse.
    """
    package = require_package(tx, application_id, version)
    user = applications.referrer(tx, package)
    if user is not None:
        raise refusal("ApplicationPackageInUse", ("UsedBy", user))
    applications.delete(tx, application_id, version)


def change(
    tx: Transaction, application_id: str, *, display_name: str | None, default_version: str | None
) -> ApplicationRow:
    """Change the name for people, or the default version; None leaves it as it is.

    Raises ApplicationNotFound, ApplicationPackageNotFound.
    """
    application = require(tx, application_id)
    if default_version is not None:
        package = require_package(tx, application_id, default_version)
        applications.set_default(tx, application.id, package.version)
    if display_name is not None:
        applications.set_display_name(tx, application.id, display_name)
    return require(tx, application_id)


def check_pool(tx: Transaction, references: Iterable[ApplicationPackageReference]) -> None:
    """Refuse references of a pool that mean nothing. Raises InvalidApplicationPackageReferences."""
    wrong = [package for package in resolve(tx, references) if package.problem is not None]
    if wrong:
        shown = [(reference(package.application_id, package.version), package.problem or "") for package in wrong]
        raise refusal("InvalidApplicationPackageReferences", *shown)


def resolve(tx: Transaction, references: Iterable[ApplicationPackageReference]) -> tuple[ApplicationPackage, ...]:
    """Return what references mean now, each package once; those that mean nothing have a problem."""
    found: dict[tuple[str, str], ApplicationPackage] = {}
    for wanted in references:
        package = _resolved(tx, wanted)
        found.setdefault((package.application_id.lower(), package.version.lower()), package)
    return tuple(found.values())


def _resolved(tx: Transaction, wanted: ApplicationPackageReference) -> ApplicationPackage:
    row = applications.find(tx, wanted.application_id, wanted.version)
    if row is None:
        return ApplicationPackage(
            application_id=wanted.application_id, version=wanted.version or "", problem=_problem(tx, wanted)
        )
    return ApplicationPackage(
        application_id=row.application_id,
        version=row.version,
        is_default=row.is_default,
        sha256=row.sha256,
        size=row.size,
    )


def _problem(tx: Transaction, wanted: ApplicationPackageReference) -> str:
    if applications.get(tx, wanted.application_id) is None:
        return "There is no application of this id"
    if wanted.version:
        return "The application has no such version"
    return "The reference names no version, and the application has no default version"


def of_pool(tx: Transaction, pool_id: str) -> tuple[ApplicationPackage, ...]:
    """Return the packages that every node of a pool installs; none if the pool is gone."""
    pool = pools.get(tx, pool_id)
    return () if pool is None else resolve(tx, pool.spec.application_package_references or ())


def with_packages(tx: Transaction, merged: Work, references: tuple[ApplicationPackageReference, ...] | None) -> Work:
    """Add the packages that a task refers to, as they are now: a retry may get a newer default version."""
    if not references:
        return merged
    return merged.model_copy(update={"application_packages": resolve(tx, references)})
