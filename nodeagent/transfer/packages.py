"""Application packages on a node: fetched from the service, unpacked aside, and put in place whole (spec/node.md §6).

Everything is made in `.staging` below the directory of applications, which only the agent can enter. What becomes
visible is a whole package with a name of its own, that nothing is ever changed in.
"""

import asyncio
import errno
import hashlib
import os
import random
import shutil
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import aiohttp
import structlog

from nodeagent.model.protocol import PREFIX, ApplicationPackage
from nodeagent.model.times import utc_now
from nodeagent.rules import transfer_retry
from nodeagent.rules.failures import disk_full, failure_of
from nodeagent.rules.package_zip import PackageZipError
from nodeagent.rules.packages import directory_name, reference
from nodeagent.rules.transfer_retry import Tries, Trouble
from nodeagent.transfer import http_trouble
from nodeagent.transfer.base import Meter, TransferFailedError, TransferSettings
from nodeagent.transfer.uninterrupted import in_thread
from nodeagent.transfer.unzip import RESERVE_BYTES, NoRoomError, unzip

if TYPE_CHECKING:
    from hashlib import _Hash

PACKAGE_ERROR = "ApplicationPackageError"
REFERENCE_DETAIL = "ApplicationPackageReference"

_STAGING = ".staging"
_ZIP = "package.zip"
_FILES = "files"
_READ_BYTES = 1 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
log = structlog.get_logger(__name__)


class _DownloadError(Exception):
    """The package cannot be fetched; the text says why, without anything secret."""


