"""The attempt's state machine under every order of events, with a crash of the agent between any two of them."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nodeagent.model.enums import ErrorCategory, ExecutionResult
from nodeagent.model.failure import FailureInfo
from nodeagent.model.protocol import (
    TERMINAL_TRANSITIONS,
    Assignment,
    AttemptKind,
    PreparationGate,
    Report,
    StopReason,
    Sweep,
    Transition,
    Work,
    WorkConstraints,
)
from nodeagent.model.values import DEFAULT_USER_IDENTITY
from nodeagent.rules import attempt as rules
from nodeagent.rules import attempt_effects as do
from nodeagent.rules import attempt_events as on
from nodeagent.rules.attempt import Attempt, IllegalEventError, Plan, State, must_commit, resume, step

START = datetime(2026, 1, 1, tzinfo=UTC)
FAILURE = FailureInfo(category=ErrorCategory.SERVER_ERROR, code="BlobDownloadMiscError", message="no")

KINDS = st.sampled_from(list(AttemptKind))
RARELY = st.sampled_from((False, False, False, False, True))
"""Else hardly any attempt would come to the states that lie behind the launch."""
Draw = Callable[[st.SearchStrategy[on.Event]], on.Event]


def _one_of(*events: on.Event) -> st.SearchStrategy[on.Event]:
    return st.sampled_from(events)


RESULTS: dict[type[do.Effect], st.SearchStrategy[on.Event]] = {
    do.AwaitPreparation: _one_of(
        on.PreparationSucceeded(),
        on.PreparationFailed("no"),
        on.PreparationUnknown("?"),
    ),
    do.TransferIn: _one_of(on.TransferredIn(), on.PreProcessingFailed(FAILURE)),
    do.PullImage: _one_of(on.Pulled(), on.PreProcessingFailed(FAILURE)),
    do.SweepBoundary: _one_of(on.Swept(Sweep(killed=1)), on.Swept(Sweep(killed=2, remaining=1))),
    do.TransferOut: _one_of(on.TransferredOut(), on.TransferredOut(FAILURE)),
}
"""What can come of an effect; the first is the good end."""


class AttemptLife(RuleBasedStateMachine):
    """A node with one attempt: what is stored, what is in memory, what is still to be done, and the truth outside."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.outbox: list[Report] = []
        self.todo: list[do.Effect] = []
        self.taken: set[int] = set()
        self.outcomes: dict[int, on.Event] = {}
        self.gate: on.Event | None = None
        self.watching = False
        self.memory = self.stored = Attempt("a", Plan(AttemptKind.USER, False, False, False, False, 0, "d"))

    @initialize(
        kind=KINDS,
        gated=st.booleans(),
        transfers_in=st.booleans(),
        pulls=st.booleans(),
        transfers_out=st.booleans(),
        retries=st.integers(-1, 2),
    )
    def accept(
        self, *, kind: AttemptKind, gated: bool, transfers_in: bool, pulls: bool, transfers_out: bool, retries: int
    ) -> None:
        """An assignment arrives."""
        user = kind in (AttemptKind.USER, AttemptKind.JOB_MANAGER)
        plan = Plan(kind, gated and user, transfers_in, pulls, transfers_out and user, retries, "workitems/j/job-1/t")
        self.memory = Attempt("a", plan)
        self.feed(on.Accepted())

    def feed(self, event: on.Event, *, crash: bool = False) -> None:
        """One step: commit, then remember the effects; with `crash` the agent dies before the commit."""
        self.now += timedelta(seconds=1)
        before = self.memory
        after, effects = step(before, event, self.now)
        assert before.stop_reason in (None, after.stop_reason), "desired only moves forward"
        if crash:
            self.restart()
            return
        self.memory = after
        if must_commit(before, after):
            self.stored = after
            self.outbox += [effect.report for effect in effects if isinstance(effect, do.Send)]
        else:
            assert not any(isinstance(effect, do.Send) for effect in effects)
        self.todo += [effect for effect in effects if not isinstance(effect, do.Send)]
        if after.state in rules.OVER:
            self.todo.clear()  # the runner cancels what goes on for an attempt that is over

    def restart(self) -> None:
        """A new life of the agent knows what was stored, and nothing else."""
        self.memory = self.stored
        self.watching = False
        self.todo = list(resume(self.stored)) if self.stored.state is not State.ACCEPTED else []

    @precondition(lambda self: self.todo)
    @rule(data=st.data(), crash=RARELY)
    def perform(self, data: st.DataObject, *, crash: bool) -> None:
        """The next thing to be done is done, and its result is fed back (or is lost with the agent)."""
        effect = self.todo.pop(0)
        event = self.result_of(effect, data.draw)
        if event is not None:
            self.feed(event, crash=crash)

    def result_of(self, effect: do.Effect, draw: Draw) -> on.Event | None:
        """What comes of an effect. The world outside remembers what must not change with a new life of the agent."""
        match effect:
            case do.Launch():
                return self.launch()
            case do.Look():
                return self.look()
            case do.AwaitPreparation():
                self.gate = self.gate or draw(RESULTS[do.AwaitPreparation])
                return self.gate
            case do.Stop():
                return None
            case _:
                return draw(RESULTS[type(effect)])

    def launch(self) -> on.Event:
        """A launch, at most one per execution."""
        execution = self.memory.execution
        if self.memory.stop_reason is not None:
            return on.Ended(at=self.now, stop_reason=self.memory.stop_reason, sweep=Sweep())
        assert execution not in self.taken, "an execution is launched at most once"
        self.taken.add(execution)
        self.watching = True
        return on.Launched()

    def look(self) -> on.Event:
        """What the records of the present execution say."""
        execution = self.memory.execution
        if execution not in self.taken:
            return self.launch()
        self.watching = execution not in self.outcomes
        return self.outcomes.get(execution, on.Launched())

    @precondition(lambda self: self.memory.execution in self.taken and self.memory.execution not in self.outcomes)
    @rule(
        code=st.sampled_from((0, 1, -9)),
        swept=st.booleans(),
        lost=RARELY,
        stopped=st.booleans(),
        crash=RARELY,
    )
    def execution_ends(self, *, code: int, swept: bool, lost: bool, stopped: bool, crash: bool) -> None:
        """The process ends or its shim dies, whether or not the agent is there to see it."""
        if lost:
            outcome: on.Event = on.Lost("the shim died")
        else:
            reason = self.memory.stop_reason if stopped else None
            outcome = on.Ended(
                at=self.now, exit_code=code, stop_reason=reason, sweep=Sweep() if swept else None, stderr_tail="words"
            )
        self.outcomes[self.memory.execution] = outcome
        if self.watching:
            self.watching = False
            self.feed(outcome, crash=crash)

    @precondition(lambda self: self.memory.state not in rules.OVER)
    @rule(reason=st.sampled_from(list(StopReason)))
    def stop(self, reason: StopReason) -> None:
        """The service asks for an end."""
        self.feed(on.StopRequested(reason))

    @precondition(lambda self: self.memory.state not in (State.RETAINED, State.REMOVED))
    @rule(really=RARELY)
    def disown(self, *, really: bool) -> None:
        """The service does not know the attempt."""
        if really:
            self.feed(on.Disowned())

    @rule()
    def reboot(self) -> None:
        """The machine is rebooted: what ran is lost, and the next life is told before it goes on."""
        if self.memory.execution in self.taken and self.memory.execution not in self.outcomes:
            self.outcomes[self.memory.execution] = on.Lost("the machine was rebooted")
        self.restart()
        if self.memory.state in rules.OVER or self.memory.state is State.ACCEPTED:
            return
        before = self.memory
        self.todo.clear()
        self.feed(on.Rebooted())
        if not before.plan.node_bound and before.state in (State.WAITING_PREP, State.TRANSFERRING_IN, State.PULLING):
            assert self.memory.state in rules.OVER
        self.todo = list(resume(self.memory))

    @precondition(lambda self: self.memory.state is State.REPORTED)
    @rule()
    def acknowledge(self) -> None:
        """The service has the terminal report."""
        self.feed(on.Acknowledged())

    @precondition(lambda self: self.memory.state in rules.OVER)
    @rule(
        event=st.sampled_from(
            (
                on.Launched(),
                on.Lost("?"),
                on.TransferredIn(),
                on.PreparationSucceeded(),
            )
        )
    )
    def something_late(self, event: on.Event) -> None:
        """What the node still sees after the end changes nothing."""
        before = self.memory
        self.feed(event)
        assert self.memory == before

    @rule()
    def crash(self) -> None:
        """Kill -9."""
        self.restart()

    @invariant()
    def reports_are_gapless_and_end_once(self) -> None:
        """I2: sequence numbers without gaps, one terminal report at most, and nothing after it."""
        assert [report.seq for report in self.outbox] == list(range(1, len(self.outbox) + 1))
        terminal = [report for report in self.outbox if report.transition in TERMINAL_TRANSITIONS]
        assert len(terminal) <= 1
        assert not terminal or self.outbox[-1] is terminal[0]

    @invariant()
    def returned_means_never_begun(self) -> None:
        """What is given back has never been reported as running, and nothing of it was launched."""
        if self.outbox and self.outbox[-1].transition is Transition.RETURNED:
            assert len(self.outbox) == 1
            assert not self.taken

    @invariant()
    def exit_codes_are_the_kernels(self) -> None:
        """I3: an exit code is reported only as it was seen of the last execution."""
        if self.outbox and (outcome := self.outbox[-1].outcome) is not None and outcome.exit_code is not None:
            seen = self.outcomes[max(self.taken)]
            assert isinstance(seen, on.Ended)
            assert outcome.exit_code == seen.exit_code

    @invariant()
    def nobody_transfers_for_an_attempt_that_is_to_end(self) -> None:
        """A stop ends downloads and uploads at once, and none begins after it."""
        if self.memory.state in (State.TRANSFERRING_IN, State.TRANSFERRING_OUT):
            assert self.memory.stop_reason is None

    @invariant()
    def retries_are_bounded(self) -> None:
        """The node retries only what is bound to it, and no more often than it may."""
        if not self.memory.plan.node_bound:
            assert self.memory.execution == 0
        limit = self.memory.plan.max_task_retry_count
        assert limit == -1 or self.memory.retry_count <= limit
        assert self.memory.recoveries <= rules.MAX_RECOVERIES

    def teardown(self) -> None:
        """Whatever happened: left alone, the attempt comes to its end."""
        for _ in range(100):
            if self.memory.state in rules.OVER:
                break
            if self.todo:
                effect = self.todo.pop(0)
                event = self.result_of(effect, _first_choice)
                if event is not None:
                    self.feed(event)
            elif self.watching:
                self.execution_ends(code=0, swept=True, lost=False, stopped=False, crash=False)
            else:
                self.restart()
        if self.memory.state is not State.ACCEPTED:
            assert self.memory.state in rules.OVER
            assert self.memory.muted or self.outbox[-1].transition in TERMINAL_TRANSITIONS


