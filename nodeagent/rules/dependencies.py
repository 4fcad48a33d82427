"""When a task's dependencies let it run (spec/node.md §9, spec/rest.md §7.3).

A waiting task watches one dependency that is not met, the last in order: when that is met, the search goes on below
it. What was met once for a task stays met, so nothing above is ever looked at again, and jobs whose tasks end in the
order of their ids look at each dependent once.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from nodeagent.model.enums import DependencyAction, ExecutionResult
from nodeagent.model.task import ExitConditions, ExitOptions, TaskDependencies, TaskExecutionInfo

MAX_TASK_IDS_LENGTH = 64_000
"""Characters that the ids of one `dependsOn.taskIds` may have together."""

LARGEST_NUMBER = 2**31 - 1
"""The bounds of ranges are 32-bit integers; larger ids are in no range."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A dependency that is not met: its place (ids first, then ranges), and the id in lower case, or the number."""

    place: int
    key: str | None = None
    number: int | None = None


def integer_id(task_id: str) -> int | None:
    """Return the number that a range sees in an id, leading zeros ignored; None for other ids."""
    if not (task_id.isascii() and task_id.isdigit()):
        return None
    number = int(task_id)
    return number if number <= LARGEST_NUMBER else None


def ids_too_long(dependencies: TaskDependencies) -> bool:
    """Tell whether the ids that are named have more characters together than Batch takes."""
    return sum(map(len, dependencies.task_ids or ())) > MAX_TASK_IDS_LENGTH


def next_unmet(
    dependencies: TaskDependencies,
    met_last: Watched | None,
    *,
    id_met: Callable[[str], bool],
    highest_missing: Callable[[int, int], int | None],
) -> Watched | None:
    """Return the last dependency that is not met; None if the task may run.

    `met_last` is the one that was watched and has been met: the search goes on below it. `highest_missing` gives the
    highest number from a first to a last (both included) that no task has met.
    """
    ids, ranges = dependencies.task_ids or (), dependencies.task_id_ranges or ()
    top = len(ids) + len(ranges) - 1 if met_last is None else met_last.place
    for place in range(top, len(ids) - 1, -1):
        span = ranges[place - len(ids)]
        end = span.end
        if met_last is not None and met_last.place == place and met_last.number is not None:
            end = met_last.number - 1
        number = highest_missing(span.start, end) if span.start <= end else None
        if number is not None:
            return Watched(place, number=number)
    for place in range(min(top, len(ids) - 1), -1, -1):
        key = ids[place].lower()
        if not id_met(key):
            return Watched(place, key=key)
    return None


def satisfies(execution: TaskExecutionInfo, conditions: ExitConditions | None, options: ExitOptions | None) -> bool:
    """Tell whether a completed task satisfies its dependents.

    `options` are those that the exit conditions give for this end (rules/exit_conditions.py); without any, success
    satisfies and all else blocks.
    """
    if conditions is not None and options is not None and options.dependency_action is not None:
        return options.dependency_action is DependencyAction.SATISFY
    return execution.result is ExecutionResult.SUCCESS


def stuck(waiting: Mapping[str, TaskDependencies | None], met: Collection[str]) -> set[str]:
    """Return which of the unfinished tasks can never run if nobody adds a task: blocked, or in a circle.

    `waiting` has the dependencies of each unfinished task by its id in lower case, `met` the lower-case ids of the
    completed tasks that satisfy their dependents.
    """
    fine = set(met)
    numbers = {integer_id(key) for key in fine}
    left = dict(waiting)

    def missing(start: int, end: int) -> int | None:
        return next((number for number in range(end, start - 1, -1) if number not in numbers), None)

    while True:
        able = {
            key
            for key, wanted in left.items()
            if wanted is None or next_unmet(wanted, None, id_met=fine.__contains__, highest_missing=missing) is None
        }
        if not able:
            return set(left)
        fine |= able
        numbers |= {integer_id(key) for key in able}
        left = {key: wanted for key, wanted in left.items() if key not in able}