class _RequestError(Exception):
    """One request failed."""

    def __init__(self, why: str, trouble: Trouble, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.may_pass = transfer_retry.may_help(trouble, status)
        self.retry_after = retry_after


def package_failure(package: ApplicationPackage, message: str, reason: str | None = None) -> TransferFailedError:
    """Return the failure of one package, as a task shows it."""
    shown = reference(package.application_id, package.version)
    return TransferFailedError(
        failure_of(PACKAGE_ERROR, (REFERENCE_DETAIL, shown), ("Message", message), ("Reason", reason))
    )


class PackageInstaller:
    """Installs packages into one directory, which is the agent's own; `max_bytes` bounds what one unpacks to.

    `trust` says which certificates of an https service are good; without it those that the system trusts.
    `reached` is told the durable steps by name: fault tests kill the agent there.
    """

    def __init__(
        self,
        settings: TransferSettings,
        applications: Path,
        service_url: str,
        node_key: str,
        max_bytes: int,
        *,
        trust: ssl.SSLContext | None = None,
        reached: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._applications = applications
        self._url = f"{service_url.rstrip('/')}{PREFIX}/packages/"
        self._headers = {"Authorization": f"Bearer {node_key}", "Accept-Encoding": "identity"}
        self._max_bytes = max_bytes
        self._trust = trust
        self._reached = reached
        self._slots = asyncio.Semaphore(settings.transfers)
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["PackageInstaller"]:
        """Hold the HTTP session open."""
        silence = self._settings.transfer_idle_seconds
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=silence, sock_read=silence)
        connector = aiohttp.TCPConnector(ssl=True if self._trust is None else self._trust)
        async with aiohttp.ClientSession(
            headers=self._headers,
            timeout=timeout,
            connector=connector,
            auto_decompress=False,
            read_bufsize=_READ_BYTES,
        ) as session:
            self._session = session
            try:
                yield self
            finally:
                self._session = None

    def path(self, name: str) -> Path:
        """Return the absolute path of an installed package by the name of its directory."""
        return self._applications.absolute() / name

    async def keep_only(self, names: frozenset[str]) -> frozenset[str]:
        """Remove everything that is not one of these packages; return those that are there. Before any install."""
        return await in_thread(lambda _: self._keep_only(names))

    def _keep_only(self, names: frozenset[str]) -> frozenset[str]:
        self._applications.mkdir(mode=0o755, parents=True, exist_ok=True)
        with os.scandir(self._applications) as found:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
        for name, is_directory in entries:
            if name not in names or not is_directory:
                _remove(self._applications / name, is_directory=is_directory)
        return names & {name for name, is_directory in entries if is_directory}

    async def install(self, package: ApplicationPackage, meter: Meter) -> Path:
        """Bring one package into a directory of its own, and return it.

        Raises TransferFailedError: ApplicationPackageError, DiskFull.
        """
        if package.problem is not None:
            raise package_failure(package, package.problem)
        with _failures_told(package):
            meter.expect(1, package.size)
            async with self._slots, self._workplace() as work:
                await self._download(package, work / _ZIP, meter)
                self._reached("after_package_download")
                await self._unpack(work, meter)
                self._reached("after_package_unpack")
                path = await in_thread(lambda _: self._publish(work / _FILES, package))
                self._reached("after_package_rename")
        meter.finished()
        return path

    @asynccontextmanager
    async def _workplace(self) -> AsyncIterator[Path]:
        work = self._applications / _STAGING / uuid.uuid4().hex
        try:
            await in_thread(lambda _: _make_workplace(work))
            yield work
        finally:
            await in_thread(lambda _: _remove(work, is_directory=True))

    async def _download(self, package: ApplicationPackage, path: Path, meter: Meter) -> None:
        await in_thread(lambda _: _check_room(package.size, path.parent))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        download = _Download(package, descriptor, meter)
        try:
            async with asyncio.timeout(self._settings.transfer_seconds) as deadline:
                await self._fetch(download)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise _DownloadError(f"it took longer than {self._settings.transfer_seconds:g} s") from error
        finally:
            os.close(descriptor)

    async def _fetch(self, download: "_Download") -> None:
        tries = Tries(self._settings.transfer_tries)
        while True:
            before = download.received
            try:
                await self._go_on(download)
            except _RequestError as error:
                again = tries.failed_once(progress=download.received > before)
                if not (again and error.may_pass):
                    raise _DownloadError(str(error)) from error
                chance = random.random()  # noqa: S311 - jitter
                await asyncio.sleep(transfer_retry.pause(tries.failed, chance, error.retry_after))
            else:
                return

    async def _go_on(self, download: "_Download") -> None:
        """Fetch what is missing. Raises _RequestError."""
        if self._session is None:
            raise RuntimeError("the installer is not connected")
        headers = {"Range": f"bytes={download.received}-"} if download.received else {}
        url = self._url + download.package.sha256
        try:
            async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                _check_answer(response, download.received)
                if response.status == 200:
                    await download.start_anew()
                async for chunk in response.content.iter_chunked(_READ_BYTES):
                    await download.take(chunk)
        except (aiohttp.ClientError, TimeoutError) as error:
            # `from None`: the text of the HTTP client may have the answer in it, and so whatever the server repeats.
            raise _RequestError(str(http_trouble.of_exception(error)), Trouble.CONNECTION) from None
        await download.check()

    async def _unpack(self, work: Path, meter: Meter) -> None:
        loop = asyncio.get_running_loop()

        def work_in_thread(abandoned: Event) -> None:
            unzip(
                work / _ZIP,
                work / _FILES,
                max_bytes=self._max_bytes,
                abandoned=abandoned,
                expect=lambda size: _ignore(loop.call_soon_threadsafe(meter.expect, 0, size)),
                moved=lambda size: _ignore(loop.call_soon_threadsafe(meter.moved, size)),
            )

        await in_thread(work_in_thread)

    def _publish(self, files: Path, package: ApplicationPackage) -> Path:
        """Rename a whole package to the first free name: `a1`, version `2` and `a`, version `12` have the same."""
        name = directory_name(package, utc_now())
        files.chmod(0o755)
        for number in count(1):
            target = self.path(name if number == 1 else f"{name}-{number}")
            try:
                target.mkdir(mode=0o700)
            except FileExistsError:
                continue
            files.rename(target)  # over the empty directory, which made the name ours
            return target
        raise AssertionError("there is always a free name")


@dataclass(slots=True)
class _Download:
    """A zip file on its way."""

    package: ApplicationPackage
    descriptor: int
    meter: Meter
    received: int = 0
    digest: "_Hash" = field(default_factory=hashlib.sha256)

    async def take(self, chunk: bytes) -> None:
        """Write what has come. Raises _RequestError."""
        if self.received + len(chunk) > self.package.size:
            raise _RequestError("the service sends more than the package has", Trouble.ANSWER)
        await in_thread(lambda _: self._write(chunk))
        self.received += len(chunk)
        self.meter.moved(len(chunk))

    def _write(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        offset, rest = self.received, memoryview(chunk)
        while rest:
            written = os.pwrite(self.descriptor, rest, offset)
            offset, rest = offset + written, rest[written:]

    async def start_anew(self) -> None:
        """Forget what has come."""
        self.meter.moved(-self.received)
        self.received = 0
        self.digest = hashlib.sha256()
        await in_thread(lambda _: os.ftruncate(self.descriptor, 0))

    async def check(self) -> None:
        """Raise _RequestError unless the package is whole and what the service promised."""
        if self.received < self.package.size:
            raise _RequestError("the content ended too early", Trouble.INCOMPLETE)
        if self.digest.hexdigest() != self.package.sha256:
            await self.start_anew()
            raise _RequestError("the content is not what its checksum says", Trouble.CHECKSUM)


def _check_answer(response: aiohttp.ClientResponse, received: int) -> None:
    if response.status == 200:
        return
    if response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {received}-"):
        return
    if response.status == 404:
        raise _RequestError("the service has no such package any more", Trouble.STATUS, 404)
    after = transfer_retry.retry_after(response.headers.get("Retry-After"), utc_now())
    raise _RequestError(f"the service answered {response.status}", Trouble.STATUS, response.status, after)


@contextmanager
def _failures_told(package: ApplicationPackage) -> Iterator[None]:
    """Turn what can go wrong into the failure that the task shows."""
    try:
        yield
    except _DownloadError as error:
        raise package_failure(package, "Resource download failed", str(error)) from error
    except PackageZipError as error:
        raise package_failure(package, "The package cannot be unpacked", str(error)) from error
    except NoRoomError as error:
        raise _no_room(package, str(error)) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in _NO_SPACE:
            raise _no_room(package, reason) from error
        raise package_failure(package, "The package cannot be written on the node", reason) from error


def _no_room(package: ApplicationPackage, message: str) -> TransferFailedError:
    shown = reference(package.application_id, package.version)
    return TransferFailedError(disk_full((REFERENCE_DETAIL, shown), ("Message", message)))


def _check_room(size: int, directory: Path) -> None:
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize - RESERVE_BYTES
    if size > free:
        raise NoRoomError(f"the package's zip file has {size} bytes, and only {max(0, free)} are free for it")


def _make_workplace(work: Path) -> None:
    work.parent.mkdir(mode=0o700, exist_ok=True)
    work.mkdir(mode=0o700)
    (work / _FILES).mkdir(mode=0o700)


def _remove(path: Path, *, is_directory: bool) -> None:
    """Remove what nothing refers to; what cannot be removed stays, and does no harm."""
    try:
        if is_directory:
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("package leftovers stay", path=str(path), why=error.strerror or str(error))


def _ignore(_: object) -> None:
    return