def _first_choice(strategy: st.SearchStrategy[on.Event]) -> on.Event:
    elements = strategy.elements  # type: ignore[attr-defined]  # of sampled_from; the first is the good one
    event: on.Event = elements[0]
    return event


TestAttemptLife = AttemptLife.TestCase
TestAttemptLife.settings = settings(max_examples=300, stateful_step_count=30)


def assignment(kind: AttemptKind = AttemptKind.USER, **more: object) -> Assignment:
    """An assignment of a short task."""
    work = Work(
        command_line="/bin/true",
        constraints=WorkConstraints(retention_time=timedelta(days=7)),
        user_identity=DEFAULT_USER_IDENTITY,
    )
    facts: dict[str, object] = {
        "attempt_id": "a",
        "attempt_kind": kind,
        "job_id": "job",
        "task_id": "task",
        "work": work,
    }
    return Assignment.model_validate(facts | more)


def accepted(given: Assignment) -> rules.Stepped:
    """The attempt after its first step."""
    return step(rules.new_attempt(given), on.Accepted(), START)


def after(attempt: Attempt, *events: on.Event) -> rules.Stepped:
    """The attempt after these events, with the effects of the last one."""
    effects: tuple[do.Effect, ...] = ()
    for event in events:
        attempt, effects = step(attempt, event, START)
    return attempt, effects


