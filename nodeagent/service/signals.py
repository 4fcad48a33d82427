"""What wakes waiting coroutines after a commit: named signals, raised by transactions."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

STOPPING_SIGNAL = "stopping"
"""Published when the service stops."""


class Signals:
    """Named signals on one event loop. A subscriber sees every signal that is published while it is subscribed."""

    def __init__(self) -> None:
        self._subscribers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @property
    def waiting(self) -> frozenset[str]:
        """The names that somebody listens to now."""
        return frozenset(self._subscribers)

    @contextmanager
    def subscribe(self, *names: str) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever one of the signals is published; clear it before looking again."""
        event = asyncio.Event()
        for name in names:
            self._subscribers[name].add(event)
        try:
            yield event
        finally:
            for name in names:
                self._subscribers[name].discard(event)
                if not self._subscribers[name]:
                    del self._subscribers[name]

    def publish(self, names: Iterable[str]) -> None:
        """Wake the subscribers of these signals."""
        for name in names:
            for event in self._subscribers.get(name, ()):
                event.set()
