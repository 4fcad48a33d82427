"""A service's store and nodes without processes, for tests of what happens to jobs, tasks and nodes."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from nodeagent.model.enums import (
    ExecutionResult,
)
from nodeagent.model.job import (
    JobCreate,
    JobPreparationTask,
    JobReleaseTask,
    PoolInfo,
)
from nodeagent.model.pool import PoolCreate
from nodeagent.model.protocol import (
    Assignment,
    EndJobSession,
    FileServer,
    Heartbeat,
    NodeCall,
    NodeCommand,
    NodeError,
    NodeMessage,
    NumberedMessage,
    Outcome,
    Register,
    RemoveFiles,
    Report,
    ReportStatus,
    ReturnReason,
    StopAttempt,
    StopReason,
    Transition,
)
from nodeagent.model.task import TaskCreate
from nodeagent.rules.failures import exit_code_failure, task_ended
from nodeagent.service.lifecycle import jobs, nodes, placement, pools, tasks
from nodeagent.service.lifecycle.names import SCHEDULE
from nodeagent.service.lifecycle.reports import apply_report
from nodeagent.service.store import job_nodes, messages
from nodeagent.service.store import jobs as job_rows
from nodeagent.service.store import nodes as node_rows
from nodeagent.service.store import tasks as task_rows
from nodeagent.service.store.database import Connection, Transaction

T = TypeVar("T")
START = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=60)
POOL = "pool"


class Store:
    """A store without threads, whose clock only moves when it is told to."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.now = START
        self.connection = Connection(
            Path(self._folder.name) / "service.db",
            synchronous="normal",
            hooks={SCHEDULE: lambda tx: ignore(placement.place_tasks(tx, self.now))},
        )
        self.connection.migrate()

    def do(self, function: Callable[[Transaction], T]) -> T:
        """Run a function in a transaction of its own, a little later than the one before."""
        self.now += timedelta(milliseconds=1)
        values: list[T] = []
        outcomes, _ = self.connection.commit([lambda tx: values.append(function(tx))])
        if outcomes[0].error is not None:
            raise outcomes[0].error
        return values[0]

    def close(self) -> None:
        """Close the store and remove its folder."""
        self.connection.close()
        self._folder.cleanup()


def ignore(_: object) -> None:
    """Drop a value."""
    return


@dataclass
class Running:
    """An attempt at a node."""

    assignment: Assignment
    seq: int = 0
    running: bool = False
    stop: StopReason | None = None


