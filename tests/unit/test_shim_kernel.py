"""What is asked of /proc: identity, kin and markers, with processes of this test."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nodeagent.shim import kernel


@contextmanager
def process(*argv: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone afterwards."""
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, start_new_session=True) as started:
        try:
            yield started
        finally:
            started.kill()


def test_process_is_known_by_pid_and_start() -> None:
    """The right start ticks open and signal a process; wrong ones, as after reuse of a pid, do neither."""
    with process("sleep", "60") as sleeper:
        ticks = kernel.start_ticks(sleeper.pid)
        handle = kernel.open_process(sleeper.pid, ticks)
        assert handle is not None
        os.close(handle)
        assert kernel.open_process(sleeper.pid, ticks + 1) is None
        assert not kernel.send(sleeper.pid, ticks + 1, signal.SIGKILL)
        assert sleeper.poll() is None
        assert kernel.send(sleeper.pid, ticks, signal.SIGKILL)
        assert sleeper.wait(10) == -signal.SIGKILL
    assert not kernel.send(sleeper.pid, ticks, signal.SIGKILL)
    assert kernel.stat(sleeper.pid) is None
    with pytest.raises(ProcessLookupError, match=str(sleeper.pid)):
        kernel.start_ticks(sleeper.pid)


def test_name_of_a_program_cannot_confuse_its_stat() -> None:
    """A program named with parentheses and blanks is read like any other."""
    script = "import ctypes; ctypes.CDLL(None).prctl(15, b') S 1 1 (', 0, 0, 0); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as odd:
        assert odd.stdout is not None
        odd.stdout.readline()
        seen = kernel.stat(odd.pid)
        assert seen is not None
        assert seen.parent == os.getpid()
        odd.kill()


def test_zombie_does_not_live() -> None:
    """A process that waits to be reaped is no survivor."""
    with process("true") as done:
        os.waitid(os.P_PID, done.pid, os.WEXITED | os.WNOWAIT)
        seen = kernel.stat(done.pid)
        assert seen is not None
        assert (seen.state, seen.lives) == ("Z", False)


def test_thread_keeps_a_process_alive_whose_leader_ended() -> None:
    """A process whose first thread has ended but another goes on is alive, though its state says zombie."""
    script = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "print(flush=True)\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"
    )
    with process(sys.executable, "-c", script) as headless:
        assert headless.stdout is not None
        headless.stdout.readline()
        watch = threading.Event()
        for _ in range(500):
            seen = kernel.stat(headless.pid)
            assert seen is not None
            if seen.state == "Z":
                assert seen.lives
                return
            watch.wait(0.01)
        pytest.fail("the first thread did not end")


def test_marker_is_found_whole_or_below_never_as_a_prefix() -> None:
    """A marker finds itself and what is nested in it, not a neighbour whose name begins alike."""

    def marker(value: str) -> dict[str, str]:
        return {kernel.BOUNDARY_VARIABLE: value}

    with (
        process("/bin/sleep", "60", env=marker("/t/session")) as whole,
        process("/bin/sleep", "60", env=marker("/t/session/a1")) as nested,
        process("/bin/sleep", "60", env=marker("/t/session2")) as neighbour,
        process("/bin/sleep", "60", env={"X": "NODEAGENT_BOUNDARY=/t/session"}) as quoting,
    ):
        found = kernel.marked("/t/session")
        assert {whole.pid, nested.pid} == set(found)
        assert not {neighbour.pid, quoting.pid} & set(found)
        assert set(kernel.marked("/t/session/a1")) == {nested.pid}


def test_sweep_from_outside_takes_marked_their_session_and_their_children() -> None:
    """Without a cgroup: the marker, the session of a leader that was seen alive, and children of either."""
    script = "env -i sleep 61 & env -i setsid sleep 62 & echo; wait"
    boundary = {"kind": "process_group", "marker": "/t/sweep"}
    with process(
        "/bin/sh", "-c", script, env={kernel.BOUNDARY_VARIABLE: "/t/sweep", "PATH": "/usr/bin:/bin"}
    ) as leader:
        assert leader.stdout is not None
        leader.stdout.readline()
        below = kernel.descendants([leader.pid])
        swept = kernel.sweep_strangers(boundary, (leader.pid, kernel.start_ticks(leader.pid)))
        assert swept.killed >= 3
        assert (swept.remaining, swept.how) == (0, "process_group+marker")
        for pid in below:
            seen = kernel.stat(pid)
            assert seen is None or not seen.lives
    assert kernel.sweep_strangers(boundary).killed == 0


def test_session_of_a_reused_pid_is_not_swept() -> None:
    """A session is believed only if its leader is the process that was recorded, not one with the same pid."""
    with process("sleep", "60") as stranger:
        ticks = kernel.start_ticks(stranger.pid)
        swept = kernel.sweep_strangers({"kind": "process_group", "marker": "/t/none"}, (stranger.pid, ticks - 1))
        assert swept.killed == 0
        assert stranger.poll() is None
