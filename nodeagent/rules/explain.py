"""Sentences that explain: from facts to reasons (docs/explain.md lists the codes)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from nodeagent.model.enums import ExecutionResult, JobState, NodeState, SchedulingState
from nodeagent.model.explanation import Reason
from nodeagent.model.job import JobReleaseTaskExecutionInfo
from nodeagent.model.node import StartTaskInfo
from nodeagent.model.protocol import TransferPhase, TransferProgress
from nodeagent.model.task import TaskExecutionInfo

LISTED = 10
"""So many nodes or tasks are told one by one; of the others only how many they are."""


class Code(StrEnum):
    """The codes of reasons."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    RETRIED = "Retried"
    REQUEUED = "Requeued"
    RECOVERED = "Recovered"
    RUNNING = "Running"
    TRANSFERRING = "Transferring"
    STOP_REQUESTED = "StopRequested"
    ASSIGNED = "Assigned"
    PREPARATION = "WaitingForPreparation"
    LAST_ATTEMPT = "LastAttemptEnding"
    RETRY_PENDING = "RetryPending"
    JOB_STATE = "JobNotActive"
    DEPENDENCY_OPEN = "DependencyNotCompleted"
    DEPENDENCY_FAILED = "DependencyNotSatisfied"
    DEPENDENCY_MISSING = "DependencyMissing"
    DEPENDENCY_BLOCKED = "DependencyBlocked"
    DEPENDENCY_CIRCLE = "DependencyCircle"
    MAX_PARALLEL = "MaxParallelTasksReached"
    POOL_MISSING = "PoolNotFound"
    POOL_DELETING = "PoolDeleting"
    NO_NODES = "NoNodes"
    TOO_MANY_SLOTS = "RequiredSlotsTooMany"
    INELIGIBLE = "NodeIneligible"
    NOT_DEDICATED = "NodeNotDedicated"
    NODE_STATE = "NodeNotAvailable"
    SCHEDULING_DISABLED = "SchedulingDisabled"
    PREEMPTING = "WaitingForPreempted"
    NO_ROOM = "WaitingForSlots"
    RESERVED = "NodeReserved"
    TASKS_AHEAD = "TasksAhead"
    STARTABLE = "NothingHinders"
    TASKS_OPEN = "TasksNotCompleted"
    ALL_COMPLETE = "AllTasksCompleted"
    FIRST_IN_LINE = "FirstInLine"
    TASK_ENDING = "TaskEnding"
    PREPARATION_ENDING = "PreparationEnding"
    RELEASE_RUNNING = "ReleaseRunning"
    JOB_ENDED = "JobEnded"
    REMOVING = "RowsBeingRemoved"
    NODE_RUNS = "NodeRuns"
    NODE_COMMAND = "CommandPending"
    NODE_ERROR = "NodeError"
    START_TASK = "WaitingForStartTask"
    START_TASK_FAILED = "StartTaskFailed"
    NOTHING_WAITS = "NothingWaits"
    MORE = "More"


@dataclass(frozen=True, slots=True)
class Finding:
    """A reason, and what would change it."""

    reason: Reason
    change: str | None = None


def finding(
    code: Code, message: str, *, since: datetime | None = None, subject: str | None = None, change: str | None = None
) -> Finding:
    """Make a finding."""
    return Finding(Reason(code=code.value, message=message, since=since, subject=subject), change)