@dataclass
class FakeNode:
    """An agent without processes: it does what the protocol asks, when the test lets it."""

    store: Store
    id: str
    slots: int
    pool_id: str = POOL
    epoch: int = 1
    boot: int = 1
    cursor: int = 0
    live: dict[str, Running] = field(default_factory=dict)
    prepared: dict[str, ExecutionResult] = field(default_factory=dict)
    ended: dict[str, tuple[Report, ...]] = field(default_factory=dict)
    seen: list[NodeMessage] = field(default_factory=list)
    cut: bool = False
    """Nothing that it says or asks reaches the service; what it has goes on, and its reports wait."""
    outbox: list[Report] = field(default_factory=list)
    errors: tuple[NodeError, ...] = ()
    """What its heartbeats say that is wrong with it."""
    command: NodeCommand | None = None
    """A reboot or reimage that it was told to do, and has not done yet."""

    @property
    def known(self) -> tuple[str, ...]:
        """The attempts whose terminal report is not acknowledged."""
        return tuple(dict.fromkeys((*self.live, *(report.attempt_id for report in self.outbox))))

    def _drop(self, unknown: tuple[str, ...]) -> None:
        for attempt_id in unknown:
            self.live.pop(attempt_id, None)
        self.outbox = [report for report in self.outbox if report.attempt_id not in unknown]

    def come_back(self) -> list[ReportStatus]:
        """Let a cut off node reach the service again: it says that it lives, and what has happened meanwhile."""
        self.cut = False
        self.heartbeat()
        return self.flush()

    def flush(self) -> list[ReportStatus]:
        """Send the reports that wait, oldest first; return what was done with each."""
        waiting, self.outbox = self.outbox, []
        return [self.send(report) for report in waiting]

    def register(self, **more: object) -> None:
        """Register as an agent does at its start; `more` are properties of the call that this node sets otherwise."""
        call = Register(
            node_id=self.id,
            epoch=self.epoch,
            pool_id=self.pool_id,
            instance_id=f"{self.id}-{self.epoch}",
            boot_id=f"boot-{self.boot}",
            boot_time=START,
            slots=self.slots,
            cores=1,
            agent_version="0",
            hostname="h",
            ip_address="127.0.0.1",
            root_directory="/r",
            file_server=FileServer(url="http://127.0.0.1:1", token="t"),
            cursor=self.cursor,
            live_attempts=self.known,
        ).model_copy(update=more)
        self._drop(self.store.do(lambda tx: nodes.register(tx, call, self.store.now)))

    def heartbeat(self) -> None:
        """Send a heartbeat, and drop what the service does not know."""
        call = Heartbeat(
            node_id=self.id, epoch=self.epoch, cursor=self.cursor, live_attempts=self.known, errors=self.errors
        )
        answer = self.store.do(lambda tx: nodes.heartbeat(tx, call, self.store.now))
        self._drop(answer.unknown_attempts)

    @property
    def row(self) -> node_rows.NodeRow:
        """The node as the service sees it."""
        found = self.store.do(lambda tx: node_rows.by_id(tx, self.id))
        assert found is not None
        return found

    def fetch(self) -> int:
        """Take the messages that wait; return how many there were."""
        num = self.row.num
        found = self.store.do(lambda tx: messages.after(tx, num, self.cursor))
        for number, body in found:
            self.cursor = number
            self._take(NumberedMessage.model_validate_json(f'{{"number":{number},"message":{body}}}').message)
        return len(found)

    def _take(self, message: NodeMessage) -> None:
        self.seen.append(message)
        match message:
            case Assignment():
                assert message.attempt_id not in self.live, "an attempt was assigned twice"
                assert message.attempt_id not in self.ended, "an attempt was assigned after its end"
                self.live[message.attempt_id] = Running(message)
                held = sum(attempt.assignment.required_slots for attempt in self.live.values())
                assert held <= self.slots, "the node was given more than it has slots (I8)"
            case StopAttempt():
                if message.attempt_id in self.live:
                    self.live[message.attempt_id].stop = message.reason
            case NodeCommand():
                self.command = message
            case EndJobSession() | RemoveFiles():
                pass

    def obey(self, *, wiped: bool = False) -> None:
        """Do the command that it was told; a `wiped` machine has lost its epoch and its cursor, too."""
        if self.command is None:
            return
        command, self.command = self.command, None
        reimaged = command.command == "reimage"
        if reimaged and wiped:
            self.epoch, self.cursor = 0, 0
        self.begin_anew(command_id=command.command_id, reimaged=reimaged and not wiped)

    def begin_anew(self, **more: object) -> None:
        """Be rebooted: nothing runs any more, and another life of the agent registers."""
        self.epoch += 1
        self.boot += 1
        self.command = None
        for attempt in list(self.live.values()):
            self.prepared.pop(attempt.assignment.attempt_id, None)
        self.live.clear()
        self.register(**more)

    def waits(self, attempt: Running) -> bool:
        """Tell whether an attempt waits for its preparation."""
        gate = attempt.assignment.preparation
        return gate is not None and gate.wait_for_success and gate.attempt_id in self.live

    def report(self, attempt: Running, transition: Transition, **more: object) -> ReportStatus | None:
        """Send the next report of an attempt; None if the node is cut off, and the report waits."""
        attempt.seq += 1
        report = Report.model_validate(
            {
                "attempt_id": attempt.assignment.attempt_id,
                "seq": attempt.seq,
                "transition": transition,
                "at": self.store.now,
                "start_time": self.store.now,
                **more,
            }
        )
        status = None if self.cut else self.send(report)
        if status is None:
            self.outbox.append(report)
        attempt_id = attempt.assignment.attempt_id
        self.ended[attempt_id] = (*self.ended.get(attempt_id, ()), report)
        if transition is Transition.RUNNING:
            attempt.running = True
        else:
            del self.live[attempt_id]
        return status

    def send(self, report: Report) -> ReportStatus:
        """Send one report; return what was done with it. Raises NodeRefusedError where the node is fenced."""
        call = NodeCall(node_id=self.id, epoch=self.epoch)

        def apply(tx: Transaction) -> ReportStatus:
            node = nodes.require(tx, call)
            status = apply_report(tx, node.num, report, self.store.now).status
            nodes.advance(tx, node, self.store.now)
            return status

        return self.store.do(apply)

    def run(self, attempt: Running) -> None:
        """Let an attempt start: or give it back where its preparation has failed."""
        gate = attempt.assignment.preparation
        if attempt.running or self.waits(attempt):
            return
        waited = None if gate is None or not gate.wait_for_success else gate.attempt_id
        if waited is not None and self.prepared.get(waited) is not ExecutionResult.SUCCESS:
            self.report(attempt, Transition.RETURNED, return_reason=ReturnReason.PREPARATION_FAILED)
        else:
            self.report(attempt, Transition.RUNNING)

    def finish(self, attempt: Running, exit_code: int = 0) -> None:
        """Let a running attempt end; a stopped one ends as stopped, one that never ran is given back."""
        if not attempt.running:
            self.run(attempt) if attempt.stop is None else self.report(
                attempt, Transition.RETURNED, return_reason=ReturnReason.STOPPED
            )
            return
        if attempt.stop is not None:
            exit_code = -15
        failure = None if exit_code == 0 else exit_code_failure(exit_code)
        if attempt.stop is not None:
            failure = task_ended(attempt.stop)
        result = ExecutionResult.SUCCESS if failure is None else ExecutionResult.FAILURE
        self.prepared[attempt.assignment.attempt_id] = result
        outcome = Outcome(
            result=result,
            end_time=self.store.now,
            exit_code=exit_code,
            failure_info=failure,
            stop_reason=attempt.stop,
        )
        self.report(attempt, Transition.COMPLETED, outcome=outcome)


