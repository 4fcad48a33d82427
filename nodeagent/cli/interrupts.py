"""Ctrl-C once, and twice."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupts(first: Callable[[], object], second: Callable[[], object]) -> Iterator[None]:
    """Call `first` at the first SIGINT, SIGTERM or SIGHUP, and `second` at the next; later ones change nothing.

    A signal that we were started to ignore (by nohup, or in a shell's background) stays ignored.
    """
    waiting = [first, second]

    def heard() -> None:
        if waiting:
            waiting.pop(0)()

    loop = asyncio.get_running_loop()
    minded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in minded:
        loop.add_signal_handler(number, heard)
    try:
        yield
    finally:
        for number in minded:
            loop.remove_signal_handler(number)
