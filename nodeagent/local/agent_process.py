"""One agent as a child process: started, started again when it dies, and stopped.

The child is the head of a session of its own, so that Ctrl-C at the terminal reaches only us, and it watches its
standard input: when we are gone, killed or not, the pipe closes and the agent stops (its tasks run on).
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from nodeagent.agent.errors import RemovedError
from nodeagent.local.errors import AgentEndedError

log = structlog.get_logger(__name__)

FINAL_STATUSES = frozenset({0, 2, 4, 5, 6, 7, 8, 9})
"""Exit statuses of `nodeagent agent` that a new start would only repeat (docs/cli.md)."""

REMOVED_STATUS = RemovedError.exit_status

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_LASTED_SECONDS = 60.0
_TAIL_BYTES = 4096


class AgentProcess:
    """Keeps one agent running until `stop` or `kill`."""

    def __init__(self, node_id: str, arguments: Sequence[str], log_file: Path) -> None:
        self.node_id = node_id
        self._command = (sys.executable, "-P", "-m", "nodeagent", "agent", "--exit-with-parent", *arguments)
        self._log_file = log_file
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The pid of the present process, if there is one."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def run(self) -> None:
        """Start the agent, and again after each death. Raises AgentEndedError if that cannot help."""
        pause = _FIRST_PAUSE
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            begun = loop.time()
            status = await self._one_life()
            if self._stopping.is_set():
                return
            if status == REMOVED_STATUS:
                log.info("node removed from its pool", node=self.node_id)
                return
            if status in FINAL_STATUSES:
                raise AgentEndedError(f"node {self.node_id}: {self._last_words(status)}", status)
            pause = _FIRST_PAUSE if loop.time() - begun > _LASTED_SECONDS else min(pause * 2, _LONGEST_PAUSE)
            log.warning("agent died and is started again", node=self.node_id, status=status, pause_seconds=pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def stop(self, seconds: float) -> None:
        """Ask the agent to end (its tasks run on), and kill it if it takes longer than `seconds`."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(seconds):
                await process.wait()
        except TimeoutError:
            log.warning("agent does not stop and is killed", node=self.node_id)
            process.kill()
            await process.wait()

    def kill(self) -> None:
        """End the agent at once; `stop` waits for it."""
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _one_life(self) -> int:
        output = os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            os.close(output)
        if self._stopping.is_set():  # asked for while the process was being made
            self._process.terminate()
        return await self._process.wait()

    def _last_words(self, status: int) -> str:
        with self._log_file.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
        told = next((line for line in reversed(lines) if line.startswith("nodeagent: ")), "").removeprefix(
            "nodeagent: "
        )
        return told or f"the agent ended with status {status}, see {self._log_file}"
