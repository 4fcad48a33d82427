"""Tasks that wait for other tasks of their job, and when they wait no longer (spec/node.md §9)."""

from functools import partial

from nodeagent.model.task import TaskCreate, TaskExecutionInfo
from nodeagent.rules.dependencies import Watched, integer_id, next_unmet, satisfies
from nodeagent.rules.exit_conditions import options_for
from nodeagent.service.lifecycle.names import SCHEDULE
from nodeagent.service.store import dependencies, tasks
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.tasks import TaskRow


def hold(tx: Transaction, job_num: int, task_num: int, spec: TaskCreate) -> None:
    """Let a task that has just been added wait, unless all that it depends on is met already."""
    unmet = _next(tx, job_num, task_num, spec, None)
    if unmet is not None:
        dependencies.watch(tx, job_num, task_num, unmet)
        tasks.set_waiting(tx, task_num, waits=True)


def release(tx: Transaction, job_num: int, task: TaskRow, execution: TaskExecutionInfo) -> None:
    """Let go the tasks for which this one was the last to wait for, if its end satisfies them.

    Those of a task whose end blocks them stay active, for ever unless it is reactivated and does better.
    """
    conditions = task.spec.exit_conditions
    options = options_for(conditions, exit_code=execution.exit_code, failure=execution.failure_info)
    if not satisfies(execution, conditions, options):
        return
    key, number = task.id.lower(), integer_id(task.id)
    dependencies.satisfy(tx, job_num, key, number)
    for dependent_num, watched in dependencies.waiting_for(tx, job_num, key, number):
        dependent = tasks.by_num(tx, dependent_num)
        if dependent is None:
            raise LookupError("a task that is gone waits for another")
        unmet = _next(tx, job_num, dependent_num, dependent.spec, watched)
        if unmet is not None:
            dependencies.watch(tx, job_num, dependent_num, unmet)
            continue
        dependencies.forget(tx, dependent_num)
        tasks.set_waiting(tx, dependent_num, waits=False)
        tx.signal(SCHEDULE)


def withdraw(tx: Transaction, job_num: int, task: TaskRow) -> None:
    """Let tasks that are added from now on wait for this one anew: it is deleted, or runs again."""
    dependencies.withdraw(tx, job_num, task.id.lower())


def _next(tx: Transaction, job_num: int, task_num: int, spec: TaskCreate, met_last: Watched | None) -> Watched | None:
    if spec.depends_on is None:
        return None
    return next_unmet(
        spec.depends_on,
        met_last,
        id_met=lambda key: dependencies.is_met(tx, job_num, key, task_num),
        highest_missing=partial(_highest_missing, tx, job_num, task_num),
    )


def _highest_missing(tx: Transaction, job_num: int, task_num: int, start: int, end: int) -> int | None:
    return dependencies.highest_missing(tx, job_num, start, end, task_num)