def sent(effects: tuple[do.Effect, ...]) -> list[Report]:
    """The reports among effects."""
    return [effect.report for effect in effects if isinstance(effect, do.Send)]


def test_a_task_without_files_is_accepted_and_launched_in_one_step() -> None:
    """Nothing to wait for and nothing to bring: one commit holds acceptance, first report and the intent to launch."""
    attempt, effects = accepted(assignment())

    assert attempt.state is State.LAUNCHING
    assert [type(effect) for effect in effects] == [do.Send, do.Launch]
    assert sent(effects)[0].transition is Transition.RUNNING
    assert sent(effects)[0].task_root_directory == "workitems/job/job-1/task"


def test_that_a_shim_holds_the_attempt_is_not_committed() -> None:
    """The shim's own records tell it, so a short task costs no commit in its middle."""
    attempt, _ = accepted(assignment())
    launched, _ = step(attempt, on.Launched(), START)

    assert launched.state is State.RUNNING
    assert not must_commit(attempt, launched)


def test_a_good_end_needs_one_step() -> None:
    """Exit, sweep proof and terminal report are one commit."""
    attempt, effects = after(accepted(assignment())[0], on.Launched(), on.Ended(at=START, exit_code=0, sweep=Sweep()))

    assert attempt.state is State.REPORTED
    (report,) = sent(effects)
    assert report.seq == 2
    assert report.outcome is not None
    assert report.outcome.result is ExecutionResult.SUCCESS
    assert report.outcome.exit_code == 0


