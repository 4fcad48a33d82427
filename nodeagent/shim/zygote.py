"""The zygote: a warm process from which shims are forked, and the loop of a shim.

    agent ──(socket 0: one message with one socket in it per shim wanted)──▶ zygote ──fork──▶ shim
    agent ◀─────────────(that socket: attempt ids down, held/ended/retired/refused up)──────▶ shim

Only the shim holds its end of its socket, so its end-of-file is the shim's death. When the agent dies the zygote and
idle shims see end-of-file and exit; a busy shim finishes its attempt first.
"""

import array
import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys

from nodeagent.shim import attempt
from nodeagent.shim.spawn import IGNORED

_PR_SET_CHILD_SUBREAPER = 36
_MESSAGE = 4096

RETIRE = signal.SIGUSR2
"""Blocked, and looked for after an attempt: somebody watches this process by its death, so it must exit."""


def main(attempts: str) -> None:
    """Serve on file descriptor 0 until its other end is closed. `attempts` is the directory of all attempts."""
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.chdir("/")
    os.umask(0o022)
    libc = ctypes.CDLL(None, use_errno=True)
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # dead shims need no reaping
    gc.collect()
    gc.freeze()
    while True:
        agent = _next(control)
        if agent is None:
            return
        if os.fork() == 0:
            control.close()
            _shim(agent, attempts, libc)
        agent.close()


def _next(control: socket.socket) -> socket.socket | None:
    """The socket of the next shim that is wanted, or None at the end.

    Not by socket.recv_fds: it drops its `flags` (CPython 3.11), so every task would inherit the shim's socket, and
    the shim's death would not be seen as end-of-file while a task lives.
    """
    handles = array.array("i")
    message, ancillary, _, _ = control.recvmsg(_MESSAGE, socket.CMSG_LEN(handles.itemsize), socket.MSG_CMSG_CLOEXEC)
    if not message:
        return None
    handles.frombytes(ancillary[0][2])
    return socket.socket(fileno=handles[0])


def _shim(agent: socket.socket, attempts: str, libc: ctypes.CDLL) -> None:
    """Take one attempt after the other until the agent hangs up. Never returns into the zygote."""
    status = 1
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_BLOCK, (*attempt.WAKE, RETIRE))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")
        while (message := agent.recv(_MESSAGE)) and _serve(agent, attempts, message.decode()):
            pass
        status = 0
    finally:
        if status:
            sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(status)


def _serve(agent: socket.socket, attempts: str, attempt_id: str) -> bool:
    """One attempt; true if this shim may take another one."""

    def tell(text: str) -> None:
        # the agent may be gone; the next one reads the records, which were there before this message
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            agent.send(text.encode())

    try:
        reusable = attempt.run(f"{attempts}/{attempt_id}", attempt_id, tell)
        # looked at after the lock was let go: see ProcessRuntime.adopt
        if reusable and RETIRE not in signal.sigpending():
            tell("ended")
            return True
        tell("retired")
    except attempt.Refused as refused:
        word = "taken" if isinstance(refused, attempt.Taken) else "refused"
        tell(f"{word} {refused}"[:_MESSAGE])
        return True
    return False
