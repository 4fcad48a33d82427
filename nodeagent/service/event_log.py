"""The diagnostic events outside the store: a JSON-lines file, and an HTTP stream.

The file is its own memory: the last whole line says which event comes next, so an event stands in it exactly once
also after kill -9. A torn last line is cut off.
"""

import asyncio
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import orjson
from aiohttp import web

from nodeagent.service.app_keys import DATABASE, SIGNALS, STOPPING
from nodeagent.service.errors import refusal
from nodeagent.service.signals import STOPPING_SIGNAL, Signals
from nodeagent.service.store import events
from nodeagent.service.store.database import Database

PATH = "/nodeagent/v1/events"
"""Where the stream is served: `?after=<seq>` begins behind an event, `follow=true` goes on with new ones."""

_TAIL_BLOCK = 64 * 1024
_GATHER_SECONDS = 0.1
"""The file is written so often at most: a busy service writes many events at a time."""
_IDLE_SECONDS = 15.0
"""A stream that has nothing to say sends an empty line so often, so that a dead peer is noticed."""


class EventFile:
    """The JSON-lines file, opened for appending after its last whole line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.last_seq = self._repair()

    def _repair(self) -> int:
        """Cut off what follows the last whole record; return that record's number, 0 if there is none."""
        end = os.fstat(self._descriptor).st_size
        while end > 0:
            begin, line = self._last_line(end)
            seq = _seq_of(line)
            if seq is not None:
                os.ftruncate(self._descriptor, end)
                os.lseek(self._descriptor, end, os.SEEK_SET)
                return seq
            end = begin
        os.ftruncate(self._descriptor, 0)
        return 0

    def _last_line(self, end: int) -> tuple[int, bytes]:
        """Return where the last line before `end` begins, and its bytes with its end."""
        text = b""
        begin = end
        while begin > 0:
            size = min(_TAIL_BLOCK, begin)
            begin -= size
            text = os.pread(self._descriptor, size, begin) + text
            cut = text.rfind(b"\n", 0, len(text) - 1)
            if cut >= 0:
                return begin + cut + 1, text[cut + 1 :]
        return 0, text

    def append(self, records: list[tuple[int, str]]) -> None:
        """Write events, in order, as lines."""
        data = "".join(f"{record}\n" for _, record in records).encode()
        while data:
            data = data[os.write(self._descriptor, data) :]
        self.last_seq = records[-1][0]

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _seq_of(line: bytes) -> int | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    seq = record.get("seq") if isinstance(record, dict) else None
    return seq if isinstance(seq, int) else None


async def write_events(database: Database, signals: Signals, path: Path, kept: int) -> None:
    """Append every event to the file until cancelled; the store keeps the last `kept` of those that are in it.

    Events that come close together are written together: who wants them at once reads the stream. A cancelled
    writer writes what there is before it ends.
    """
    file = EventFile(path)
    trimmed = 0
    try:
        with signals.subscribe(events.SIGNAL) as wake:
            while True:
                wake.clear()
                await _append(database, file)
                if file.last_seq - kept > trimmed + kept // 10:
                    trimmed = file.last_seq - kept
                    await database.write(partial(events.trim, upto=trimmed))
                await wake.wait()
                await asyncio.sleep(_GATHER_SECONDS)
    finally:
        await _append(database, file)
        file.close()


async def _append(database: Database, file: EventFile) -> None:
    while found := await database.read(partial(events.after, seq=file.last_seq)):
        writing = asyncio.ensure_future(asyncio.to_thread(file.append, found))
        try:
            await asyncio.shield(writing)
        finally:
            # a cancelled caller must not go on before the thread has ended: it would write the same events again
            await writing


async def stream_events(request: web.Request) -> web.StreamResponse:
    """Answer with the events after `after`, one JSON record a line; with `follow=true` go on until the peer leaves."""
    after = _number(request.query.get("after", "0"))
    follow = request.query.get("follow", "false").lower() == "true"
    database, signals = request.app[DATABASE], request.app[SIGNALS]
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    await response.prepare(request)
    with suppress(ConnectionResetError), signals.subscribe(events.SIGNAL, STOPPING_SIGNAL) as wake:  # the reader left
        while True:
            wake.clear()
            found = await database.read(partial(events.after, seq=after))
            if found:
                await response.write("".join(f"{record}\n" for _, record in found).encode())
                after = found[-1][0]
                continue
            if not follow or request.app[STOPPING].is_set():
                break
            if not await _heard(wake):
                await response.write(b"\n")
        await response.write_eof()
    return response


async def _heard(wake: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(_IDLE_SECONDS):
            await wake.wait()
    except TimeoutError:
        return False
    return True


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise refusal(
            "InvalidQueryParameterValue",
            ("QueryParameterName", "after"),
            ("QueryParameterValue", text),
            ("Reason", "must be the number of an event, or 0"),
        )
    return int(text)
