"""The service as a whole, model-checked: jobs, tasks and nodes in any order, with cut off nodes and their clones.

It goes over the real store and lifecycles without HTTP (service_world.py). `Lifecycles` in test_service_lifecycle.py
checks that all comes to its end; here it is what must hold after each single step (design.md §8).
"""

import contextlib
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from nodeagent.model.enums import (
    DisableTasks,
    ExecutionResult,
    JobState,
    NodeState,
    OnAllTasksComplete,
    TaskState,
)
from nodeagent.model.job import JobConstraints, JobCreate, JobManagerTask, JobPatch
from nodeagent.model.protocol import Transition
from nodeagent.model.task import TaskConstraints, TaskCreate, TaskDependencies
from nodeagent.model.values import AffinityInfo
from nodeagent.rules.explain import Code
from nodeagent.service.errors import BatchError
from nodeagent.service.explain.jobs import explain_job
from nodeagent.service.explain.nodes import explain_node
from nodeagent.service.explain.tasks import explain_task
from nodeagent.service.lifecycle import deadlines, jobs, nodes, tasks
from nodeagent.service.lifecycle.names import SCHEDULE
from nodeagent.service.store import attempts, counts, start_tasks
from nodeagent.service.store import jobs as job_rows
from nodeagent.service.store import nodes as node_rows
from nodeagent.service.store import tasks as task_rows
from nodeagent.service.store.attempts import LIVE, AttemptState
from nodeagent.service.store.counts import JobCounts
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.tasks import TaskRow
from tests.unit.service_model_nodes import NodeRules
from tests.unit.service_world import LEASE, POOL, PREPARATION, RELEASE, FakeNode, World, ignore, job_spec

_ENDS = """
SELECT json_extract(record, '$.properties.nodeInfo.nodeId'), count(*),
       sum(json_extract(record, '$.properties.executionInfo.result') = 'Success')
FROM events WHERE json_extract(record, '$.operationName') = 'TaskCompleteEvent'
AND json_extract(record, '$.properties.executionInfo.startTime') IS NOT NULL GROUP BY 1
"""
"""How many tasks have ended on each node after they had started there, and how many of them well, by the events."""
JOBS = st.sampled_from(("red", "blue"))
SMALL = st.integers(0, 3)
_HAS_WORLD = precondition(lambda self: self.world is not None)


