"""Waiting for one of two things."""

import asyncio


async def either(wanted: asyncio.Event, given_up: asyncio.Event) -> None:
    """Return when `wanted` is set, or when nobody wants it any more; at once, and without a task, if it is set."""
    if wanted.is_set():
        return
    waits = [asyncio.ensure_future(event.wait()) for event in (wanted, given_up)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
