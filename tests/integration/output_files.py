"""What tests of output files share: a task's directory, rules, and one upload with a ledger in a real agent.db."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from nodeagent.agent.database import Database
from nodeagent.agent.upload_ledger import UploadLedgers
from nodeagent.model.enums import UploadCondition
from nodeagent.model.failure import FailureInfo
from nodeagent.model.files import (
    OutputFile,
    OutputFileBlobContainerDestination,
    OutputFileDestination,
    OutputFileUploadOptions,
    UploadHeader,
)
from nodeagent.model.protocol import TransferPhase
from nodeagent.model.values import NodeIdentityReference
from nodeagent.transfer.base import Meter, TransferSettings
from nodeagent.transfer.output_files import OutputFiles
from nodeagent.transfer.upload_plan import PlannedFile, Uploads

QUICK = TransferSettings(transfer_tries=2, transfer_idle_seconds=20, transfer_seconds=60)


def rule(
    pattern: str,
    container_url: str,
    path: str | None = None,
    condition: UploadCondition = UploadCondition.TASK_COMPLETION,
    *,
    headers: dict[str, str] | None = None,
    identity: str | None = None,
) -> OutputFile:
    """Return a rule of outputFiles."""
    return OutputFile(
        file_pattern=pattern,
        destination=OutputFileDestination(
            container=OutputFileBlobContainerDestination(
                container_url=container_url,
                path=path,
                identity_reference=None if identity is None else NodeIdentityReference(resource_id=identity),
                upload_headers=tuple(UploadHeader(name=name, value=value) for name, value in (headers or {}).items()),
            )
        ),
        upload_options=OutputFileUploadOptions(upload_condition=condition),
    )


async def no_token(_identity: NodeIdentityReference) -> str:
    """Give no token: the test has no identity."""
    raise AssertionError("nobody should ask for a token")


@dataclass
class Task:
    """A task's directory, and what is uploaded of it."""

    root: Path
    rules: list[OutputFile] = field(default_factory=list)
    settings: TransferSettings = QUICK
    meter: Meter = field(default_factory=lambda: Meter("a1", TransferPhase.UPLOADING))

    def __post_init__(self) -> None:
        """Make the directory."""
        self.wd.mkdir(parents=True)

    @property
    def wd(self) -> Path:
        """Return the working directory."""
        return self.root / "wd"

    def file(self, name: str, content: bytes | str = b"content") -> Path:
        """Make a file in the working directory."""
        path = self.wd / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def uploads(self, exit_code: int = 0) -> Uploads:
        """Return what is to be uploaded."""
        return Uploads(
            execution_id="a1-1",
            output_files=tuple(self.rules),
            exit_code=exit_code,
            root=self.root,
            wd=self.wd,
            environment={"AZ_BATCH_TASK_ID": "task-1"},
            run_as=None,
            log_owner=None,
        )

    async def upload(self, exit_code: int = 0, **changes: object) -> FailureInfo | None:
        """Upload, or go on with it, with the ledger that is kept beside the task's directory."""
        async with self.ledgers() as ledgers, OutputFiles(self.settings, no_token).connected() as output_files:
            uploads = replace(self.uploads(exit_code), **changes)  # type: ignore[arg-type]
            return await output_files.upload(uploads, ledgers.of(uploads.execution_id), self.meter)

    @asynccontextmanager
    async def ledgers(self) -> AsyncIterator[UploadLedgers]:
        """Open the agent's database."""
        database = Database(self.root.parent / f"{self.root.name}-agent.db", synchronous="NORMAL")
        await database.open()
        try:
            yield UploadLedgers(database)
        finally:
            await database.close()

    async def planned(self) -> tuple[PlannedFile, ...] | None:
        """Return what the ledger holds."""
        async with self.ledgers() as ledgers:
            return await ledgers.of("a1-1").planned()

    def log(self, name: str = "fileuploadout.txt") -> str:
        """Return what the task's user reads of it."""
        return (self.root / name).read_text()


def details(failure: FailureInfo | None) -> dict[str, str]:
    """Return the details of a failure."""
    assert failure is not None
    return {item.name: item.value for item in failure.details}
