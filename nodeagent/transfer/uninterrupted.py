"""Work that a cancellation may end only at a point where nothing is left half done."""

import asyncio
from collections.abc import Callable, Coroutine
from threading import Event
from typing import Any, TypeVar

T = TypeVar("T")


class AbandonedError(Exception):
    """Work in a thread has stopped early because nobody wants its result any more."""


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end, and only then obey a cancellation: its result is lost then, its effects are whole."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await settled(task)
        raise


async def settled(task: "asyncio.Future[Any]") -> None:
    """Wait until a task has ended, however often the caller is cancelled meanwhile; its error is not told."""
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:  # the caller is being cancelled already: that is why we are here
            continue
    if not task.cancelled():
        task.exception()


async def in_thread(work: Callable[[Event], T]) -> T:
    """Run blocking `work` in a thread that never outlives this call: a cancellation sets its event and waits for it.

    `work` raises AbandonedError when it sees the event; that, like every other error, gives way to the cancellation.
    """
    abandoned = Event()
    task = asyncio.ensure_future(asyncio.to_thread(work, abandoned))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        abandoned.set()
        await settled(task)
        raise