def test_a_user_task_that_fails_is_not_retried_by_the_node() -> None:
    """The service retries user tasks, perhaps on another node."""
    constraints = WorkConstraints(retention_time=timedelta(days=7), max_task_retry_count=5)
    work = assignment().work.model_copy(update={"constraints": constraints})
    attempt, effects = after(
        accepted(assignment(work=work))[0],
        on.Ended(at=START, exit_code=3, sweep=Sweep(), stderr_tail="no such table"),
    )

    assert attempt.state is State.REPORTED
    failure = sent(effects)[0].outcome.failure_info  # type: ignore[union-attr]
    assert failure is not None
    assert failure.code == "FailureExitCode"
    assert "no such table" in [detail.value for detail in failure.details]


def test_a_preparation_task_is_swept_and_retried_on_the_node() -> None:
    """A nonzero exit of a preparation task: what the failed try left is swept, then the next execution begins."""
    constraints = WorkConstraints(retention_time=timedelta(days=7), max_task_retry_count=1)
    work = assignment().work.model_copy(update={"constraints": constraints})
    attempt, effects = after(
        accepted(assignment(AttemptKind.JOB_PREPARATION, work=work))[0], on.Ended(at=START, exit_code=1)
    )
    assert attempt.state is State.SWEEPING
    assert effects == (do.SweepBoundary(),)

    attempt, effects = after(attempt, on.Swept(Sweep(killed=1)))
    assert attempt.state is State.LAUNCHING
    assert attempt.execution_id == "a-r1"
    assert attempt.retry_count == 1
    (report,) = sent(effects)
    assert (report.transition, report.retry_count, report.last_retry_time) == (Transition.RUNNING, 1, START)

    attempt, effects = after(attempt, on.Ended(at=START, exit_code=1))
    assert attempt.state is State.REPORTED
    assert sent(effects)[0].transition is Transition.COMPLETED


def test_a_preparation_task_that_succeeds_leaves_its_services_running() -> None:
    """What it left belongs to the job session: no sweep is owed at its end (design.md §4)."""
    attempt, effects = after(accepted(assignment(AttemptKind.JOB_PREPARATION))[0], on.Ended(at=START, exit_code=0))

    assert attempt.state is State.REPORTED
    assert not any(isinstance(effect, do.SweepBoundary) for effect in effects)


def test_a_lost_preparation_is_recovered_without_counting_until_it_is_given_up() -> None:
    """Recovery is a new execution, never a retry; after three of them the attempt fails by name."""
    attempt, _ = accepted(assignment(AttemptKind.JOB_PREPARATION))
    for number in range(1, rules.MAX_RECOVERIES + 1):
        attempt, _ = after(attempt, on.Lost("the shim died"))
        assert attempt.execution == number
        assert attempt.retry_count == 0

    attempt, effects = after(attempt, on.Lost("the shim died"))
    outcome = sent(effects)[0].outcome
    assert outcome is not None
    assert outcome.failure_info is not None
    assert outcome.failure_info.code == "MaxInternalRetryCountReached"