class ServiceModel(NodeRules):
    """Users, agents and time, one step after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.ended_attempts: dict[int, AttemptState] = {}
        self.ended_tasks: dict[int, ExecutionResult | None] = {}
        self.ran_on: dict[str, str] = {}
        """On which node each attempt's command was started."""

    @initialize(
        slots=st.lists(st.integers(1, 3), min_size=1, max_size=3),
        prepared=st.booleans(),
        limit=st.sampled_from((-1, 2)),
        sizes=st.lists(st.integers(1, 2), min_size=2, max_size=6),
        preemptible=st.booleans(),
    )
    def begin(self, slots: list[int], *, prepared: bool, limit: int, sizes: list[int], preemptible: bool) -> None:
        """Make a pool of some nodes, and two jobs with tasks."""
        self.world = World(*slots)
        for job in ("red", "blue"):
            self._try(
                jobs.create_job,
                _spec(job, prepared=prepared and job == "red", limit=limit, preemptible=preemptible),
            )
            for number, size in enumerate(sizes):
                self.add_task(job, number, size, None, None, None)

    def teardown(self) -> None:
        """Let everything end that can, check once more, and close the store."""
        if self.world is None:
            return
        try:
            self.let_nodes_go()
            for node in self.here.nodes:
                node.errors = ()
                with self.unless_gone(node):
                    node.come_back()
            self.let_nodes_drain()
            self.here.store.do(self._check_all)
            left = self.here.store.do(
                lambda tx: tx.one("SELECT count(*) FROM attempts WHERE state IN ('assigned','running')")
            )
            assert left == (0,), "an attempt never ends although its node is there"
        finally:
            self.here.store.close()

    def _try(self, verb: Callable[..., object], *arguments: object, **more: object) -> bool:
        try:
            self.here.verb(verb, *arguments, **more)
        except BatchError:
            return False
        return True

    # --- users ---

    @rule(
        job=JOBS,
        prepared=st.booleans(),
        waits=st.booleans(),
        managed=st.sampled_from((None, True, False)),
        ends=st.booleans(),
        limit=st.sampled_from((-1, 1, 2)),
        seconds=st.sampled_from((None, 45)),
        preemptible=st.booleans(),
    )
    def create_job(self, job: str, **kind: Any) -> None:  # noqa: ANN401 - what is drawn above
        """Add a job of some kind, where there is none of its id."""
        self._try(jobs.create_job, _spec(job, **kind))

    @rule(
        job=JOBS,
        number=SMALL,
        slots=st.integers(1, 3),
        retries=st.sampled_from((None, 0, -1)),
        wanted=st.none() | SMALL,
        after=st.none() | SMALL,
    )
    def add_task(
        self, job: str, number: int, slots: int, retries: int | None, wanted: int | None, after: int | None
    ) -> None:
        """Add a task, perhaps with a preferred node, perhaps behind another task."""
        spec = TaskCreate(
            id=f"t{number}",
            command_line="x",
            required_slots=slots,
            constraints=TaskConstraints(max_task_retry_count=retries),
            affinity_info=None if wanted is None else AffinityInfo(affinity_id=f"TVM:node{wanted}"),
            depends_on=None if after is None else TaskDependencies(task_ids=(f"t{after}",)),
        )
        self._try(tasks.add_task, job, spec)

    @rule(
        job=JOBS,
        number=SMALL,
        verb=st.sampled_from((tasks.terminate_task, tasks.reactivate_task, tasks.reactivate_task, tasks.delete_task)),
    )
    def change_task(self, job: str, number: int, verb: Callable[..., object]) -> None:
        """Terminate, reactivate or delete a task; one that is reactivated may end a second time."""
        if self._try(verb, job, f"t{number}") and verb is tasks.reactivate_task:
            self.ended_tasks.pop(self.here.task(f"t{number}", job).num, None)

    @rule(job=JOBS, number=SMALL)
    def begin_a_task_anew(self, job: str, number: int) -> None:
        """Terminate a task and reactivate it at once: what ran of it has not ended yet."""
        self.change_task(job, number, tasks.terminate_task)
        self.everything_holds()
        self.change_task(job, number, tasks.reactivate_task)

    @rule(
        job=JOBS,
        verb=st.sampled_from(
            (
                *(partial(jobs.disable_job, disable_tasks=how) for how in DisableTasks),
                *[jobs.enable_job] * 3,
                partial(jobs.patch_job, patch=JobPatch(priority=10, max_parallel_tasks=-1)),
            )
        ),
    )
    def change_job(self, job: str, verb: Callable[..., object]) -> None:
        """Disable a job in one of the three ways, enable it, raise its priority and lift its limit."""
        with contextlib.suppress(BatchError):
            self.here.store.do(lambda tx: ignore(verb(tx, job, now=self.here.store.now)))

    @rule(job=JOBS, verb=st.sampled_from((jobs.terminate_job, jobs.delete_job)), force=st.booleans())
    def end_job(self, job: str, verb: Callable[..., object], *, force: bool) -> None:
        """Terminate or delete a job."""
        self._try(verb, job, force=force)

    # --- agents and time ---

    @rule(index=SMALL)
    def fetch(self, index: int) -> None:
        """Take the messages that wait."""
        node = self.node_of(index)
        if not node.cut:
            node.fetch()

    @rule(index=SMALL, which=SMALL, exit_code=st.sampled_from((0, 0, 1, -9)))
    def go_on(self, index: int, which: int, exit_code: int) -> None:
        """Let an attempt start, or end; also on a node that is cut off."""
        node = self.node_of(index)
        found = list(node.live.values())
        if not found:
            return
        attempt = found[which % len(found)]
        if node.waits(attempt):
            return
        with self.unless_gone(node):
            node.finish(attempt, exit_code)
        if attempt.running:
            attempt_id = attempt.assignment.attempt_id
            assert self.ran_on.setdefault(attempt_id, node.id) == node.id, "one attempt ran on two nodes (I1)"

    @rule(index=SMALL)
    def work(self, index: int) -> None:
        """Let a node fetch and take everything that it has one step on."""
        self.fetch(index)
        for place in reversed(range(len(self.node_of(index).live))):
            self.go_on(index, place, 0)

    @rule(index=SMALL, which=SMALL)
    def lose(self, index: int, which: int) -> None:
        """Let a shim die: the outcome is not known."""
        node = self.node_of(index)
        found = list(node.live.values())
        if found:
            with self.unless_gone(node):
                node.report(found[which % len(found)], Transition.LOST)

    @rule(index=SMALL)
    def cut_off(self, index: int) -> None:
        """Pull a node's cable."""
        self.node_of(index).cut = True

    @rule(index=SMALL)
    def come_back(self, index: int) -> None:
        """Plug it in again."""
        node = self.node_of(index)
        if node.cut:
            with self.unless_gone(node):
                node.come_back()

    @rule(index=SMALL, rebooted=st.booleans())
    def restart(self, index: int, *, rebooted: bool) -> None:
        """Restart an agent, with or without its machine; a call of its former life is refused (fencing)."""
        node = self.node_of(index)
        if node.cut:
            return
        node.epoch += 1
        if rebooted:
            node.boot += 1
            node.live.clear()
            node.command = None
        node.register()
        clone = FakeNode(self.here.store, node.id, node.slots, epoch=node.epoch - 1, cursor=node.cursor)
        for call in (clone.register, clone.heartbeat):
            with pytest.raises(nodes.NodeRefusedError, match="newer agent"):
                call()
        for reports in list(node.ended.values())[:1]:
            with pytest.raises(nodes.NodeRefusedError, match="newer agent"):
                clone.send(reports[-1])

    @rule()
    def time_passes(self) -> None:
        """A third of a lease goes by; who is not cut off is heard."""
        self.here.store.now += LEASE / 3
        for node in self.here.nodes:
            if not node.cut:
                node.heartbeat()
        self.here.store.do(lambda tx: ignore(deadlines.expire(tx, self.here.store.now, LEASE)))
        self.let_nodes_go()

    @rule(index=SMALL, takes=st.booleans())
    def let_node_take_tasks(self, index: int, *, takes: bool) -> None:
        """Disable or enable a node's scheduling."""
        num = self.node_of(index).row.num

        def carry_out(tx: Transaction) -> None:
            if takes:
                node_rows.enable_scheduling(tx, num, self.here.store.now)
            else:
                node_rows.disable_scheduling(tx, num, "agent", self.here.store.now)
            tx.signal(SCHEDULE)

        self.here.store.do(carry_out)

    # --- what holds after each step ---

    @invariant()
    @_HAS_WORLD
    def everything_holds(self) -> None:
        """Check the whole store, in one transaction."""
        self.let_nodes_go()
        self.here.store.do(self._check_all)

    def _check_all(self, tx: Transaction) -> None:
        self._check_jobs(tx)
        self._check_nodes(tx)
        self._check_attempts(tx)

    def _check_jobs(self, tx: Transaction) -> None:
        for job in job_rows.page(tx):
            listed = task_rows.page(tx, job.num)
            assert counts.get(tx, job.num) == _listed(listed), "the counts are not those of a full listing"
            live = attempts.live_of_job(tx, job.num)
            working = [attempt for attempt in live if attempt.kind in attempts.TASK_KINDS]
            if job.state is JobState.DISABLING:
                assert working, "the job has no attempts left, and is still disabling"
            if job.state in (JobState.TERMINATING, JobState.DELETING):
                assert live, f"the job has no attempts left, and is still {job.state}"
            if job.state is JobState.COMPLETED:
                assert not live, "the job has completed, and something of it is still to end"
            limit = job.spec.max_parallel_tasks
            assert limit == -1 or len(working) <= limit, "maxParallelTasks was exceeded"
            assert explain_job(tx, job.id).reasons
            for task in listed:
                self._check_task(tx, job.id, task)

    def _check_task(self, tx: Transaction, job_id: str, task: TaskRow) -> None:
        if task.state is TaskState.COMPLETED:
            result = task.execution.result
            assert self.ended_tasks.setdefault(task.num, result) == result, "a task has ended in two ways (I2)"
        else:
            assert task.num not in self.ended_tasks, "a task that had ended goes on (I2)"
        attempt = None if task.attempt_num is None else attempts.by_num(tx, task.attempt_num)
        if attempt is not None:
            assert attempt.live, "a task is carried by an attempt that has ended"
        if task.state in (TaskState.PREPARING, TaskState.RUNNING):
            assert attempt is not None
            assert not attempt.detached
            assert (attempt.state is AttemptState.RUNNING) == (task.state is TaskState.RUNNING)
        told = [reason.code for reason in explain_task(tx, job_id, task.id).reasons]
        assert told, "nobody knows why the task is in its state"
        assert Code.STARTABLE.value not in told, "a task could run, and was left waiting"

    def _check_nodes(self, tx: Transaction) -> None:
        ends = {name: (ended, succeeded) for name, ended, succeeded in tx.execute(_ENDS)}
        for node in node_rows.page(tx, POOL):
            held = attempts.open_on_node(tx, node.num)
            running = [item for item in held if item.state is AttemptState.RUNNING and item.kind in attempts.TASK_KINDS]
            assert node.free_slots + sum(item.slots_held for item in held) == node.slots, (
                "slots are lost, or made up (I8)"
            )
            assert node.free_slots >= 0
            assert node.running_tasks == len(running)
            assert node.running_slots == sum(item.slots for item in running)
            assert (node.total_tasks_run, node.total_tasks_succeeded) == ends.get(node.id, (0, 0))
            if node.state in (NodeState.IDLE, NodeState.RUNNING):
                assert (node.state is NodeState.RUNNING) == bool(running)
            start_task = start_tasks.of_node(tx, node.num)
            if node.state in node_rows.REACHABLE:
                assert node.command is None, "a node that is to be rebooted or reimaged takes part"
                assert not node.errors, "a node with errors takes part"
                assert start_task is None or not start_task.holds_up, "a node takes part before its start task is done"
            if node.state is NodeState.UNKNOWN:
                assert not any(item.live for item in held), "a silent node still has the service waiting"
            assert explain_node(tx, POOL, node.id).reasons

    def _check_attempts(self, tx: Transaction) -> None:
        rows = tx.execute("SELECT num, state FROM attempts")
        for num, text in rows:
            state = AttemptState(text)
            if state in LIVE:
                assert num not in self.ended_attempts, "an attempt that had ended is live again"
            else:
                assert self.ended_attempts.setdefault(num, state) is state, "an attempt has ended in two ways"
        twice = tx.execute(
            "SELECT task_num FROM attempts WHERE state IN ('assigned', 'running') AND task_num IS NOT NULL"
            " GROUP BY task_num HAVING count(*) > 1"
        )
        assert not twice, "a task is on two live attempts"


