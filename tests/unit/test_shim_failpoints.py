"""Failpoints do nothing unless the environment asks, and then exactly what it asks."""

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = "from nodeagent.shim import failpoints; failpoints.hit('here'); print('passed')"


def run(value: str | None) -> subprocess.CompletedProcess[str]:
    """Pass the failpoint `here` in a process of its own."""
    env = {name: text for name, text in os.environ.items() if name != "NODEAGENT_FAILPOINT"}
    if value is not None:
        env["NODEAGENT_FAILPOINT"] = value
    return subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("value", [None, "", "elsewhere", "elsewhere:kill"])
def test_silent_unless_named(value: str | None) -> None:
    """Without its name a point is passed."""
    done = run(value)
    assert (done.returncode, done.stdout) == (0, "passed\n")


@pytest.mark.parametrize("value", ["here", "here:kill"])
def test_kills_where_it_is_named(value: str) -> None:
    """With its name the process dies there, as by kill -9."""
    done = run(value)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_unknown_action_is_refused() -> None:
    """A misspelt action is an error, not a test that tests nothing."""
    done = run("here:explode")
    assert done.returncode == 1
    assert "unknown action 'explode'" in done.stderr
