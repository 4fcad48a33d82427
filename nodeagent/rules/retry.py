"""What follows the end of an attempt: one rule for service and node (design.md §4, spec/node.md §9, §16)."""

from enum import StrEnum

from nodeagent.model.enums import ExecutionResult
from nodeagent.model.protocol import Outcome, StopReason

REQUEUE_REASONS = frozenset(
    {StopReason.JOB_DISABLE_REQUEUE, StopReason.DRAIN_REQUEUE, StopReason.NODE_REMOVED, StopReason.PREEMPTED}
)
"""Stop reasons after which the task goes back to the queue."""

COUNTED_REQUEUES = frozenset({StopReason.JOB_DISABLE_REQUEUE, StopReason.DRAIN_REQUEUE, StopReason.NODE_REMOVED})
"""Requeues that a user asked for: they count in `requeueCount`; preemption does not (spec/node.md §16)."""


class Next(StrEnum):
    """What becomes of the task."""

    COMPLETE = "complete"
    RETRY = "retry"
    """A new attempt, counted in `retryCount`."""
    REQUEUE = "requeue"
    """A new attempt on a user's request, counted in `requeueCount`."""
    RECOVER = "recover"
    """A new attempt that no counter shows, only `systemTaskVersion`."""


def retries_left(retry_count: int, max_task_retry_count: int) -> bool:
    """Tell whether one more retry is allowed; -1 is without limit."""
    return max_task_retry_count == -1 or retry_count < max_task_retry_count


def after_completed(outcome: Outcome, *, retry_count: int, max_task_retry_count: int) -> Next:
    """Decide after an attempt whose outcome is known.

    Only a nonzero exit code of a process that ended by itself is retried: not a failure before launch, not a
    failed upload after exit 0, not the wall clock, not a termination.
    """
    if outcome.stop_reason in REQUEUE_REASONS:
        return Next.REQUEUE if outcome.stop_reason in COUNTED_REQUEUES else Next.RECOVER
    if outcome.result is ExecutionResult.SUCCESS or outcome.stop_reason is not None:
        return Next.COMPLETE
    if outcome.exit_code is None or outcome.exit_code == 0:
        return Next.COMPLETE
    return Next.RETRY if retries_left(retry_count, max_task_retry_count) else Next.COMPLETE


MAX_INTERNAL_RETRIES = 100
"""How often a task may be recovered from the same trouble. A node that cannot launch anything fails within
milliseconds: without a limit such a task would go round for ever. The number is ours; Batch's is not public."""


def after_lost(*, system_task_version: int, requeue_count: int) -> Next:
    """Decide after an attempt whose outcome is not known, while its node is there to say so.

    `system_task_version` counts recoveries and requeues together.
    """
    return Next.RECOVER if system_task_version - requeue_count < MAX_INTERNAL_RETRIES else Next.COMPLETE
