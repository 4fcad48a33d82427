"""One execution of a task on a node, as a pure state machine (design.md §4).

`step` takes an attempt, what happened and the time, and returns the attempt as it is now and what is to be done about
it. States in which there is nothing to do (no files, no image, nothing to wait for) are passed within one step, so
that a short task costs two commits: one when it is accepted, one when it has ended. Whoever calls commits the attempt
together with the reports among the effects, and only then performs the effects (nodeagent/agent/attempt_runner.py).
`resume` gives the effects of a stored attempt that must be performed again after a restart.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from nodeagent.model.enums import ExecutionResult
from nodeagent.model.failure import FailureInfo
from nodeagent.model.protocol import (
    Assignment,
    AttemptKind,
    Outcome,
    Report,
    ReturnReason,
    StopReason,
    Sweep,
    Transition,
)
from nodeagent.model.times import UNLIMITED, format_duration
from nodeagent.rules.attempt_effects import (
    AwaitPreparation,
    Effect,
    Launch,
    Look,
    PullImage,
    Send,
    Stop,
    SweepBoundary,
    TransferIn,
    TransferOut,
)
from nodeagent.rules.attempt_events import (
    Accepted,
    Acknowledged,
    Disowned,
    Ended,
    Event,
    Launched,
    Lost,
    PreparationFailed,
    PreparationSucceeded,
    PreparationUnknown,
    PreProcessingFailed,
    Pulled,
    Rebooted,
    Removed,
    StopRequested,
    Swept,
    TransferredIn,
    TransferredOut,
)
from nodeagent.rules.failures import (
    DISK_FULL,
    EXIT_CODE,
    TASK_ENDED,
    exit_code_failure,
    recoveries_used_up,
    task_ended,
    with_details,
)
from nodeagent.rules.layout import STARTUP, task_directory
from nodeagent.rules.retry import Next, after_completed

MAX_RECOVERIES = 3
"""How often an execution of a node-bound task that was lost is begun anew before the attempt is given up."""


class State(StrEnum):
    """Where an attempt stands. `exited`, `lost` and `finalizing` are only passed through, within one step."""

    ACCEPTED = "accepted"
    WAITING_PREP = "waiting_prep"
    TRANSFERRING_IN = "transferring_in"
    PULLING = "pulling"
    LAUNCHING = "launching"
    """The intent to launch is committed; whether a process exists, only the records of the shim can tell."""
    RUNNING = "running"
    STOPPING = "stopping"
    EXITED = "exited"
    LOST = "lost"
    SWEEPING = "sweeping"
    TRANSFERRING_OUT = "transferring_out"
    FINALIZING = "finalizing"
    REPORTED = "reported"
    """The terminal report is in the outbox."""
    RETAINED = "retained"
    """The terminal report is acknowledged; files are kept until they are removed."""
    REMOVED = "removed"


_TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.ACCEPTED: frozenset({State.WAITING_PREP, State.TRANSFERRING_IN, State.PULLING, State.LAUNCHING}),
    State.WAITING_PREP: frozenset(
        {State.TRANSFERRING_IN, State.PULLING, State.LAUNCHING, State.LOST, State.REPORTED, State.RETAINED}
    ),
    State.TRANSFERRING_IN: frozenset({State.PULLING, State.LAUNCHING, State.LOST, State.FINALIZING}),
    State.PULLING: frozenset({State.LAUNCHING, State.LOST, State.FINALIZING}),
    State.LAUNCHING: frozenset({State.RUNNING, State.STOPPING, State.EXITED, State.LOST, State.FINALIZING}),
    State.RUNNING: frozenset({State.STOPPING, State.EXITED, State.LOST}),
    State.STOPPING: frozenset({State.EXITED, State.LOST}),
    State.EXITED: frozenset(
        {
            State.SWEEPING,
            State.TRANSFERRING_IN,
            State.PULLING,
            State.LAUNCHING,
            State.TRANSFERRING_OUT,
            State.FINALIZING,
        }
    ),
    State.LOST: frozenset(
        {
            State.TRANSFERRING_IN,
            State.PULLING,
            State.LAUNCHING,
            State.FINALIZING,
            State.REPORTED,
            State.RETAINED,
        }
    ),
    State.SWEEPING: frozenset(
        {State.TRANSFERRING_IN, State.PULLING, State.LAUNCHING, State.TRANSFERRING_OUT, State.FINALIZING}
    ),
    State.TRANSFERRING_OUT: frozenset({State.FINALIZING}),
    State.FINALIZING: frozenset({State.REPORTED, State.RETAINED}),
    State.REPORTED: frozenset({State.RETAINED}),
    State.RETAINED: frozenset({State.REMOVED}),
    State.REMOVED: frozenset(),
}

OVER = frozenset({State.REPORTED, State.RETAINED, State.REMOVED})
"""States after the terminal report: whatever the node still sees of the execution changes nothing."""
NOT_ACKNOWLEDGED = frozenset(State) - {State.RETAINED, State.REMOVED}
"""States of attempts that the service still counts on: `liveAttempts` of the node protocol."""
_AT_THE_SHIM = frozenset({State.LAUNCHING, State.RUNNING, State.STOPPING})
_BEFORE_LAUNCH = frozenset({State.TRANSFERRING_IN, State.PULLING})


class IllegalEventError(Exception):
    """An event that cannot happen in the attempt's state: a fault of the caller."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the assignment asks for, as far as it decides the attempt's way through the states."""

    kind: AttemptKind
    gated: bool
    """Waits until the job's preparation task has ended on this node."""
    transfers_in: bool
    pulls: bool
    transfers_out: bool
    max_task_retry_count: int
    directory: str
    """The task's directory, relative to the node root."""
    max_wall_clock_time: timedelta = UNLIMITED
    retention_time: timedelta = UNLIMITED
    """How long the directory stays at least, from the terminal report on."""

    @property
    def node_bound(self) -> bool:
        """Retried by the node; what it leaves running belongs to the job session or the node (design.md §4)."""
        return self.kind in (AttemptKind.JOB_PREPARATION, AttemptKind.START)


