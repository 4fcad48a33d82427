"""Which application packages are on this node, and where: each version is installed once, however many want it.

A package counts as installed when its row is committed; its directory is whole before that. At the start everything
without a row goes. After a reboot all goes: Batch deploys packages anew then, and bytes that no fsync has followed
are trusted only as long as the machine runs (spec/node.md §6).
"""

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import structlog

from nodeagent.agent import failpoints
from nodeagent.agent.database import Database
from nodeagent.model.protocol import ApplicationPackage, NodeError, TransferPhase
from nodeagent.rules.packages import variables
from nodeagent.shim import kernel
from nodeagent.transfer.base import Meter, TransferFailedError
from nodeagent.transfer.packages import PACKAGE_ERROR, PackageInstaller, package_failure
from nodeagent.transfer.uninterrupted import in_thread, settled

Key = tuple[str, str, str]
"""Application and version without case, and content: a version that was added anew is another package."""

POOL_MESSAGE = "One or more application packages specified for the pool are invalid"
_BOOT = "packages_boot"
log = structlog.get_logger(__name__)


class Packages:
    """The packages of one node. `open` comes first; `errors` is what the heartbeats tell."""

    def __init__(self, database: Database, installer: PackageInstaller) -> None:
        self._database = database
        self._installer = installer
        self._installed: dict[Key, str] = {}
        self._flights: dict[Key, _Flight] = {}
        self._pool: Mapping[str, str] = MappingProxyType({})
        self.errors: tuple[NodeError, ...] = ()
        """What is wrong with the pool's packages; empty once they are all installed."""

    async def open(self) -> None:
        """Learn what is installed, and remove what a killed agent left half done."""
        boot = kernel.boot_id()
        rows = await self._database.write(lambda connection: _load(connection, boot))
        there = await self._installer.keep_only(frozenset(rows.values()))
        missing = [key for key, name in rows.items() if name not in there]
        if missing:
            await self._database.write(lambda connection: _forget(connection, missing))
        self._installed = {key: name for key, name in rows.items() if name in there}

    async def ensure(self, packages: Sequence[ApplicationPackage], meter: Meter) -> dict[str, str]:
        """Install what is missing of these packages, and return their variables.

        Raises TransferFailedError for the first that fails; what others wait for goes on.
        """
        for package in packages:
            if package.problem is not None:
                raise package_failure(package, package.problem)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._ensure_one(package, meter)) for package in packages]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return variables([(package, task.result()) for package, task in zip(packages, tasks, strict=True)])

    async def install_pool(self, packages: Sequence[ApplicationPackage]) -> None:
        """Install the packages of the pool, before the node asks for work; failures become `errors`."""
        meter = Meter("", TransferPhase.INSTALLING)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._try_one(package, meter)) for package in packages]
        results = [task.result() for task in tasks]
        self.errors = tuple(found for found in results if isinstance(found, NodeError))
        self._pool = variables(
            [(package, found) for package, found in zip(packages, results, strict=True) if isinstance(found, str)]
        )

    def pool_variables(self) -> dict[str, str]:
        """Return the variables of the pool's packages; those of a task's own win over them."""
        return dict(self._pool)

    async def _try_one(self, package: ApplicationPackage, meter: Meter) -> str | NodeError:
        try:
            return await self._ensure_one(package, meter)
        except TransferFailedError as error:
            log.warning("package of the pool not installed", why=str(error))
            return NodeError(code=PACKAGE_ERROR, message=POOL_MESSAGE, error_details=error.failure.details)

    async def _ensure_one(self, package: ApplicationPackage, meter: Meter) -> str:
        """Return the directory of a package, installed if it is not. Raises TransferFailedError."""
        key = (package.application_id.lower(), package.version.lower(), package.sha256)
        name = self._installed.get(key)
        if name is not None:
            path = self._installer.path(name)
            if await in_thread(lambda _: path.is_dir()):
                return str(path)
        flight = self._flights.get(key)
        if flight is None or flight.abandoned:
            flight = _Flight()
            self._flights[key] = flight
            flight.task = asyncio.create_task(self._install(key, package, flight))
        return await flight.wait(meter)

    async def _install(self, key: Key, package: ApplicationPackage, flight: "_Flight") -> str:
        try:
            path = await self._installer.install(package, flight.meter)
            row = (*key[:2], package.application_id, package.version, package.sha256, path.name)
            await self._database.write(lambda connection: _remember(connection, row))
            failpoints.hit("after_package_commit")
            self._installed[key] = path.name
            log.info("package installed", application=package.application_id, version=package.version)
            return str(path)
        finally:
            if self._flights.get(key) is flight:  # not a later one that took the place of an abandoned one
                del self._flights[key]


class _Flight:
    """One installation that several tasks may wait for. It ends when nobody waits any more."""

    def __init__(self) -> None:
        self.meter = _SharedMeter()
        self.task: asyncio.Task[str] | None = None
        self.abandoned = False
        """It was ended because nobody waited: who comes now begins another."""
        self._waiting = 0

    async def wait(self, meter: Meter) -> str:
        """Return the package's directory. Raises TransferFailedError."""
        if self.task is None:
            raise RuntimeError("the flight has not begun")
        self._waiting += 1
        self.meter.join(meter)
        try:
            return await asyncio.shield(self.task)
        finally:
            self.meter.leave(meter)
            self._waiting -= 1
            if not self._waiting and not self.task.done():
                self.abandoned = True
                self.task.cancel()
                await settled(self.task)


class _SharedMeter(Meter):
    """Tells all who wait how far the one installation is; who comes later is told what was before."""

    def __init__(self) -> None:
        super().__init__("", TransferPhase.INSTALLING)
        self._meters: list[Meter] = []

    def join(self, meter: Meter) -> None:
        """Tell one more."""
        known = self.progress()
        if known.files_total is not None:
            meter.expect(known.files_total, known.bytes_total)
            meter.moved(known.bytes_done)
        self._meters.append(meter)

    def leave(self, meter: Meter) -> None:
        """Tell one less."""
        self._meters.remove(meter)

    def expect(self, files: int, size: int | None) -> None:
        """So many more for everybody."""
        super().expect(files, size)
        for meter in self._meters:
            meter.expect(files, size)

    def moved(self, size: int) -> None:
        """So many more bytes for everybody."""
        super().moved(size)
        for meter in self._meters:
            meter.moved(size)

    def finished(self) -> None:
        """One more file for everybody."""
        super().finished()
        for meter in self._meters:
            meter.finished()


def _load(connection: sqlite3.Connection, boot: str) -> dict[Key, str]:
    """Return the directories of packages, forgotten if they are of an earlier boot."""
    known = connection.execute("SELECT value FROM meta WHERE key = ?", (_BOOT,)).fetchone()
    if known is None or known[0] != boot:
        connection.execute("DELETE FROM packages")
        connection.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (_BOOT, boot)
        )
    rows = connection.execute("SELECT application_key, version_key, sha256, directory FROM packages")
    return {(row[0], row[1], row[2]): row[3] for row in rows}


def _forget(connection: sqlite3.Connection, keys: Sequence[Key]) -> None:
    connection.executemany("DELETE FROM packages WHERE application_key = ? AND version_key = ? AND sha256 = ?", keys)


def _remember(connection: sqlite3.Connection, row: Sequence[str]) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO packages"
        " (application_key, version_key, application_id, version, sha256, directory) VALUES (?,?,?,?,?,?)",
        row,
    )