def test_a_release_task_does_not_wait_for_the_preparation() -> None:
    """The gate is in its assignment for its environment only: release runs whatever became of the preparation."""
    gate = PreparationGate(attempt_id="p", task_id="jobpreparation", wait_for_success=True)

    assert accepted(assignment(AttemptKind.JOB_RELEASE, preparation=gate))[0].state is State.LAUNCHING
    assert accepted(assignment(AttemptKind.USER, preparation=gate))[0].state is State.WAITING_PREP


def test_without_wait_for_success_there_is_no_gate() -> None:
    """Tasks start at once beside a preparation that nobody waits for (spec/node.md §11)."""
    gate = PreparationGate(attempt_id="p", task_id="jobpreparation", wait_for_success=False)

    assert accepted(assignment(preparation=gate))[0].state is State.LAUNCHING


def test_a_stop_while_waiting_gives_the_attempt_back() -> None:
    """It was never reported as running, and nothing of it ran."""
    gate = PreparationGate(attempt_id="p", task_id="jobpreparation", wait_for_success=True)
    attempt, effects = after(accepted(assignment(preparation=gate))[0], on.StopRequested(StopReason.USER_TERMINATE))

    assert attempt.state is State.REPORTED
    assert sent(effects)[0].transition is Transition.RETURNED


def test_a_stop_during_launch_is_passed_on_when_the_shim_is_there() -> None:
    """Asked for between intent and launch, the stop is not forgotten."""
    attempt, effects = after(accepted(assignment())[0], on.StopRequested(StopReason.USER_TERMINATE))
    assert effects == (do.Stop(StopReason.USER_TERMINATE),)

    attempt, effects = after(attempt, on.Launched())
    assert attempt.state is State.STOPPING
    assert effects == (do.Stop(StopReason.USER_TERMINATE),)


def test_a_process_that_ended_by_itself_before_the_stop_keeps_its_own_outcome() -> None:
    """The stop came too late, and the exit code is the process's own."""
    attempt, effects = after(
        accepted(assignment())[0],
        on.Launched(),
        on.StopRequested(StopReason.USER_TERMINATE),
        on.Ended(at=START, exit_code=0, sweep=Sweep()),
    )

    outcome = sent(effects)[0].outcome
    assert outcome is not None
    assert outcome.result is ExecutionResult.SUCCESS
    assert outcome.stop_reason is None
    assert attempt.stop_reason is StopReason.USER_TERMINATE


def test_the_first_stop_reason_counts() -> None:
    """Desired only moves forward."""
    attempt, effects = after(
        accepted(assignment())[0],
        on.Launched(),
        on.StopRequested(StopReason.USER_TERMINATE),
        on.StopRequested(StopReason.JOB_TERMINATE),
    )

    assert attempt.stop_reason is StopReason.USER_TERMINATE
    assert effects == ()


def test_an_attempt_that_the_service_disowned_ends_in_silence() -> None:
    """It is stopped, nothing is reported, and no acknowledgement is waited for."""
    attempt, effects = after(accepted(assignment())[0], on.Launched(), on.Disowned())
    assert effects == (do.Stop(StopReason.SUPERSEDED),)

    attempt, effects = after(attempt, on.Ended(at=START, exit_code=-15, sweep=Sweep()))
    assert attempt.state is State.RETAINED
    assert effects == ()


def test_uploads_come_after_the_exit_and_a_failed_one_keeps_the_exit_code() -> None:
    """Spec/node.md §5: the result becomes failure, the exit code stays what it was."""
    attempt, _ = accepted(assignment())
    attempt = replace(attempt, plan=replace(attempt.plan, transfers_out=True))
    attempt, effects = after(attempt, on.Launched(), on.Ended(at=START, exit_code=0, sweep=Sweep()))
    assert effects == (do.TransferOut(),)

    attempt, effects = after(attempt, on.TransferredOut(FAILURE))
    outcome = sent(effects)[0].outcome
    assert outcome is not None
    assert (outcome.exit_code, outcome.result, outcome.failure_info) == (0, ExecutionResult.FAILURE, FAILURE)


def _uploading() -> Attempt:
    """An attempt whose command has ended well, and whose files are being uploaded."""
    attempt, _ = accepted(assignment())
    attempt = replace(attempt, plan=replace(attempt.plan, transfers_out=True))
    return after(attempt, on.Launched(), on.Ended(at=START, exit_code=0, sweep=Sweep()))[0]


