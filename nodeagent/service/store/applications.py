"""Rows of applications and their packages."""

from dataclasses import dataclass
from datetime import datetime

from nodeagent.model.enums import JobState, TaskState
from nodeagent.service.store.columns import from_micros, to_micros
from nodeagent.service.store.database import Row, Transaction


@dataclass(frozen=True, slots=True)
class PackageRow:
    """One version of an application; `size` is that of its zip file in bytes."""

    application_id: str
    version: str
    sha256: str
    size: int
    added: datetime
    is_default: bool


@dataclass(frozen=True, slots=True)
class ApplicationRow:
    """An application with its versions, which are ordered by name. It has at least one."""

    id: str
    display_name: str | None
    packages: tuple[PackageRow, ...]

    @property
    def default_version(self) -> str | None:
        """What a reference without a version means."""
        return next((package.version for package in self.packages if package.is_default), None)


_PACKAGES = """
SELECT a.id, v.version, v.sha256, v.size, v.added, a.default_version_key IS v.version_key
FROM applications a JOIN application_packages v ON v.application_key = a.key
"""


def _package(row: Row) -> PackageRow:
    return PackageRow(
        application_id=row[0],
        version=row[1],
        sha256=row[2],
        size=row[3],
        added=from_micros(row[4]),
        is_default=bool(row[5]),
    )


def _application(tx: Transaction, row: Row) -> ApplicationRow:
    packages = tx.execute(f"{_PACKAGES} WHERE a.key = ? ORDER BY v.version_key", (row[0],))
    return ApplicationRow(id=row[1], display_name=row[2], packages=tuple(_package(package) for package in packages))


def get(tx: Transaction, application_id: str) -> ApplicationRow | None:
    """Return an application by its id, in any case."""
    row = tx.one("SELECT key, id, display_name FROM applications WHERE key = ?", (application_id.lower(),))
    return None if row is None else _application(tx, row)


def page(tx: Transaction, *, after: str | None = None, limit: int = 1000) -> list[ApplicationRow]:
    """Return up to `limit` applications with ids after `after`, ordered by id."""
    rows = tx.execute(
        "SELECT key, id, display_name FROM applications WHERE key > ? ORDER BY key LIMIT ?",
        ((after or "").lower(), limit),
    )
    return [_application(tx, row) for row in rows]


def find(tx: Transaction, application_id: str, version: str | None) -> PackageRow | None:
    """Return a package by id and version, in any case; without a version, the default one."""
    which = "v.version_key = ?" if version else "v.version_key = coalesce(a.default_version_key, ?)"
    row = tx.one(f"{_PACKAGES} WHERE a.key = ? AND {which}", (application_id.lower(), (version or "").lower()))
    return None if row is None else _package(row)


def insert(tx: Transaction, application_id: str, version: str, sha256: str, size: int, now: datetime) -> None:
    """Add a package, and its application if that is new. Raises sqlite3.IntegrityError if the version is there."""
    key = application_id.lower()
    tx.execute("INSERT INTO applications (key, id) VALUES (?, ?) ON CONFLICT DO NOTHING", (key, application_id))
    tx.execute(
        "INSERT INTO application_packages (application_key, version_key, version, sha256, size, added)"
        " VALUES (?,?,?,?,?,?)",
        (key, version.lower(), version, sha256, size, to_micros(now)),
    )


def set_display_name(tx: Transaction, application_id: str, name: str) -> None:
    """Name an application for people."""
    tx.execute("UPDATE applications SET display_name = ? WHERE key = ?", (name, application_id.lower()))


def set_default(tx: Transaction, application_id: str, version: str) -> None:
    """Say what references without a version mean from now on."""
    tx.execute(
        "UPDATE applications SET default_version_key = ? WHERE key = ?", (version.lower(), application_id.lower())
    )


def delete(tx: Transaction, application_id: str, version: str) -> None:
    """Remove a package, and its application with the last of them; a default version that goes leaves none."""
    keys = (application_id.lower(), version.lower())
    tx.execute("DELETE FROM application_packages WHERE application_key = ? AND version_key = ?", keys)
    tx.execute("UPDATE applications SET default_version_key = NULL WHERE key = ? AND default_version_key = ?", keys)
    tx.execute(
        "DELETE FROM applications WHERE key = :key"
        " AND NOT EXISTS (SELECT 1 FROM application_packages WHERE application_key = :key)",
        {"key": keys[0]},
    )


def contents(tx: Transaction) -> frozenset[str]:
    """Return the SHA-256 digests of all packages."""
    return frozenset(row[0] for row in tx.execute("SELECT DISTINCT sha256 FROM application_packages"))


def has_content(tx: Transaction, sha256: str) -> bool:
    """Tell whether some package has this content."""
    return tx.one("SELECT 1 FROM application_packages WHERE sha256 = ? LIMIT 1", (sha256,)) is not None


_POOL_REFERENCES = """
SELECT 'pool ' || p.id FROM pools p, json_each(p.spec, '$.applicationPackageReferences') r
"""
_OPEN_TASK_REFERENCES = """
SELECT 'task ' || t.id || ' of job ' || j.id
FROM jobs j JOIN tasks t ON t.job_num = j.num JOIN task_specs s ON s.task_num = t.num,
     json_each(s.spec, '$.applicationPackageReferences') r
"""
_OPEN_TASKS = f"""
j.state NOT IN ('{JobState.COMPLETED.value}', '{JobState.DELETING.value}') AND t.state <> '{TaskState.COMPLETED.value}'
AND s.spec LIKE '%"applicationPackageReferences"%' AND
"""


def referrer(tx: Transaction, package: PackageRow) -> str | None:
    """Return a pool, or a task that has not completed, that refers to a package, as a person would name it.

    It reads the definitions of all tasks that are not completed: meant for the rare removal of a package.
    """
    versions = [package.version.lower(), *([""] if package.is_default else [])]
    marks = ",".join("?" * len(versions))
    meant = (
        "lower(json_extract(r.value, '$.applicationId')) = ?"
        f" AND lower(coalesce(json_extract(r.value, '$.version'), '')) IN ({marks}) LIMIT 1"
    )
    parameters = (package.application_id.lower(), *versions)
    row = tx.one(f"{_POOL_REFERENCES} WHERE {meant}", parameters)
    row = row or tx.one(f"{_OPEN_TASK_REFERENCES} WHERE {_OPEN_TASKS} {meant}", parameters)
    return None if row is None else str(row[0])
