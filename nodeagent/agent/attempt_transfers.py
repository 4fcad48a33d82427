"""What an attempt moves before and after its command."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from nodeagent.agent.attempt_directories import AttemptDirectories
from nodeagent.rules import attempt_events
from nodeagent.rules.failures import not_handled

if TYPE_CHECKING:
    from nodeagent.agent.attempt_runner import AttemptRunner
    from nodeagent.agent.tools import Tools


class AttemptTransfers:
    """Of one attempt."""

    def __init__(self, tools: "Tools", runner: "AttemptRunner", directories: AttemptDirectories) -> None:
        self._tools = tools
        self._runner = runner
        self._directories = directories

    async def bring_in(self) -> attempt_events.Event:
        """Bring packages and resource files."""
        return attempt_events.PreProcessingFailed(not_handled("BlobDownloadMiscError", "resource files"))

    async def take_out(self) -> attempt_events.Event:
        """Upload output files."""
        return attempt_events.TransferredOut(not_handled("FileUploadMiscError", "output files"))

    @asynccontextmanager
    async def live_logs(self) -> AsyncIterator[None]:
        """Upload logs while the task runs."""
        yield
