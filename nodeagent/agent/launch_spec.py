"""From an assignment to spec.json: what the shim is told to run (spec/node.md §2, §3, §9; shim/records.py)."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from nodeagent.agent.limits import TaskLimits
from nodeagent.model.protocol import Assignment, StopReason
from nodeagent.model.times import UNLIMITED
from nodeagent.rules.attempt import Attempt
from nodeagent.rules.command_line import split
from nodeagent.rules.environment import NodeFacts, task_environment
from nodeagent.shim.records import Deadline, Spec, User


def launch_spec(  # noqa: PLR0913 - each is one independent property of the execution
    attempt: Attempt,
    assignment: Assignment,
    node: NodeFacts,
    boundary: dict[str, str],
    *,
    user: User | None,
    now: datetime,
    grace_seconds: float,
    durability: Literal["process", "power"],
    limits: TaskLimits,
    packages: Mapping[str, str],
) -> Spec:
    """Return the spec of the attempt's present execution; `packages` has the variables of its packages.

    Raises CommandLineError, EnvironmentLoopError, and ValueError for what no kernel would take.
    """
    paths = node.layout.task(assignment.job_id, assignment.task_id)
    return Spec(
        attempt_id=attempt.execution_id,
        argv=tuple(split(assignment.work.command_line)),
        env=task_environment(node, assignment, packages),
        cwd=str(paths.wd),
        stdout=str(paths.stdout),
        stderr=str(paths.stderr),
        boundary=boundary,
        user=user,
        limits=limits.resources,
        sweep=not attempt.plan.node_bound,
        grace_seconds=grace_seconds,
        deadline=_deadline(attempt, assignment, now),
        output_cap=None if attempt.plan.node_bound else limits.output_cap,
        durability=durability,
    )


def _deadline(attempt: Attempt, assignment: Assignment, now: datetime) -> Deadline | None:
    """The wall clock counts from the start of the execution, downloads included (spec/node.md §9)."""
    limit = assignment.work.constraints.max_wall_clock_time
    if limit >= UNLIMITED or attempt.start_time is None:
        return None
    left = (limit - (now - attempt.start_time)).total_seconds()
    return Deadline(time.clock_gettime(time.CLOCK_BOOTTIME) + max(left, 0.0), StopReason.WALL_CLOCK.value)
