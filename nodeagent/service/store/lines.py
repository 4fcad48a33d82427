"""Questions about what waits and for whom, asked only by explanations: none of them is on the way of a task."""

from nodeagent.service.store import tasks
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.tasks import TaskRow

_IN_LINE = "t.state = 'active' AND t.attempt_num IS NULL AND t.waits = 0"


def waits_for_others(tx: Transaction, task_num: int) -> bool:
    """Tell whether a task waits for other tasks of its job."""
    row = tx.one("SELECT waits FROM tasks WHERE num = ?", (task_num,))
    return row is not None and bool(row[0])


def is_unfetched(tx: Transaction, message_number: int | None) -> bool:
    """Tell whether a message has not been acknowledged by its node."""
    if message_number is None:
        return False
    return tx.one("SELECT 1 FROM messages WHERE number = ?", (message_number,)) is not None


def of_number(tx: Transaction, job_num: int, number: int) -> TaskRow | None:
    """Return the task of a job whose id is this number, leading zeros ignored."""
    exact = tasks.get(tx, job_num, str(number))
    if exact is not None:
        return exact
    row = tx.one(
        "SELECT num FROM tasks WHERE job_num = :job AND key >= '0' AND key < '1'"
        " AND (ltrim(key, '0') = :key OR (:key = '0' AND trim(key, '0') = '')) ORDER BY num LIMIT 1",
        {"job": job_num, "key": str(number)},
    )
    return None if row is None else tasks.by_num(tx, int(row[0]))


def before(tx: Transaction, pool_key: str, *, priority: int, job_num: int, task_num: int) -> tuple[int, int]:
    """Return how many tasks of a pool stand in line before a task: in jobs of higher priority, and in its own job."""
    row = tx.one(
        "SELECT count(*) FROM tasks t JOIN jobs j ON j.num = t.job_num"  # noqa: S608
        f" WHERE j.pool_key = ? AND j.state = 'active' AND j.priority > ? AND {_IN_LINE}",
        (pool_key, priority),
    )
    own = tx.one(
        f"SELECT count(*) FROM tasks t WHERE t.job_num = ? AND t.num < ? AND {_IN_LINE}",  # noqa: S608
        (job_num, task_num),
    )
    return (0 if row is None else int(row[0])), (0 if own is None else int(own[0]))


def of_job(tx: Transaction, job_num: int) -> tuple[int, int]:
    """Return how many active tasks of a job wait for other tasks, and how many stand in line."""
    row = tx.one(
        "SELECT coalesce(sum(t.waits = 1), 0), coalesce(sum(t.waits = 0 AND t.attempt_num IS NULL), 0) FROM tasks t"
        " WHERE t.job_num = ? AND t.state = 'active'",
        (job_num,),
    )
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


def first_waiting_for_others(tx: Transaction, job_num: int) -> TaskRow | None:
    """Return the first task of a job that waits for other tasks."""
    row = tx.one(
        "SELECT num FROM tasks WHERE job_num = ? AND state = 'active' AND waits = 1 ORDER BY num LIMIT 1", (job_num,)
    )
    return None if row is None else tasks.by_num(tx, int(row[0]))
