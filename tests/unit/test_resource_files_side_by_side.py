"""How the files of a task are brought side by side: in which order, how many, and what a failure does to the rest."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nodeagent.model.enums import ErrorCategory
from nodeagent.model.files import ResourceFile
from nodeagent.model.protocol import TransferPhase
from nodeagent.model.values import NodeIdentityReference
from nodeagent.rules.failures import failure_of
from nodeagent.transfer.base import Download, IdentityError, Meter, Place, TransferFailedError, TransferSettings
from nodeagent.transfer.resource_files import FILES_PER_TRANSFER, ResourceFiles

SETTINGS = TransferSettings(transfers=3)
IDENTITY = NodeIdentityReference(resource_id="/subscriptions/s/identities/mine")
PLACE = Place(Path("/nowhere"))


@dataclass
class ScriptedFetcher:
    """Does with a download what the test says, and remembers who was under way."""

    act: Callable[[Download], Awaitable[None]]
    brought: list[str] = field(default_factory=list)
    under_way: int = 0
    most: int = 0
    cancelled: int = 0

    async def bring(self, download: Download, place: Place, meter: Meter) -> None:
        """Be a fetcher."""
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.act(download)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        self.brought.append(download.url)


async def no_tokens(_identity: NodeIdentityReference) -> str:
    """Be the tokens of a test without identities."""
    raise AssertionError("nobody has an identity here")


async def a_moment(_download: Download) -> None:
    """Take turns with the others."""
    for _ in range(3):
        await asyncio.sleep(0)


def new_meter() -> Meter:
    """Return a meter that nobody listens to."""
    return Meter("a1", TransferPhase.DOWNLOADING)


def files(*paths: str) -> list[ResourceFile]:
    """Return files with these paths; their URLs are numbered."""
    return [ResourceFile(http_url=f"https://h/{number}", file_path=path) for number, path in enumerate(paths)]


async def test_ten_thousand_files_are_a_few_at_a_time() -> None:
    """They are neither ten thousand tasks of the loop nor ten thousand requests."""
    tasks: list[int] = []

    async def act(download: Download) -> None:
        tasks.append(len(asyncio.all_tasks()))
        await a_moment(download)

    fetcher, meter = ScriptedFetcher(act), new_meter()
    await ResourceFiles(fetcher, no_tokens, SETTINGS).bring(
        files(*(f"f/{number}" for number in range(10_000))), PLACE, meter
    )
    assert fetcher.most == SETTINGS.transfers * FILES_PER_TRANSFER
    assert max(tasks) < 20
    assert len(fetcher.brought) == 10_000
    progress = meter.progress()
    assert (progress.files_done, progress.files_total, progress.bytes_total) == (10_000, 10_000, None)


async def test_of_two_files_with_the_same_path_the_later_is_brought_last() -> None:
    """Even if the first one takes longer; what has another path does not wait for it."""
    first_may_end, other_ended = asyncio.Event(), asyncio.Event()

    async def act(download: Download) -> None:
        if download.url.endswith("/0"):
            await other_ended.wait()
            first_may_end.set()
        elif download.path == "same":
            assert first_may_end.is_set()
        else:
            other_ended.set()

    fetcher = ScriptedFetcher(act)
    given = files("same", "same", "./same", "other")
    await ResourceFiles(fetcher, no_tokens, SETTINGS).bring(given, PLACE, new_meter())
    assert fetcher.brought == ["https://h/3", "https://h/0", "https://h/1", "https://h/2"]


async def test_the_first_failure_ends_all_others_before_it_is_told() -> None:
    """Nothing writes into the task's directory any more when the failure is known."""
    others_wait = asyncio.Event()
    waiting = 0

    async def act(download: Download) -> None:
        nonlocal waiting
        if download.path == "bad":
            await others_wait.wait()
            raise TransferFailedError(failure_of("BlobNotFound", ("FilePath", download.path)))
        waiting += 1
        if waiting == 5:  # all other workers
            others_wait.set()
        await asyncio.Event().wait()

    fetcher = ScriptedFetcher(act)
    with pytest.raises(TransferFailedError) as failed:
        await ResourceFiles(fetcher, no_tokens, SETTINGS).bring(
            files("a", "bad", "c", "d", *(f"later/{number}" for number in range(50))), PLACE, new_meter()
        )
    assert failed.value.failure.code == "BlobNotFound"
    assert fetcher.under_way == 0
    assert fetcher.cancelled == 5


