"""The ends of logs that go with the end of a task: what is read, and what a task may have put in their place."""

import os
from pathlib import Path

import pytest

from nodeagent.agent.kept_logs import kept_logs
from nodeagent.model.protocol import KeptLog
from nodeagent.rules.layout import NodeLayout, TaskPaths


@pytest.fixture
def paths(tmp_path: Path) -> TaskPaths:
    """The directory of a task that has ended."""
    made = NodeLayout(tmp_path).task("j", "t")
    made.wd.mkdir(parents=True)
    return made


def test_the_last_bytes_of_each_log_are_kept(paths: TaskPaths) -> None:
    """Bytes as they are, also those that are no text; the size is that of the whole file."""
    paths.stdout.write_bytes(b"a" * 100 + b"\xff\x00end")
    paths.stderr.write_bytes(b"small")

    out, err = kept_logs(paths, 10)

    assert (out.name, out.size, out.tail) == ("stdout.txt", 105, b"aaaaa\xff\x00end")
    assert (err.name, err.size, err.tail) == ("stderr.txt", 5, b"small")
    assert KeptLog.from_json(out.to_json()) == out
    assert out.modified.timestamp() == pytest.approx(paths.stdout.stat().st_mtime)


def test_logs_that_are_empty_or_not_there_are_not_told(paths: TaskPaths) -> None:
    """A task that writes nothing costs nothing."""
    paths.stdout.write_bytes(b"")

    assert kept_logs(paths, 10) == ()


def test_nothing_is_read_when_nothing_is_to_be_kept(paths: TaskPaths) -> None:
    """`kept_log_bytes = 0`."""
    paths.stdout.write_bytes(b"words")

    assert kept_logs(paths, 0) == ()


@pytest.mark.parametrize("trick", ["link", "hard link", "pipe", "directory"])
def test_what_a_task_put_in_place_of_a_log_is_not_read(paths: TaskPaths, trick: str) -> None:
    """Neither does a pipe that nobody writes to make the agent wait."""
    secret = paths.root / "secret"
    secret.write_text("somebody else's")
    match trick:
        case "link":
            paths.stdout.symlink_to(secret)
        case "hard link":
            paths.stdout.hardlink_to(secret)
        case "pipe":
            os.mkfifo(paths.stdout)
        case _:
            paths.stdout.mkdir()

    assert kept_logs(paths, 100) == ()