def job_spec(job_id: str, **more: object) -> JobCreate:
    """Return the definition of a job on the pool."""
    return JobCreate.model_validate({"id": job_id, "pool_info": PoolInfo(pool_id=POOL), **more})


PREPARATION = JobPreparationTask(command_line="prepare")
RELEASE = JobReleaseTask(command_line="release")


class World:
    """A service's store with some nodes."""

    def __init__(self, *slots: int) -> None:
        self.store = Store()
        self.store.do(lambda tx: pools.create_pool(tx, PoolCreate(id=POOL, vm_size="v"), self.store.now))
        self.nodes = [FakeNode(self.store, f"node{number}", count) for number, count in enumerate(slots)]
        for node in self.nodes:
            node.register()

    def add_node(self, slots: int, pool_id: str = POOL) -> FakeNode:
        """Let one more node join a pool."""
        node = FakeNode(self.store, f"node{len(self.nodes)}", slots, pool_id)
        self.nodes.append(node)
        node.register()
        return node

    def create_job(self, job_id: str = "job", **more: object) -> None:
        """Add a job."""
        self.store.do(lambda tx: jobs.create_job(tx, job_spec(job_id, **more), self.store.now))

    def add_task(self, task_id: str, job_id: str = "job", slots: int = 1) -> None:
        """Add a task to a job."""
        spec = TaskCreate(id=task_id, command_line="true", required_slots=slots)
        self.store.do(lambda tx: tasks.add_task(tx, job_id, spec, self.store.now))

    def job(self, job_id: str = "job") -> job_rows.JobRow:
        """Return a job."""
        return self.store.do(lambda tx: jobs.require(tx, job_id))

    def task(self, task_id: str, job_id: str = "job") -> task_rows.TaskRow:
        """Return a task."""
        return self.store.do(lambda tx: tasks.require(tx, job_id, task_id)[1])

    def job_node(self, node: FakeNode, job_id: str = "job") -> job_nodes.JobNodeRow:
        """Return what a job did on a node."""
        num = self.job(job_id).num
        return next(row for row in self.store.do(lambda tx: job_nodes.of_job(tx, num)) if row.node_id == node.id)

    def drain_node(self, node: FakeNode) -> None:
        """Give a node no more tasks."""
        num = node.row.num
        self.store.do(lambda tx: node_rows.disable_scheduling(tx, num, "agent", self.store.now))

    def step(self, node: FakeNode) -> bool:
        """Fetch, and take every attempt of a node one step on."""
        moved = node.fetch() > 0
        node.obey()
        for attempt in list(node.live.values()):
            if not node.waits(attempt):
                node.finish(attempt)
                moved = True
        return moved

    def drain(self) -> None:
        """Let everything that can end, end."""
        for _ in range(1000):
            if not sum(self.step(node) for node in self.nodes):
                return
        pytest.fail("the service never comes to rest")

    def verb(self, function: Callable[..., object], *arguments: object, **more: object) -> None:
        """Run a verb of a lifecycle now."""
        self.store.do(lambda tx: ignore(function(tx, *arguments, self.store.now, **more)))
