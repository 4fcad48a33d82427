"""Downloads over HTTP into a folder of the agent's own: who calls gets a whole file, or the failure of a task."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from nodeagent.model.values import NodeIdentityReference
from nodeagent.transfer import http_answers, http_trouble
from nodeagent.transfer.base import Meter, Tokens, TransferFailedError, TransferSettings
from nodeagent.transfer.http_answers import Validator
from nodeagent.transfer.http_session import HttpSession, OverdueError, Source
from nodeagent.transfer.http_staging import StagedFile, StagingError
from nodeagent.transfer.http_transfer import FileTransfer, NotModified
from nodeagent.transfer.http_trouble import GivenUpError, HttpTroubleError

__all__ = ["Downloads", "Fetched", "NotModified", "Validator"]

_THREADS = 4
"""Threads that write: more would only wait for the same disk."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole file in the staging folder, mode 0600, the agent's; whoever gets it moves or removes it."""

    path: Path
    size: int
    validator: Validator | None
    """None if the server gave none: such content can't be cached."""


class Downloads:
    """Brings files of the web into the staging folder."""

    def __init__(self, settings: TransferSettings, staging: Path, tokens: Tokens) -> None:
        """`staging`: a folder of the agent's own, on the file system that the files will go to."""
        self._settings = settings
        self._staging = staging
        self._session = HttpSession(settings, tokens)
        self._threads: ThreadPoolExecutor | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["Downloads"]:
        """Hold the connections open. Whatever is in the staging folder is removed first: nobody waits for it."""
        await asyncio.to_thread(_emptied, self._staging)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="download")
        try:
            async with self._session.connected():
                yield self
        finally:
            await asyncio.to_thread(self._threads.shutdown)
            self._threads = None

    async def fetch(
        self,
        url: str,
        *,
        path: str,
        meter: Meter,
        identity: NodeIdentityReference | None = None,
        known: Validator | None = None,
    ) -> Fetched | NotModified:
        """Download a file, or learn that it is still the version that is `known`.

        `path` is where it will go, for failures. The meter is told of bytes only. Raises TransferFailedError; then, as
        after a cancellation, nothing is left in the staging folder.
        """
        if self._threads is None:
            raise RuntimeError("the downloads are not connected")
        source = Source(self._session, url, identity)
        staged = StagedFile(self._staging / uuid4().hex, self._threads)
        try:
            with self._failures(source, url, path):
                async with source.limited():
                    brought = await FileTransfer(source, staged, meter, self._settings).run(known)
                    if not isinstance(brought, NotModified):
                        await staged.close()
                        return Fetched(staged.path, staged.held, brought)
        except BaseException:
            meter.moved(-staged.held)
            await staged.discard()
            raise
        await staged.discard()
        return brought

    async def authorize(
        self, url: str, *, path: str, known: Validator, identity: NodeIdentityReference | None = None
    ) -> bool:
        """Ask whether the URL opens a file (its SAS may have expired) and whether that is still the version `known`.

        It costs one request and no content. Raises TransferFailedError, as `fetch` would.
        """
        source = Source(self._session, url, identity)
        with self._failures(source, url, path):
            async with source.limited():
                return await self._asked(source, known)

    async def _asked(self, source: Source, known: Validator) -> bool:
        tries = source.tries()
        # GET, not HEAD: a signature may be for GET alone. One byte, if the server knows ranges; else it is hung up on.
        headers = {"Range": "bytes=0-0", **known.conditions()}
        while True:
            try:
                async with source.asked(headers) as response:
                    if response.status in (200, 206):
                        return known.same(http_answers.validator(response.headers))
                    if response.status in (304, 416):
                        return response.status == 304  # 416: it has become empty
                    raise await http_trouble.of_answer(response)
            except HttpTroubleError as trouble:
                await source.pause(tries, trouble)

    @contextmanager
    def _failures(self, source: Source, url: str, path: str) -> Iterator[None]:
        try:
            yield
        except GivenUpError as error:
            raise TransferFailedError(http_trouble.download_failure(error, url=url, path=path)) from error
        except StagingError as error:
            raise TransferFailedError(error.failure(path)) from error
        except OverdueError as error:
            seconds = self._settings.transfer_seconds
            raise TransferFailedError(
                http_trouble.deadline_failure(seconds, source.last, url=url, path=path)
            ) from error


def _emptied(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