def changes(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return what would change something, each once, in the order of the reasons."""
    return tuple(dict.fromkeys(item.change for item in findings if item.change is not None))


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 slot`, `3 slots`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def names(items: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    shown = ", ".join(items[:LISTED])
    return shown if len(items) <= LISTED else f"{shown} and {len(items) - LISTED} more"


def shortened(found: Sequence[Finding], noun: str) -> list[Finding]:
    """Return the first findings of a kind, and one that counts the others."""
    if len(found) <= LISTED:
        return list(found)
    code = found[0].reason.code
    return [
        *found[:LISTED],
        finding(Code.MORE, f"The same ({code}) holds for {count(len(found) - LISTED, noun)} more."),
    ]


def how_it_ended(execution: TaskExecutionInfo | JobReleaseTaskExecutionInfo | StartTaskInfo) -> str:
    """Return in one phrase how an execution ended: `exit code 3 (FailureExitCode: ...)`."""
    if execution.result is ExecutionResult.SUCCESS:
        return "exit code 0" if execution.exit_code == 0 else "success"
    code = "no exit code" if execution.exit_code is None else f"exit code {execution.exit_code}"
    failure = execution.failure_info
    if failure is None:
        return code
    details = "; ".join(f"{item.name}: {item.value}" for item in failure.details if item.name == "Message")
    what = ": ".join(part for part in (failure.code, failure.message, details) if part)
    return f"{code} ({' '.join(what.split())})"


_PHASES = {
    TransferPhase.DOWNLOADING: "downloads its resource files",
    TransferPhase.INSTALLING: "installs its application packages",
    TransferPhase.UPLOADING: "uploads its output files",
}


def transfer(progress: TransferProgress, node_id: str | None) -> Finding:
    """Explain what a task transfers now, and how far that is."""
    files = (
        str(progress.files_done) if progress.files_total is None else f"{progress.files_done} of {progress.files_total}"
    )
    size = (
        str(progress.bytes_done) if progress.bytes_total is None else f"{progress.bytes_done} of {progress.bytes_total}"
    )
    text = f"It {_PHASES[progress.phase]}: {files} files, {size} bytes."
    return finding(Code.TRANSFERRING, text, subject=node_id)


def task_ended(execution: TaskExecutionInfo, *, recoveries: int) -> list[Finding]:
    """Explain a completed task: its result and what led there."""
    ended = how_it_ended(execution)
    if execution.result is ExecutionResult.SUCCESS:
        found = [finding(Code.SUCCEEDED, f"It succeeded: {ended}.", since=execution.end_time)]
    else:
        change = "Reactivate the task: it runs again, with its retries counted anew."
        found = [finding(Code.FAILED, f"It failed: {ended}.", since=execution.end_time, change=change)]
    return found + history(execution, recoveries=recoveries)


def history(execution: TaskExecutionInfo, *, recoveries: int) -> list[Finding]:
    """Explain what became of a task's earlier executions."""
    found = []
    if execution.retry_count:
        text = f"Its command failed before, and was retried: {count(execution.retry_count, 'time')}."
        found.append(finding(Code.RETRIED, text, since=execution.last_retry_time))
    if execution.requeue_count:
        text = f"It was put back into the queue on somebody's request: {count(execution.requeue_count, 'time')}."
        found.append(finding(Code.REQUEUED, text, since=execution.last_requeue_time))
    if recoveries > 0:
        text = f"The end of {count(recoveries, 'earlier attempt')} is not known or did not count: it was started anew."
        found.append(finding(Code.RECOVERED, text))
    return found


_JOB_STATES = {
    JobState.DISABLING: (
        "is being disabled: no task of it starts",
        "Enable the job (POST /jobs/{id}/enable).",
    ),
    JobState.DISABLED: (
        "is disabled: no task of it starts",
        "Enable the job (POST /jobs/{id}/enable).",
    ),
    JobState.TERMINATING: ("is being terminated: no task of it starts any more", None),
    JobState.COMPLETED: ("has completed: tasks that were active then stay so, and never run", None),
    JobState.DELETING: ("is being deleted: its tasks go with it", None),
}


def job_gate(job_id: str, state: JobState, since: datetime) -> Finding | None:
    """Explain why no task of a job starts, if that is because of the job's own state."""
    if state not in _JOB_STATES:
        return None
    text, change = _JOB_STATES[state]
    change = None if change is None else change.format(id=job_id)
    return finding(Code.JOB_STATE, f"Job {job_id} {text}.", since=since, subject=job_id, change=change)


_NODE_STATES = {
    NodeState.OFFLINE: "takes no tasks: its scheduling is disabled",
    NodeState.UNUSABLE: "is unusable: something is wrong with it (see its errors)",
    NodeState.UNKNOWN: "is silent: its lease has run out, and its tasks were given to others",
    NodeState.START_TASK_FAILED: "takes no tasks: its start task failed",
    NodeState.WAITING_FOR_START_TASK: "takes no tasks until its start task has succeeded",
    NodeState.STARTING: "is starting",
    NodeState.CREATING: "is being made",
    NodeState.REBOOTING: "is rebooting",
    NodeState.REIMAGING: "is being reimaged",
    NodeState.LEAVING_POOL: "is leaving the pool",
    NodeState.PREEMPTED: "was preempted",
    NodeState.UPGRADING_OS: "is being upgraded",
    NodeState.DEALLOCATING: "is being deallocated",
    NodeState.DEALLOCATED: "is deallocated",
}
_NODE_CHANGES = {
    NodeState.OFFLINE: "Enable scheduling on node {id}.",
    NodeState.UNUSABLE: "Repair what the errors of node {id} name, or reimage the node.",
    NodeState.UNKNOWN: "Start the agent of node {id}, or give it its network back.",
    NodeState.START_TASK_FAILED: "Correct the start task of the pool, then reboot node {id}.",
    NodeState.DEALLOCATED: "Start node {id}.",
}


def node_unavailable(
    node_id: str, state: NodeState, scheduling: SchedulingState, *, since: datetime, heard: datetime
) -> Finding | None:
    """Explain why a node takes no tasks at all; None if neither its state nor its scheduling keeps it from that."""
    if state in _NODE_STATES:
        change = _NODE_CHANGES.get(state)
        silent = f", last heard of at {heard:%Y-%m-%dT%H:%M:%SZ}" if state is NodeState.UNKNOWN else ""
        return finding(
            Code.NODE_STATE if state is not NodeState.OFFLINE else Code.SCHEDULING_DISABLED,
            f"Node {node_id} {_NODE_STATES[state]} (state {state.value}{silent}).",
            since=since,
            subject=node_id,
            change=None if change is None else change.format(id=node_id),
        )
    if scheduling is SchedulingState.DISABLED:
        return finding(
            Code.SCHEDULING_DISABLED,
            f"Node {node_id} takes no tasks: its scheduling is disabled; what runs there goes on.",
            subject=node_id,
            change=_NODE_CHANGES[NodeState.OFFLINE].format(id=node_id),
        )
    return None
