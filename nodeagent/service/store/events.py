"""The log of diagnostic events, numbered without end."""

from datetime import datetime

from nodeagent.model.events import EventRecord, TaskEndEvent, TaskStartEvent
from nodeagent.service.store.database import Transaction

SIGNAL = "events"
"""Raised with every event."""


def add(tx: Transaction, operation_name: str, properties: TaskStartEvent | TaskEndEvent, now: datetime) -> None:
    """Write an event in the transaction of what it tells of. Its number is given by the log."""
    record = EventRecord(seq=0, time=now, operation_name=operation_name, properties=properties)
    tx.execute("INSERT INTO events (record) VALUES (?)", (record.model_dump_json(by_alias=True, exclude={"seq"}),))
    tx.signal(SIGNAL)


def after(tx: Transaction, seq: int, limit: int = 500) -> list[tuple[int, str]]:
    """Return (number, EventRecord as one line of JSON without its end) of the events after a number, oldest first."""
    rows = tx.execute("SELECT seq, record FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit))
    return [(row[0], f'{{"seq":{row[0]},{row[1][1:]}') for row in rows]


def trim(tx: Transaction, upto: int) -> None:
    """Forget the events up to a number."""
    tx.execute("DELETE FROM events WHERE seq <= ?", (upto,))