async def test_a_task_that_is_stopped_leaves_nothing_under_way() -> None:
    """Bringing is cancelled with the attempt."""
    begun = asyncio.Event()

    async def act(_download: Download) -> None:
        begun.set()
        await asyncio.Event().wait()

    fetcher = ScriptedFetcher(act)
    bringing = asyncio.create_task(
        ResourceFiles(fetcher, no_tokens, SETTINGS).bring(files("a", "b"), PLACE, new_meter())
    )
    await begun.wait()
    bringing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bringing
    assert (fetcher.under_way, fetcher.cancelled) == (0, 2)


async def test_no_files_are_no_work() -> None:
    """A task without resource files neither waits nor is measured."""
    meter = new_meter()
    await ResourceFiles(ScriptedFetcher(a_moment), no_tokens, SETTINGS).bring([], PLACE, meter)
    assert meter.progress().files_total is None


@pytest.mark.parametrize("path", ["../x", "/etc/cron.d/x", "a/../../x", "dir/"])
async def test_a_path_that_leaves_the_directory_fails_before_anything_is_brought(path: str) -> None:
    """The node does not rely on the service having looked."""
    fetcher = ScriptedFetcher(a_moment)
    with pytest.raises(TransferFailedError) as failed:
        await ResourceFiles(fetcher, no_tokens, SETTINGS).bring(
            [*files("good"), ResourceFile(http_url="https://h/x?sig=secret", file_path=path)], PLACE, new_meter()
        )
    failure = failed.value.failure
    details = {item.name: item.value for item in failure.details}
    assert failure.code == "ResourceFileCreateFailed"
    assert (details["FilePath"], details["BlobSource"]) == (path, "https://h/x")
    assert "must" in details["Message"]
    assert fetcher.brought == []


async def test_a_container_without_a_url_says_who_should_have_given_it() -> None:
    """The linked storage is known to the service only."""
    with pytest.raises(TransferFailedError) as failed:
        await ResourceFiles(ScriptedFetcher(a_moment), no_tokens, SETTINGS).bring(
            [ResourceFile(auto_storage_container_name="inputs")], PLACE, new_meter()
        )
    assert failed.value.failure.code == "ResourceContainerListMiscError"
    assert "service" in str(failed.value)


@pytest.mark.parametrize(
    ("status", "code", "category"),
    [
        (400, "BlobAccessDenied", ErrorCategory.USER_ERROR),
        (None, "BlobDownloadMiscError", ErrorCategory.SERVER_ERROR),
        (500, "BlobDownloadMiscError", ErrorCategory.SERVER_ERROR),
    ],
)
async def test_an_identity_without_a_token_is_told_by_its_cause(
    status: int | None, code: str, category: ErrorCategory
) -> None:
    """Who forgot to assign the identity is told something else than who has a broken node."""

    async def tokens(_identity: NodeIdentityReference) -> str:
        raise IdentityError("No token", status)

    fetcher = ScriptedFetcher(a_moment)
    with pytest.raises(TransferFailedError) as failed:
        await ResourceFiles(fetcher, tokens, SETTINGS).bring(
            [ResourceFile(http_url="https://h/x", file_path="x", identity_reference=IDENTITY)], PLACE, new_meter()
        )
    assert (failed.value.failure.code, failed.value.failure.category) == (code, category)
    assert fetcher.brought == []


async def test_a_token_is_never_shown_to_a_server_without_encryption() -> None:
    """Anyone on the way could use it for all that the identity may do."""

    async def tokens(_identity: NodeIdentityReference) -> str:
        return "token"

    fetcher = ScriptedFetcher(a_moment)
    with pytest.raises(TransferFailedError, match="https"):
        await ResourceFiles(fetcher, tokens, SETTINGS).bring(
            [ResourceFile(http_url="http://h/x", file_path="x", identity_reference=IDENTITY)], PLACE, new_meter()
        )
    assert fetcher.brought == []
