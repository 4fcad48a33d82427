"""Which tasks of a job can never run: nobody is there who could help them, so a run need not wait."""

from collections.abc import Iterable, Mapping
from typing import Any

from nodeagent.model.task import ExitConditions, TaskDependencies, TaskExecutionInfo
from nodeagent.rules.dependencies import satisfies, stuck
from nodeagent.rules.exit_conditions import options_for


def stuck_tasks(tasks: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the ids of the tasks that can never run, in the order of the list; none while another still can.

    `tasks` are all tasks of the job in their wire form. As long as one of them runs or can start, it may add tasks
    that others wait for.
    """
    listed = list(tasks)
    met = {task["id"].lower() for task in listed if task["state"] == "completed" and _satisfies(task)}
    waiting = {
        task["id"].lower(): _dependencies(task) if task["state"] == "active" else None
        for task in listed
        if task["state"] != "completed"
    }
    left = stuck(waiting, met)
    return [task["id"] for task in listed if task["id"].lower() in left] if len(left) == len(waiting) else []


def _dependencies(task: Mapping[str, Any]) -> TaskDependencies | None:
    wanted = task.get("dependsOn")
    return None if wanted is None else TaskDependencies.model_validate(wanted)


def _satisfies(task: Mapping[str, Any]) -> bool:
    execution = TaskExecutionInfo.model_validate(task["executionInfo"])
    body = task.get("exitConditions")
    conditions = None if body is None else ExitConditions.model_validate(body)
    options = options_for(conditions, exit_code=execution.exit_code, failure=execution.failure_info)
    return satisfies(execution, conditions, options)
