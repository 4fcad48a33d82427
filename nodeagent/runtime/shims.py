"""The agent's end of the zygote and of the shims: sockets, and who is idle (protocol: shim/zygote.py)."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nodeagent
from nodeagent.runtime.base import RuntimeFailure

_PACKAGE_PARENT = str(Path(nodeagent.__file__).resolve().parents[1])
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from nodeagent.shim.zygote import main; main(sys.argv[2])"
# what a fault test asks for, what an interpreter may need, and the markers if this agent is itself somebody's task;
# nothing else, because keys may be in the agent's environment and shims outlive it
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "NODEAGENT_FAILPOINT", "NODEAGENT_ATTEMPT", "NODEAGENT_BOUNDARY")
_MESSAGE = 4096


class Zygote:
    """The process that forks shims. Started when first needed and again whenever it is found dead."""

    def __init__(self, attempts: Path, log: Path) -> None:
        """`attempts` is the directory of all attempts; what a shim has to say when it fails goes to `log`."""
        self._attempts = attempts
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """Its pid, once started."""
        return self._process.pid if self._process else None

    def fork(self, end: socket.socket) -> None:
        """Ask for a shim that listens on `end`. Raises RuntimeFailure if there can be no zygote."""
        for _ in range(2):
            control = self._control or self._start()
            try:
                socket.send_fds(control, [b"shim"], [end.fileno()])
            except (BrokenPipeError, ConnectionResetError):
                self._forget()  # it was killed; nothing is lost by that, so start another one
            except BlockingIOError as error:
                raise RuntimeFailure("the zygote does not take requests any more") from error
            else:
                return
        raise RuntimeFailure(f"the zygote dies as soon as it is started, see {self._log}")

    async def close(self) -> None:
        """Let it go, with all idle shims; it exits by itself once its socket is closed."""
        process = self._process
        if self._control is not None:
            self._control.close()
        self._process = self._control = None
        if process is not None:
            await asyncio.to_thread(_reap, process)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # no user=, no preexec_fn: with those CPython forks the agent, which takes 10 ms at 300 MB
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", _BOOT, _PACKAGE_PARENT, str(self._attempts)],
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            )
        except OSError as error:
            ours.close()
            raise RuntimeFailure(f"cannot start the zygote: {error}") from error
        finally:
            theirs.close()
            os.close(log)
        ours.setblocking(False)
        self._control = ours
        return ours

    def _forget(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            _reap(self._process)
        self._process = self._control = None


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process whose socket is closed; one that does not go is killed."""
    try:
        process.wait(timeout=5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Shim:
    """The connection to one shim. Its end-of-file is the shim's death, because nobody else holds the other end."""

    def __init__(self, zygote: Zygote, on_word: Callable[["Shim", str, str], None]) -> None:
        """Have it forked. `on_word(shim, word, text)` is called for what it tells, with the word "gone" at its death.

        Raises RuntimeFailure.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            zygote.fork(theirs)
        except RuntimeFailure:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._on_word = on_word
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(ours, self._read)

    def give(self, attempt_id: str) -> None:
        """Ask it to take the attempt; it answers by a word, or is gone."""
        # if it is dead, that is about to be read as end-of-file, and told by that
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.send(attempt_id.encode())

    def close(self) -> None:
        """Hang up: an idle shim exits, a busy one finishes its attempt first."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def _read(self) -> None:
        while self._socket.fileno() >= 0:
            try:
                message = self._socket.recv(_MESSAGE)
            except BlockingIOError:
                return
            except ConnectionResetError:
                message = b""
            if not message:
                self.close()
                message = b"gone"
            word, _, text = message.decode().partition(" ")
            self._on_word(self, word, text)