def _spec(
    job: str,
    *,
    prepared: bool = False,
    waits: bool = True,
    managed: bool | None = None,
    ends: bool = False,
    limit: int = -1,
    seconds: int | None = None,
    preemptible: bool = False,
) -> JobCreate:
    """Return the definition of a job; `managed` tells whether its manager is exclusive, `seconds` its wall clock."""
    manager = None if managed is None else JobManagerTask(id="m", command_line="m", run_exclusive=managed)
    constraints = JobConstraints(max_task_retry_count=1)
    if seconds is not None:
        constraints = constraints.model_copy(update={"max_wall_clock_time": timedelta(seconds=seconds)})
    return job_spec(
        job,
        uses_task_dependencies=True,
        job_manager_task=manager,
        job_preparation_task=PREPARATION.model_copy(update={"wait_for_success": waits}) if prepared else None,
        job_release_task=RELEASE if prepared else None,
        on_all_tasks_complete=OnAllTasksComplete.TERMINATE_JOB if ends else OnAllTasksComplete.NO_ACTION,
        constraints=constraints,
        max_parallel_tasks=limit,
        allow_task_preemption=preemptible,
    )


def _listed(listed: list[TaskRow]) -> JobCounts:
    """Count tasks and slots as a client would that lists them all."""
    sums = {name: [0, 0] for name in ("active", "preparing", "running", "succeeded", "failed")}
    for task in listed:
        entry = sums[counts.bucket(task.state, task.execution.result)]
        entry[0] += 1
        entry[1] += task.required_slots
    shapes = [counts.shape(*(entry[place] for entry in sums.values())) for place in (0, 1)]
    return JobCounts(*shapes)


ServiceModel.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestServiceModel = ServiceModel.TestCase