def plan_of(assignment: Assignment) -> Plan:
    """Derive the plan. Only user and job manager tasks wait for the preparation: release runs whatever became of it."""
    work = assignment.work
    gate = assignment.preparation
    waits = assignment.attempt_kind in (AttemptKind.USER, AttemptKind.JOB_MANAGER)
    return Plan(
        kind=assignment.attempt_kind,
        gated=waits and gate is not None and gate.wait_for_success,
        transfers_in=bool(work.resource_files or work.application_packages),
        pulls=work.container_settings is not None,
        transfers_out=bool(work.output_files),
        max_task_retry_count=work.constraints.max_task_retry_count,
        directory=task_directory(assignment.job_id, assignment.task_id) if assignment.job_id else STARTUP,
        max_wall_clock_time=work.constraints.max_wall_clock_time,
        retention_time=UNLIMITED if assignment.attempt_kind is AttemptKind.START else work.constraints.retention_time,
    )


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt. `stop_reason` is the desired state: None is "run", and it only moves forward."""

    attempt_id: str
    plan: Plan
    state: State = State.ACCEPTED
    stop_reason: StopReason | None = None
    execution: int = 0
    """Counts from 0: tries and recoveries of a node-bound task; always 0 for others."""
    retry_count: int = 0
    recoveries: int = 0
    start_time: datetime | None = None
    last_retry_time: datetime | None = None
    last_seq: int = 0
    """Number of the last report; 0 for none yet."""
    outcome: Outcome | None = None
    """Of the execution that has ended last."""
    terminal: Transition | None = None
    muted: bool = False
    """The service does not know the attempt: nothing more is reported of it."""

    @property
    def execution_id(self) -> str:
        """Name of the present execution: its directory among the records, its boundary, its marker."""
        return execution_id(self.attempt_id, self.execution)

    @property
    def acknowledged(self) -> bool:
        """Nothing of it is owed to the service any more."""
        return self.state not in NOT_ACKNOWLEDGED

    @property
    def executing(self) -> bool:
        """A shim may hold it, and processes of it may run."""
        return self.state in _AT_THE_SHIM or self.state is State.SWEEPING

    @property
    def succeeded(self) -> bool:
        """It has completed, and with success."""
        return (
            self.terminal is Transition.COMPLETED
            and self.outcome is not None
            and self.outcome.result is ExecutionResult.SUCCESS
        )


def execution_id(attempt_id: str, execution: int) -> str:
    """Return the name of an execution: the attempt's id, with `-r<n>` from the second one on."""
    return f"{attempt_id}-r{execution}" if execution else attempt_id


Stepped = tuple[Attempt, tuple[Effect, ...]]


def new_attempt(assignment: Assignment) -> Attempt:
    """Return the attempt that an assignment begins; its first event is `Accepted`."""
    return Attempt(assignment.attempt_id, plan_of(assignment), retry_count=assignment.retry_count)


