"""Output with a cap: the first bytes and the last bytes of what a task writes, in one file of bounded size.

The file is [head][ring]. While the task runs the ring is overwritten in place, so that even after a kill -9 of the
shim the last bytes are on disk; at the end the ring is put in order, with a line that says how much was left out.
"""

# ruff: noqa: PTH123
# plain strings: a shim is kept small and fast, and pathlib is neither

import errno
import os
import threading

from nodeagent.shim.records import OutputCap

FULL = (errno.ENOSPC, errno.EDQUOT)


class CappedFile:
    """Takes any number of bytes and keeps the first and the last of them."""

    def __init__(self, file: int, cap: OutputCap) -> None:
        """`file` is opened for writing, empty, without O_APPEND; it is closed by `finish`."""
        self._file = file
        self._cap = cap
        self.written = 0
        """Bytes taken so far."""
        self.dropped = False
        """The disk was full, so that bytes which should have been kept are not."""

    def take(self, data: bytes) -> None:
        """Keep what must be kept of `data`. Raises OSError."""
        head = data[: max(0, self._cap.head_bytes - self.written)]
        self._put(head, self.written)
        self.written += len(head)
        rest = data[len(head) :]
        if self._cap.tail_bytes and len(rest) > self._cap.tail_bytes:
            self.written += len(rest) - self._cap.tail_bytes
            rest = rest[-self._cap.tail_bytes :]
        if not self._cap.tail_bytes:
            self.written += len(rest)
            return
        while rest:
            at = (self.written - self._cap.head_bytes) % self._cap.tail_bytes
            part = rest[: self._cap.tail_bytes - at]
            self._put(part, self._cap.head_bytes + at)
            self.written += len(part)
            rest = rest[len(part) :]

    def finish(self) -> None:
        """Put the ring in order and close the file."""
        head, tail = self._cap.head_bytes, self._cap.tail_bytes
        omitted = self.written - head - tail
        if omitted > 0 and not self.dropped:
            ring = os.pread(self._file, tail, head)
            at = (self.written - head) % tail if tail else 0
            note = f"\n[{omitted} bytes left out: the output is capped]\n".encode()
            self._put(note + ring[at:] + ring[:at], head)
        os.close(self._file)

    def _put(self, data: bytes, offset: int) -> None:
        while data:
            try:
                done = os.pwrite(self._file, data, offset)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self.dropped = True  # the task goes on: its output is no reason to end it
                return
            data, offset = data[done:], offset + done


class Pump:
    """Moves what comes out of a pipe into a capped file, in a thread of its own, until the last writer is gone."""

    def __init__(self, file: int, cap: OutputCap) -> None:
        self._capped = CappedFile(file, cap)
        self._source, self.sink = os.pipe2(os.O_CLOEXEC)
        """`sink` is the end for the task; `start` closes the shim's copy."""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin, after the task has been started or could not be."""
        os.close(self.sink)
        self._thread.start()

    def finish(self, seconds: float) -> bool:
        """Wait for the last byte; false if somebody still holds the pipe after `seconds`."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        with open(self._source, "rb", buffering=0) as pipe:
            while data := pipe.read(1 << 16):
                self._capped.take(data)
        self._capped.finish()
