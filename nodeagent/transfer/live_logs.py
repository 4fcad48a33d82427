"""stdout.txt and stderr.txt are uploaded while the task runs, where outputFiles name them (off by default).

Every so often the new bytes are sent as a further block, and the blob is made of all blocks so far. Small blocks are
joined from time to time, so each byte is sent twice at most, but for the last few. What is uploaded after the task's
end replaces the blob. Only rules that apply whatever the exit code: of the others nobody knows yet whether they will.
"""

import asyncio
import os
import posixpath

import structlog

from nodeagent.model.enums import UploadCondition
from nodeagent.model.files import OutputFile
from nodeagent.rules.file_patterns import FilePatternError, file_pattern
from nodeagent.rules.uploads import UploadHeaderError, blob_headers, blob_name
from nodeagent.transfer.blob_upload import BLOCK_BYTES, MOST_BLOCKS
from nodeagent.transfer.block_blob import BlobSession, Block, BlockBlob, Tally, Target, block_of
from nodeagent.transfer.file_walk import open_regular
from nodeagent.transfer.http_trouble import GivenUpError
from nodeagent.transfer.output_files import OutputFiles
from nodeagent.transfer.run_as import RunAsError, UserThread
from nodeagent.transfer.uninterrupted import uninterrupted
from nodeagent.transfer.upload_plan import Uploads

log = structlog.get_logger(__name__)

LOGS = ("stdout.txt", "stderr.txt")
MOST_SMALL = 50
"""So many blocks at the end may be smaller than BLOCK_BYTES before they are joined."""


class LiveLogs:
    """Follows the logs of running tasks."""

    def __init__(self, output_files: OutputFiles, seconds: float) -> None:
        self._session = output_files.session
        self._seconds = seconds

    async def follow(self, uploads: Uploads) -> None:
        """Upload what comes, until this is cancelled; at once back if no rule names a log. Raises nothing else."""
        followed = [
            _LiveLog(self._session, os.path.join(uploads.root, name), target)  # noqa: PTH118 - opened by its text
            for name in LOGS
            for target in live_targets(uploads, name)
        ]
        if not followed:
            return
        try:
            async with UserThread(uploads.run_as) as user:
                while True:
                    await asyncio.sleep(self._seconds)
                    for each in followed:
                        await each.catch_up(user)
        except RunAsError as error:
            log.warning("logs not followed", execution=uploads.execution_id, why=str(error))


def live_targets(uploads: Uploads, name: str) -> list[Target]:
    """Return the blobs to which a log of the task's directory goes whatever the exit code."""
    targets = (_target(uploads, rule, name) for rule in uploads.output_files)
    return [target for target in targets if target is not None]


def _target(uploads: Uploads, rule: OutputFile, name: str) -> Target | None:
    if rule.upload_options.upload_condition is not UploadCondition.TASK_COMPLETION:
        return None
    container = rule.destination.container
    try:
        pattern = file_pattern(rule.file_pattern, uploads.environment)
        base = posixpath.normpath(posixpath.join(str(uploads.wd), pattern.base))
        path = str(uploads.root / name)
        if not path.startswith(f"{base.rstrip('/')}/"):
            return None
        relative = path.removeprefix(base).lstrip("/")
        if not pattern.matches(relative.split("/")):
            return None
        blob = blob_name(container.path, pattern, relative)
        return Target(
            container.container_url,
            blob,
            blob_headers(container.upload_headers or (), blob),
            container.identity_reference,
        )
    except (FilePatternError, UploadHeaderError):  # told when the task has ended
        return None


class _LiveLog:
    """One log and its blob."""

    def __init__(self, session: BlobSession, path: str, target: Target) -> None:
        self._session = session
        self._path = path
        self._target = target
        self._inode: int | None = None
        self._blocks: list[Block] = []
        self._complaint = ""

    async def catch_up(self, user: UserThread) -> None:
        """Upload what is new; what goes wrong is logged, once, and tried again the next time."""
        complaint = ""
        try:
            async with asyncio.timeout(self._session.settings.transfer_seconds):
                await self._catch_up(user)
        except GivenUpError as error:
            self._blocks.clear()  # whatever there is in storage now: the next time everything is sent
            complaint = str(error)
        except TimeoutError:
            self._blocks.clear()
            complaint = "it took too long"
        except FileNotFoundError:
            return  # nothing written yet
        except OSError as error:
            complaint = error.strerror or type(error).__name__
        if complaint and complaint != self._complaint:
            log.warning("log not uploaded while its task runs", blob=self._target.shown, why=complaint)
        self._complaint = complaint

    async def _catch_up(self, user: UserThread) -> None:
        handle, found = await user.open(lambda: open_regular(self._path), lambda opened: os.close(opened[0]))
        try:
            if found.st_ino != self._inode or found.st_size < self._sent:
                self._blocks.clear()
                self._inode = found.st_ino
            if found.st_size > self._sent:
                await self._send(handle, found.st_size)
        finally:
            os.close(handle)

    @property
    def _sent(self) -> int:
        return sum(block.size for block in self._blocks)

    async def _send(self, handle: int, size: int) -> None:
        kept = _kept(self._blocks, size)
        blocks = self._blocks[:kept]
        blob = BlockBlob(self._session, self._target, Tally(), None)
        at = sum(block.size for block in blocks)
        while at < size and len(blocks) < MOST_BLOCKS:
            async with self._session.buffers:
                data = await asyncio.to_thread(os.pread, handle, min(BLOCK_BYTES, size - at), at)
                if not data:
                    break  # it has become shorter: seen the next time
                block = block_of(len(blocks), data)
                await blob.stage(block, data)
            blocks.append(block)
            at += block.size
        # Not to be cut: the storage could still be at it when the upload of the task's end has overtaken it.
        await uninterrupted(blob.commit(blocks, None))
        self._blocks = blocks


def _kept(blocks: list[Block], size: int) -> int:
    """Return how many blocks stay as they are: all, unless those at the end are to be joined with what is new."""
    full = next((number for number, block in enumerate(blocks) if block.size < BLOCK_BYTES), len(blocks))
    small = len(blocks) - full
    joined = size - sum(block.size for block in blocks[:full])
    return full if small >= MOST_SMALL or (small and joined >= BLOCK_BYTES) else len(blocks)