def step(attempt: Attempt, event: Event, now: datetime) -> Stepped:
    """Return the attempt after the event, and the effects to perform once it is committed.

    An attempt that is over ignores what the node still sees of it; a stop after the end changes nothing. Raises
    IllegalEventError for an event that cannot happen in the attempt's state.
    """
    walk = _Walk(attempt, now)
    match event:
        case StopRequested(reason):
            walk.stop(reason)
        case Disowned():
            walk.disown()
        case Acknowledged():
            walk.acknowledge()
        case Removed():
            walk.move(State.REMOVED)
        case _ if attempt.state in OVER:
            pass
        case _:
            walk.progress(event)
    return walk.attempt, tuple(walk.effects)


_RESUMED: Mapping[State, tuple[Effect, ...]] = {
    State.WAITING_PREP: (AwaitPreparation(),),
    State.TRANSFERRING_IN: (TransferIn(),),
    State.PULLING: (PullImage(),),
    State.LAUNCHING: (Look(),),
    State.RUNNING: (Look(),),
    State.STOPPING: (Look(),),
    State.SWEEPING: (SweepBoundary(),),
    State.TRANSFERRING_OUT: (TransferOut(),),
    State.REPORTED: (),
    State.RETAINED: (),
    State.REMOVED: (),
}


def resume(attempt: Attempt) -> tuple[Effect, ...]:
    """Return the effects of a stored attempt that a new life of the agent must perform (again).

    Raises IllegalEventError for a state that is only passed through and never stored.
    """
    if attempt.state not in _RESUMED:
        raise IllegalEventError(f"an attempt is never stored in state {attempt.state}")
    return _RESUMED[attempt.state]


def must_commit(before: Attempt, after: Attempt) -> bool:
    """Tell whether the step must be stored: that a shim holds the attempt is known from its own records."""
    return after != before and after != replace(before, state=State.RUNNING)