@pytest.mark.parametrize("reason", [StopReason.USER_TERMINATE, StopReason.JOB_DISABLE_REQUEUE, StopReason.TASK_DELETE])
def test_a_stop_during_uploads_ends_the_attempt_at_once(reason: StopReason) -> None:
    """The exit code stays; that files are missing is told."""
    attempt, effects = after(_uploading(), on.StopRequested(reason))

    assert attempt.state is State.REPORTED
    outcome = sent(effects)[0].outcome
    assert outcome is not None
    assert outcome.failure_info is not None
    assert (outcome.exit_code, outcome.result, outcome.stop_reason) == (0, ExecutionResult.FAILURE, reason)
    assert outcome.failure_info.code == "TaskEnded"
    assert "its uploads were cut short" in [detail.value for detail in outcome.failure_info.details]
    assert after(attempt, on.TransferredOut())[0] == attempt


def test_uploads_of_an_attempt_that_the_service_disowned_end_in_silence() -> None:
    """Nobody waits for them, and nothing is reported."""
    attempt, effects = after(_uploading(), on.Disowned())

    assert attempt.state is State.RETAINED
    assert effects == ()


def test_a_stop_that_comes_before_the_uploads_begin_keeps_them_from_beginning() -> None:
    """The process ended by itself, while somebody asked for its end."""
    attempt, _ = accepted(assignment())
    attempt = replace(attempt, plan=replace(attempt.plan, transfers_out=True))
    attempt, effects = after(
        attempt,
        on.Launched(),
        on.StopRequested(StopReason.JOB_TERMINATE),
        on.Ended(at=START, exit_code=3, sweep=Sweep()),
    )

    assert attempt.state is State.REPORTED
    outcome = sent(effects)[0].outcome
    assert outcome is not None
    assert (outcome.exit_code, outcome.stop_reason) == (3, StopReason.JOB_TERMINATE)


def test_downloads_that_outlast_the_wall_clock_end_the_attempt_without_an_exit_code() -> None:
    """Spec/node.md §9: maxWallClockTime counts from the start, downloads included; the limit is named."""
    attempt, _ = accepted(assignment())
    plan = replace(attempt.plan, max_wall_clock_time=timedelta(seconds=2))
    attempt, effects = after(
        replace(attempt, state=State.TRANSFERRING_IN, plan=plan), on.StopRequested(StopReason.WALL_CLOCK)
    )

    assert attempt.state is State.REPORTED
    outcome = sent(effects)[0].outcome
    assert outcome is not None
    assert outcome.failure_info is not None
    details = {detail.name: detail.value for detail in outcome.failure_info.details}
    assert (outcome.exit_code, outcome.stop_reason) == (None, StopReason.WALL_CLOCK)
    assert details["Limit"] == "maxWallClockTime PT2S"


def test_nothing_is_uploaded_for_a_task_that_was_ended_by_request() -> None:
    """Spec/node.md §5: terminate, delete and requeue upload nothing."""
    attempt, _ = accepted(assignment())
    attempt = replace(attempt, plan=replace(attempt.plan, transfers_out=True))
    attempt, _ = after(
        attempt,
        on.Launched(),
        on.Ended(at=START, exit_code=-15, stop_reason=StopReason.USER_TERMINATE, sweep=Sweep()),
    )

    assert attempt.state is State.REPORTED


@pytest.mark.parametrize(
    "event",
    [
        on.PreparationSucceeded(),
        on.Swept(Sweep()),
        on.TransferredOut(),
        on.Acknowledged(),
        on.Removed(),
    ],
)
def test_an_event_that_cannot_be_is_a_fault_of_the_caller(event: on.Event) -> None:
    """A running attempt waits for nothing, is not swept, uploads nothing, and has no terminal report."""
    attempt, _ = after(accepted(assignment())[0], on.Launched())

    with pytest.raises(IllegalEventError):
        step(attempt, event, START)


def test_only_an_acknowledged_attempt_can_be_removed() -> None:
    """I5: nothing of an attempt is deleted before the service has its end."""
    attempt, _ = after(accepted(assignment())[0], on.Ended(at=START, exit_code=0, sweep=Sweep()))
    with pytest.raises(IllegalEventError):
        step(attempt, on.Removed(), START)

    attempt, _ = after(attempt, on.Acknowledged(), on.Removed())
    assert attempt.state is State.REMOVED
