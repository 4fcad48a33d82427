"""The real command as a subprocess, for tests: started, listened to, and looked for in /proc afterwards."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

SECONDS = 30.0


async def nodeagent(*arguments: str | Path, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run a command to its end; return its exit status, stdout and stderr."""
    async with started(*arguments, environment=environment) as process, asyncio.timeout(2 * SECONDS):
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def started(
    *arguments: str | Path, environment: dict[str, str] | None = None, stdout: int = asyncio.subprocess.PIPE
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a command in a session of its own; it is killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "nodeagent",
        *(str(argument) for argument in arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        limit=2**20,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line_with(process: asyncio.subprocess.Process, text: str) -> str:
    """Read stdout until a line holds `text`."""
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        while line := (await process.stdout.readline()).decode():
            if text in line:
                return line
    raise AssertionError(f"the output ended without {text!r}: {(await process.communicate())[1].decode()}")


async def ended(process: asyncio.subprocess.Process, seconds: float = SECONDS) -> tuple[int, str, str]:
    """Wait for the end; return exit status and the rest of stdout and stderr."""
    async with asyncio.timeout(seconds):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def processes_of(folder: Path) -> list[str]:
    """Return every living process that knows of `folder`: by command line, environment or working directory."""
    needle, found = str(folder).encode(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            told = command + (entry / "environ").read_bytes() + bytes((entry / "cwd").readlink())
        except OSError:
            continue
        if needle in told:
            found.append(f"{entry.name}: {command.replace(bytes(1), b' ').decode()}")
    return found


def kill_processes_of(folder: Path) -> None:
    """Leave nothing behind, also when a test has failed."""
    for line in processes_of(folder):
        with suppress(ProcessLookupError):
            os.kill(int(line.partition(":")[0]), signal.SIGKILL)


async def until(true: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Poll a condition that nobody announces."""
    end = asyncio.get_running_loop().time() + seconds
    while not true():
        assert asyncio.get_running_loop().time() < end, f"not in {seconds} s: {what}"
        await asyncio.sleep(0.02)


async def until_gone(folder: Path) -> None:
    """Wait until no process knows of `folder`; what is left fails the test by name."""
    end = asyncio.get_running_loop().time() + 5
    while left := processes_of(folder):
        assert asyncio.get_running_loop().time() < end, left
        await asyncio.sleep(0.02)


def job_text(job_id: str, tasks: Sequence[tuple[str, str]], **job: object) -> dict[str, object]:
    """Return the body of a job file; tasks are pairs of id and shell script."""
    return {
        "id": job_id,
        **job,
        "tasks": [{"id": task_id, "commandLine": shell(script)} for task_id, script in tasks],
    }


def shell(script: str) -> str:
    """Return a command line that runs a script without single quotes."""
    assert "'" not in script
    return f"/bin/sh -c '{script}'"