class _Walk:
    """One step in the making: the attempt so far and the effects collected."""

    def __init__(self, attempt: Attempt, now: datetime) -> None:
        self.attempt = attempt
        self.now = now
        self.effects: list[Effect] = []

    def move(self, state: State, **changes: Any) -> None:  # noqa: ANN401 - fields of Attempt, checked by replace
        if state not in _TRANSITIONS[self.attempt.state]:
            raise IllegalEventError(f"attempt {self.attempt.attempt_id} cannot go from {self.attempt.state} to {state}")
        self.attempt = replace(self.attempt, state=state, **changes)

    def change(self, **changes: Any) -> None:  # noqa: ANN401 - fields of Attempt, checked by replace
        self.attempt = replace(self.attempt, **changes)

    # What the node sees.

    def progress(self, event: Event) -> None:
        states, react = _REACTIONS[type(event)]
        if self.attempt.state not in states:
            raise IllegalEventError(f"{type(event).__name__} cannot happen to an attempt that is {self.attempt.state}")
        react(self, event)

    def accepted(self) -> None:
        if self.attempt.plan.gated:
            self.move(State.WAITING_PREP)
            self.effects.append(AwaitPreparation())
        else:
            self.begin()

    def begin(self) -> None:
        self.change(start_time=self.now)
        self.send(Transition.RUNNING)
        if self.attempt.plan.transfers_in:
            self.move(State.TRANSFERRING_IN)
            self.effects.append(TransferIn())
        else:
            self.pull()

    def pull(self) -> None:
        if self.attempt.plan.pulls:
            self.move(State.PULLING)
            self.effects.append(PullImage())
        else:
            self.launch()

    def launch(self) -> None:
        self.move(State.LAUNCHING)
        self.effects.append(Launch())

    def launched(self) -> None:
        reason = self.attempt.stop_reason
        if self.attempt.state is State.LAUNCHING:
            self.move(State.RUNNING if reason is None else State.STOPPING)
        if reason is not None:
            self.effects.append(Stop(reason))

    def ended(self, event: Ended) -> None:
        self.move(State.EXITED, outcome=_outcome_of(event, self.attempt.plan))
        proven = event.sweep is not None and event.sweep.remaining == 0
        owed = self._retries() if self.attempt.plan.node_bound else not proven
        if owed:
            self.move(State.SWEEPING)
            self.effects.append(SweepBoundary())
        else:
            self._after_exit()

    def swept(self, sweep: Sweep) -> None:
        if sweep.remaining:
            self.effects.append(SweepBoundary())
            return
        outcome = self._ended_outcome()
        killed = sweep.killed + (outcome.sweep.killed if outcome.sweep is not None else 0)
        self.change(outcome=outcome.model_copy(update={"sweep": Sweep(killed=killed, remaining=0)}))
        self._after_exit()

    def _after_exit(self) -> None:
        if self._retries():
            self._again(retry_count=self.attempt.retry_count + 1, last_retry_time=self.now)
        elif not self._uploads():
            self.finalize(self._ended_outcome())
        elif self.attempt.stop_reason is not None:
            self.finalize(_cut_short(self._ended_outcome(), self.attempt.stop_reason, self.now))
        else:
            self.move(State.TRANSFERRING_OUT)
            self.effects.append(TransferOut())

    def transferred_out(self, failure: FailureInfo | None) -> None:
        outcome = self._ended_outcome().model_copy(update={"end_time": self.now})
        if failure is not None:
            kept = outcome.failure_info
            shown = failure if kept is None else kept.model_copy(update={"details": kept.details + failure.details})
            outcome = outcome.model_copy(update={"result": ExecutionResult.FAILURE, "failure_info": shown})
        self.finalize(outcome)

    def finalize(self, outcome: Outcome) -> None:
        outcome = _with_sweep(outcome)
        self.move(State.FINALIZING, outcome=outcome)
        self._report_end(Transition.COMPLETED, outcome=outcome)

    def lost(self, detail: str) -> None:
        self.move(State.LOST)
        attempt = self.attempt
        if not attempt.plan.node_bound or attempt.stop_reason is not None:
            self._report_end(Transition.LOST, detail=detail)
        elif attempt.recoveries < MAX_RECOVERIES:
            self._again(recoveries=attempt.recoveries + 1)
        else:
            self.finalize(_failed(self.now, recoveries_used_up(MAX_RECOVERIES, detail)))

    def rebooted(self) -> None:
        """A task that has not been launched yet must not be before start and preparation task have run in this boot.

        The service sends it again; so it does with a release.
        """
        if not self.attempt.plan.node_bound and self.attempt.state in _BEFORE_LAUNCH | {State.WAITING_PREP}:
            self.lost("the node was rebooted before the task was launched")

    def _again(self, **changes: Any) -> None:  # noqa: ANN401 - fields of Attempt, checked by replace
        self.change(execution=self.attempt.execution + 1, outcome=None, **changes)
        self.begin()

    def _retries(self) -> bool:
        """Whether the node itself runs the task again: only what is bound to it, only after a nonzero exit code."""
        attempt = self.attempt
        if not attempt.plan.node_bound or attempt.stop_reason is not None:
            return False
        following = after_completed(
            self._ended_outcome(),
            retry_count=attempt.retry_count,
            max_task_retry_count=attempt.plan.max_task_retry_count,
        )
        return following is Next.RETRY

    def _uploads(self) -> bool:
        """Nothing is uploaded for a command that never ran, or was ended by request (spec/node.md §5)."""
        outcome = self._ended_outcome()
        by_request = outcome.stop_reason not in (None, StopReason.WALL_CLOCK)
        return self.attempt.plan.transfers_out and outcome.exit_code is not None and not by_request

    def _ended_outcome(self) -> Outcome:
        if self.attempt.outcome is None:
            raise IllegalEventError(f"attempt {self.attempt.attempt_id} has no outcome yet")
        return self.attempt.outcome

    # What the service wants.

    def stop(self, reason: StopReason) -> None:
        state = self.attempt.state
        if state in OVER or self.attempt.stop_reason is not None:
            return
        self.change(stop_reason=reason)
        if state is State.WAITING_PREP:
            self.give_back(ReturnReason.STOPPED, f"stopped before it began: {reason}")
        elif state in _BEFORE_LAUNCH:
            limit = _limit(reason, self.attempt.plan)
            self.finalize(_failed(self.now, task_ended(reason, limit=limit), reason))
        elif state is State.LAUNCHING:
            self.effects.append(Stop(reason))
        elif state is State.RUNNING:
            self.move(State.STOPPING)
            self.effects.append(Stop(reason))
        elif state is State.TRANSFERRING_OUT:
            self.finalize(_cut_short(self._ended_outcome(), reason, self.now))

    def disown(self) -> None:
        if self.attempt.state is State.REPORTED:
            self.move(State.RETAINED, muted=True)
        elif self.attempt.state not in OVER:
            self.change(muted=True)
            self.stop(StopReason.SUPERSEDED)

    def acknowledge(self) -> None:
        if self.attempt.state is State.REPORTED:
            self.move(State.RETAINED)
        elif self.attempt.state not in OVER:
            raise IllegalEventError(f"no terminal report of attempt {self.attempt.attempt_id} has been sent")

    # Reports.

    def send(self, transition: Transition, **told: Any) -> None:  # noqa: ANN401 - fields of Report, checked by it
        attempt = self.attempt
        if attempt.muted:
            return
        began = attempt.start_time is not None
        report = Report(
            attempt_id=attempt.attempt_id,
            seq=attempt.last_seq + 1,
            transition=transition,
            at=self.now,
            start_time=attempt.start_time,
            retry_count=attempt.retry_count,
            last_retry_time=attempt.last_retry_time,
            task_root_directory=attempt.plan.directory if began else None,
            **told,
        )
        self.change(last_seq=report.seq)
        self.effects.append(Send(report))

    def give_back(self, reason: ReturnReason, detail: str) -> None:
        self._report_end(Transition.RETURNED, return_reason=reason, detail=detail)

    def _report_end(self, transition: Transition, **told: Any) -> None:  # noqa: ANN401 - fields of Report
        self.send(transition, **told)
        self.move(State.RETAINED if self.attempt.muted else State.REPORTED, terminal=transition)


