"""When a task's dependencies let it run (spec/node.md §9, spec/rest.md §7.3)."""

from nodeagent.model.enums import DependencyAction, ExecutionResult
from nodeagent.model.task import ExitConditions, ExitOptions, TaskDependencies, TaskExecutionInfo


def dependency_ids(dependencies: TaskDependencies) -> frozenset[str]:
    """Return the lower-cased ids that are named one by one (ranges are not expanded)."""
    return frozenset(task_id.lower() for task_id in dependencies.task_ids or ())


def integer_id(task_id: str) -> int | None:
    """Return the number that a range sees in an id, leading zeros ignored; None for other ids."""
    return int(task_id) if task_id.isascii() and task_id.isdigit() else None


def in_ranges(dependencies: TaskDependencies, task_id: str) -> bool:
    """Tell whether an id lies in one of the ranges."""
    number = integer_id(task_id)
    return number is not None and any(item.start <= number <= item.end for item in dependencies.task_id_ranges or ())


def satisfies(execution: TaskExecutionInfo, conditions: ExitConditions | None, options: ExitOptions | None) -> bool:
    """Tell whether a completed task satisfies its dependents.

    `options` are those that the exit conditions give for this end (rules/exit_conditions.py); without any, success
    satisfies and all else blocks.
    """
    if conditions is not None and options is not None and options.dependency_action is not None:
        return options.dependency_action is DependencyAction.SATISFY
    return execution.result is ExecutionResult.SUCCESS
