"""Failures as `nodeagent run` shows them: what a person reads of each way in which a task can end badly."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.command_line import kill_processes_of, nodeagent, shell


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Give the state folder of the run; the command makes it."""
    yield tmp_path / "state"
    kill_processes_of(tmp_path)


def job_file(tmp_path: Path) -> Path:
    """A job whose tasks each end badly in another way."""
    tasks = [
        {"id": "missing", "commandLine": "no-such-program --flag"},
        {"id": "script", "commandLine": "/etc/passwd"},
        {"id": "own", "commandLine": shell('echo "row 9 is bad" > "$NODEAGENT_ERROR_FILE"; sleep 300 & exit 3')},
        {"id": "signal", "commandLine": shell("kill -SEGV $$")},
        {"id": "late", "commandLine": "/bin/sleep 300", "constraints": {"maxWallClockTime": "PT1S"}},
        {"id": "twice", "commandLine": shell("echo again; exit 1"), "constraints": {"maxTaskRetryCount": 1}},
    ]
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"id": "bad", "tasks": tasks}))
    return path


async def test_each_failure_is_told_with_its_evidence(tmp_path: Path, folder: Path) -> None:
    """Code, what the kernel said, a hint, the task's own words, the limit, and what was left of it."""
    status, out, err = await nodeagent("run", job_file(tmp_path), f"--state-dir={folder}")
    assert status == 1, err
    for line in (
        "missing failed: CommandProgramNotFound",
        "  Message: No such file or directory (ENOENT)",
        "script failed: CommandLaunchFailed",
        "  Message: Permission denied (EACCES)",
        "own failed: FailureExitCode",
        "  ErrorFile: row 9 is bad",
        "  LeftoverProcesses: 1 killed, 0 remain",
        "signal failed: FailureExitCode",
        "  ExitCode: -11",
        "late failed: TaskEnded",
        "  Limit: maxWallClockTime PT1S",
        "twice failed: FailureExitCode",
    ):
        assert line in out, line
    assert "  Hint: not found in PATH=" in out


async def test_each_attempt_keeps_its_logs(tmp_path: Path, folder: Path) -> None:
    """The newest at the Batch path, the one before beside it."""
    status, _, err = await nodeagent("run", job_file(tmp_path), f"--state-dir={folder}", "--json")
    assert status == 1, err
    job = folder / "nodes/node-1/root/workitems/bad/job-1"
    assert sorted(path.name for path in job.glob("twice*")) == ["twice", "twice~1"]
    assert (job / "twice~1" / "stdout.txt").read_text() == "again\n"