_REACTIONS: Mapping[type, tuple[frozenset[State], Callable[[_Walk, Any], None]]] = {
    Accepted: (frozenset({State.ACCEPTED}), lambda walk, _: walk.accepted()),
    PreparationSucceeded: (frozenset({State.WAITING_PREP}), lambda walk, _: walk.begin()),
    PreparationFailed: (
        frozenset({State.WAITING_PREP}),
        lambda walk, event: walk.give_back(ReturnReason.PREPARATION_FAILED, event.detail),
    ),
    PreparationUnknown: (frozenset({State.WAITING_PREP}), lambda walk, event: walk.lost(event.detail)),
    TransferredIn: (frozenset({State.TRANSFERRING_IN}), lambda walk, _: walk.pull()),
    Pulled: (frozenset({State.PULLING}), lambda walk, _: walk.launch()),
    PreProcessingFailed: (
        _BEFORE_LAUNCH | {State.LAUNCHING},
        lambda walk, event: walk.finalize(_failed(walk.now, event.failure)),
    ),
    Launched: (_AT_THE_SHIM, lambda walk, _: walk.launched()),
    Ended: (_AT_THE_SHIM, lambda walk, event: walk.ended(event)),
    Lost: (_AT_THE_SHIM, lambda walk, event: walk.lost(event.detail)),
    Rebooted: (frozenset(State), lambda walk, _: walk.rebooted()),
    Swept: (frozenset({State.SWEEPING}), lambda walk, event: walk.swept(event.sweep)),
    TransferredOut: (frozenset({State.TRANSFERRING_OUT}), lambda walk, event: walk.transferred_out(event.failure)),
}
"""Which event may happen in which states, and what it does."""


def _outcome_of(event: Ended, plan: Plan) -> Outcome:
    failure = event.failure
    if event.stop_reason is not None:
        failure = task_ended(
            event.stop_reason,
            event.stderr_tail,
            task_message=event.task_message,
            limit=_limit(event.stop_reason, plan),
        )
    elif event.exit_code and failure is None:
        failure = exit_code_failure(event.exit_code, event.stderr_tail, event.task_message)
    if failure is not None:
        failure = with_details(failure, *event.evidence)
    return Outcome(
        result=ExecutionResult.SUCCESS if failure is None else ExecutionResult.FAILURE,
        end_time=event.at,
        exit_code=event.exit_code,
        failure_info=failure,
        stop_reason=event.stop_reason,
        statistics=event.statistics,
        sweep=event.sweep,
    )


def _limit(reason: StopReason, plan: Plan) -> str | None:
    if reason is not StopReason.WALL_CLOCK:
        return None
    return f"maxWallClockTime {format_duration(plan.max_wall_clock_time)}"


def _with_sweep(outcome: Outcome) -> Outcome:
    """Add what was left of the execution, and what became of it, to the details of a failure."""
    if outcome.failure_info is None or outcome.sweep is None or outcome.exit_code is None:
        return outcome
    if outcome.failure_info.code not in (EXIT_CODE, TASK_ENDED, DISK_FULL):
        return outcome
    told = f"{outcome.sweep.killed} killed, {outcome.sweep.remaining} remain"
    return outcome.model_copy(update={"failure_info": with_details(outcome.failure_info, ("LeftoverProcesses", told))})


def _cut_short(outcome: Outcome, reason: StopReason, now: datetime) -> Outcome:
    """The command had ended by itself: its exit code stays, but what it was to give is not all there."""
    failure = with_details(task_ended(reason), ("Uploads", "its uploads were cut short"))
    changes = {"result": ExecutionResult.FAILURE, "end_time": now, "failure_info": failure, "stop_reason": reason}
    return outcome.model_copy(update=changes)


def _failed(now: datetime, failure: FailureInfo, reason: StopReason | None = None) -> Outcome:
    return Outcome(result=ExecutionResult.FAILURE, end_time=now, failure_info=failure, stop_reason=reason)
