"""Which tasks a task waits for, and whether it waits in vain (spec/node.md §9)."""

from collections import deque
from collections.abc import Iterator
from itertools import islice

from nodeagent.model.enums import TaskState
from nodeagent.rules.explain import Code, Finding, finding, how_it_ended
from nodeagent.service.store import dependencies, lines, tasks
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.tasks import TaskRow

_TOLD = 20
"""So many dependencies of a task are told one by one."""
_SEARCHED = 500
"""So many dependencies are looked at to find out whether what is waited for can ever run."""


def unmet(tx: Transaction, task: TaskRow) -> list[Finding]:
    """Explain a task that waits for others: each of these, and why it has not satisfied its dependents."""
    found: list[Finding] = []
    for name, other in _unmet(tx, task):
        if len(found) == _TOLD:
            found.append(finding(Code.MORE, "It waits for more tasks than are told here."))
            break
        found.append(_explained(tx, task, name, other))
    return found


def _explained(tx: Transaction, task: TaskRow, name: str, other: TaskRow | None) -> Finding:
    if other is None:
        change = f"Add a task {name} to the job."
        return finding(Code.DEPENDENCY_MISSING, f"It depends on task {name}, which is not there.", change=change)
    if other.state is TaskState.COMPLETED:
        return finding(
            Code.DEPENDENCY_FAILED,
            f"It depends on task {other.id}, which ended with {how_it_ended(other.execution)}: that does not satisfy"
            " its dependents, so this task never runs unless that one does better.",
            since=other.execution.end_time,
            subject=other.id,
            change=f"Reactivate task {other.id}, so that it can end as this task needs it.",
        )
    return _in_vain(tx, task, other) or finding(
        Code.DEPENDENCY_OPEN,
        f"It depends on task {other.id}, which is {other.state.value}.",
        since=other.state_time,
        subject=other.id,
        change=f"Task {other.id} completes.",
    )


def _in_vain(tx: Transaction, task: TaskRow, first: TaskRow) -> Finding | None:
    """Explain a dependency that can never run itself; None if nothing says so (or too many tasks had to be asked)."""
    seen, left, looked_at = {first.num}, deque([first]), 0
    while left and looked_at < _SEARCHED:
        current = left.popleft()
        if current.num == task.num:
            text = f"It depends on task {first.id}, which waits for this task in turn: neither can ever run."
            change = (
                f"Delete one of the tasks of the circle and add it with other dependencies ({first.id}, {task.id})."
            )
            return finding(Code.DEPENDENCY_CIRCLE, text, subject=first.id, change=change)
        for name, other in islice(_unmet(tx, current), _SEARCHED - looked_at):
            looked_at += 1
            if other is None or other.state is TaskState.COMPLETED:
                return _blocked(first, name, other)
            if other.num not in seen:
                seen.add(other.num)
                left.append(other)
    return None


def _blocked(first: TaskRow, name: str, culprit: TaskRow | None) -> Finding:
    why = f"task {name} is not there"
    change = f"Add a task {name} to the job."
    if culprit is not None:
        why = f"task {culprit.id} ended with {how_it_ended(culprit.execution)}"
        change = f"Reactivate task {culprit.id}, so that it can end as its dependents need it."
    text = f"It depends on task {first.id}, which waits itself, in vain: {why}."
    return finding(Code.DEPENDENCY_BLOCKED, text, subject=first.id, change=change)


def _unmet(tx: Transaction, task: TaskRow) -> Iterator[tuple[str, TaskRow | None]]:
    """Yield the id and the row of each task that a waiting task waits for."""
    wanted = task.spec.depends_on
    if wanted is None or not lines.waits_for_others(tx, task.num):
        return
    for task_id in wanted.task_ids or ():
        if not dependencies.is_met(tx, task.job_num, task_id.lower(), task.num):
            yield task_id, tasks.get(tx, task.job_num, task_id)
    for span in wanted.task_id_ranges or ():
        end: int | None = span.end
        while end is not None and end >= span.start:
            end = dependencies.highest_missing(tx, task.job_num, span.start, end, task.num)
            if end is not None:
                yield str(end), lines.of_number(tx, task.job_num, end)
                end -= 1
