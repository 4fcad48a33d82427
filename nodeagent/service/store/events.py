"""The log of diagnostic events, numbered without end."""

from datetime import datetime

from nodeagent.model.events import EventRecord, TaskEndEvent, TaskStartEvent
from nodeagent.service.store.database import Transaction

SIGNAL = "events"
"""Raised with every event."""


def add(tx: Transaction, operation_name: str, properties: TaskStartEvent | TaskEndEvent, now: datetime) -> None:
    """Write an event in the transaction of what it tells of."""
    number = tx.one("SELECT coalesce(max(seq), 0) + 1 FROM events")
    seq = max(int(number[0]) if number else 1, _first_free(tx))
    record = EventRecord.model_construct(seq=seq, time=now, operation_name=operation_name, properties=properties)
    tx.execute("INSERT INTO events (seq, record) VALUES (?, ?)", (seq, record.model_dump_json(by_alias=True)))
    tx.signal(SIGNAL)


def _first_free(tx: Transaction) -> int:
    """Return the number after the highest ever used, also of events that were trimmed."""
    row = tx.one("SELECT seq + 1 FROM sqlite_sequence WHERE name = 'events'")
    return 1 if row is None else int(row[0])


def after(tx: Transaction, seq: int, limit: int = 500) -> list[tuple[int, str]]:
    """Return (number, record as one line of JSON) of the events after a number, oldest first."""
    rows = tx.execute("SELECT seq, record FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit))
    return [(row[0], row[1]) for row in rows]


def trim(tx: Transaction, upto: int) -> None:
    """Forget the events up to a number."""
    tx.execute("DELETE FROM events WHERE seq <= ?", (upto,))
