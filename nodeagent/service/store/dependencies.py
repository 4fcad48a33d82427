"""What tasks wait for, and which tasks of a job have satisfied their dependents.

A task that has satisfied its dependents, and is deleted or runs again, goes on counting for the tasks that were
there by then: `until` is the last of their numbers, NULL as long as it counts for all.
"""

from nodeagent.rules.dependencies import Watched
from nodeagent.service.store.database import Transaction

_COUNTS = "(until IS NULL OR until >= :dependent)"


def watch(tx: Transaction, job_num: int, task_num: int, watched: Watched) -> None:
    """Let a task wait for one of its dependencies."""
    tx.execute(
        "INSERT INTO task_waits (task_num, job_num, place, key, number) VALUES (?,?,?,?,?)"
        " ON CONFLICT (task_num) DO UPDATE SET place = excluded.place, key = excluded.key, number = excluded.number",
        (task_num, job_num, watched.place, watched.key, watched.number),
    )


def forget(tx: Transaction, task_num: int) -> None:
    """Let a task wait for nothing any longer."""
    tx.execute("DELETE FROM task_waits WHERE task_num = ?", (task_num,))


def waiting_for(tx: Transaction, job_num: int, key: str, number: int | None) -> list[tuple[int, Watched]]:
    """Return the numbers of the tasks that wait for this id, or for its number, oldest first."""
    rows = tx.execute("SELECT task_num, place FROM task_waits WHERE job_num = ? AND key = ?", (job_num, key))
    found = [(int(row[0]), Watched(row[1], key=key)) for row in rows]
    if number is not None:
        rows = tx.execute("SELECT task_num, place FROM task_waits WHERE job_num = ? AND number = ?", (job_num, number))
        found += [(int(row[0]), Watched(row[1], number=number)) for row in rows]
    return sorted(found, key=lambda item: item[0])


def satisfy(tx: Transaction, job_num: int, key: str, number: int | None) -> None:
    """Record that a task has satisfied its dependents, whoever they are."""
    tx.execute(
        "INSERT INTO satisfied (job_num, key, number) VALUES (?,?,?)"
        " ON CONFLICT (job_num, key) DO UPDATE SET until = NULL",
        (job_num, key, number),
    )


def withdraw(tx: Transaction, job_num: int, key: str) -> None:
    """Let a task that is deleted, or runs again, count only for the tasks that are there now."""
    tx.execute(
        "UPDATE satisfied SET until = (SELECT seq FROM sqlite_sequence WHERE name = 'tasks')"
        " WHERE job_num = ? AND key = ? AND until IS NULL",
        (job_num, key),
    )


def is_met(tx: Transaction, job_num: int, key: str, dependent: int) -> bool:
    """Tell whether the task of this id has satisfied a dependent."""
    row = tx.one(
        f"SELECT 1 FROM satisfied WHERE job_num = :job AND key = :key AND {_COUNTS}",  # noqa: S608
        {"job": job_num, "key": key, "dependent": dependent},
    )
    return row is not None


def highest_missing(tx: Transaction, job_num: int, start: int, end: int, dependent: int) -> int | None:
    """Return the highest number from `start` to `end` for which no task has satisfied a dependent, None if none is."""
    values = {"job": job_num, "start": start, "end": end, "dependent": dependent}
    last = f"SELECT 1 FROM satisfied WHERE job_num = :job AND number = :end AND {_COUNTS}"  # noqa: S608
    if tx.one(last, values) is None:
        return end
    below = "b.job_num = s.job_num AND b.number = s.number - 1 AND (b.until IS NULL OR b.until >= :dependent)"
    row = tx.one(
        "SELECT s.number - 1 FROM satisfied s"  # noqa: S608
        f" WHERE s.job_num = :job AND s.number > :start AND s.number <= :end AND {_COUNTS}"
        f" AND NOT EXISTS (SELECT 1 FROM satisfied b WHERE {below}) ORDER BY s.number DESC LIMIT 1",
        values,
    )
    return None if row is None else int(row[0])


def delete_some(tx: Transaction, job_num: int, limit: int) -> int:
    """Remove up to `limit` rows of a job that is deleted; return how many."""
    return len(
        tx.execute(
            "DELETE FROM satisfied WHERE job_num = :job AND key IN"
            " (SELECT key FROM satisfied WHERE job_num = :job LIMIT :limit) RETURNING key",
            {"job": job_num, "limit": limit},
        )
    )
