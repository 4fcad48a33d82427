"""The ends of tasks' stdout.txt and stderr.txt, kept for when their node can no longer be asked."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from nodeagent.model.protocol import KeptLog
from nodeagent.service.store.columns import from_micros, to_micros
from nodeagent.service.store.database import Transaction

NAMES = ("stderr.txt", "stdout.txt")
"""What is kept, in the order of a list."""


@dataclass(frozen=True, slots=True)
class LogRow:
    """A log of a task's newest attempt; `size` is that of the whole file, of which `tail` is the end."""

    name: str
    size: int
    modified: datetime
    tail: bytes

    @property
    def whole(self) -> bool:
        """Tell whether nothing is missing."""
        return len(self.tail) >= self.size

    @property
    def content(self) -> bytes:
        """What a reader gets: the whole, or the end below a line that says so."""
        if self.whole:
            return self.tail
        return b"[nodeagent: the first %d bytes are not kept]\n" % (self.size - len(self.tail)) + self.tail


def keep(tx: Transaction, task_num: int, attempt_num: int, logs: Iterable[KeptLog]) -> None:
    """Keep the logs of an attempt of a task, and none of its earlier ones."""
    tx.execute(
        "DELETE FROM task_logs WHERE attempt_num IN (SELECT num FROM attempts WHERE task_num = ? AND num <= ?)",
        (task_num, attempt_num),
    )
    tx.execute_many(
        "INSERT OR REPLACE INTO task_logs (attempt_num, name, size, modified, tail) VALUES (?,?,?,?,?)",
        [(attempt_num, log.name, log.size, to_micros(log.modified), log.tail) for log in logs],
    )


def of_task(tx: Transaction, task_num: int) -> list[LogRow]:
    """Return what is kept of a task's newest attempt, ordered by name; nothing while that one runs."""
    rows = tx.execute(
        "SELECT name, size, modified, tail FROM task_logs"
        " WHERE attempt_num = (SELECT max(num) FROM attempts WHERE task_num = ?) ORDER BY name",
        (task_num,),
    )
    return [LogRow(row[0], row[1], from_micros(row[2]), row[3]) for row in rows]


def forget(tx: Transaction, task_num: int) -> None:
    """Drop what is kept of a task that is deleted."""
    tx.execute("DELETE FROM task_logs WHERE attempt_num IN (SELECT num FROM attempts WHERE task_num = ?)", (task_num,))
