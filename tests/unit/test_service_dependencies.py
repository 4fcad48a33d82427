"""Tasks that wait for others, in the service's store (spec/node.md §9)."""

from collections.abc import Callable

import pytest

from nodeagent.model.enums import DependencyAction, JobAction, JobState, OnTaskFailure, TaskState
from nodeagent.model.task import (
    ExitCodeMapping,
    ExitConditions,
    ExitOptions,
    TaskCreate,
    TaskDependencies,
    TaskIdRange,
)
from nodeagent.rules.dependencies import MAX_TASK_IDS_LENGTH
from nodeagent.service.errors import BatchError
from nodeagent.service.lifecycle import jobs, tasks
from nodeagent.service.store.tasks import TaskRow
from tests.unit.service_world import FakeNode, Running, World

pytest_plugins = ["tests.unit.service_fixtures"]

SATISFY_ON_7 = ExitConditions(
    exit_codes=(ExitCodeMapping(code=7, exit_options=ExitOptions(dependency_action=DependencyAction.SATISFY)),)
)
BLOCK_ON_0 = ExitConditions(
    exit_codes=(ExitCodeMapping(code=0, exit_options=ExitOptions(dependency_action=DependencyAction.BLOCK)),)
)


def add(world: World, task_id: str, *ids: str, spans: tuple[tuple[int, int], ...] = (), **more: object) -> TaskRow:
    """Add a task that waits for ids and for ranges."""
    ranges = tuple(TaskIdRange(start=start, end=end) for start, end in spans)
    depends_on = TaskDependencies(task_ids=ids, task_id_ranges=ranges) if ids or spans else None
    spec = TaskCreate.model_validate({"id": task_id, "command_line": "x", "depends_on": depends_on, **more})
    return world.store.do(lambda tx: tasks.add_task(tx, "job", spec, world.store.now))


def at_node(node: FakeNode) -> list[str]:
    """Return the ids of the tasks that a node has now."""
    node.fetch()
    return [attempt.assignment.task_id for attempt in node.live.values()]


def end(node: FakeNode, task_id: str, exit_code: int = 0) -> None:
    """Let a task that the node has run to its end."""
    node.fetch()
    attempt: Running = next(found for found in node.live.values() if found.assignment.task_id == task_id)
    node.run(attempt)
    node.finish(attempt, exit_code)


@pytest.fixture
def world(worlds: Callable[..., World]) -> World:
    """A world with a node of many slots and a job whose tasks may depend on each other."""
    world = worlds(50)
    world.create_job(uses_task_dependencies=True)
    return world


@pytest.fixture
def node(world: World) -> FakeNode:
    """The world's node."""
    return world.nodes[0]


def test_a_task_starts_when_the_last_of_its_dependencies_has_succeeded(world: World, node: FakeNode) -> None:
    """In whatever order they end, ids in any case, and those that are added later count too."""
    add(world, "last", "A", "b", "c")
    add(world, "a")
    add(world, "b")
    assert at_node(node) == ["a", "b"]
    end(node, "b")
    end(node, "a")
    assert at_node(node) == []
    add(world, "C")
    end(node, "C")
    assert at_node(node) == ["last"]
    world.drain()
    add(world, "after-all", "a", "C", "last")
    assert at_node(node) == ["after-all"], "what is met already is not waited for"


def test_a_failure_blocks_for_ever_unless_its_exit_options_say_otherwise(world: World, node: FakeNode) -> None:
    """Blocked tasks stay active; dependencyAction decides by exit code, also against a success."""
    for task_id, conditions in (("a", None), ("b", SATISFY_ON_7), ("c", SATISFY_ON_7), ("d", BLOCK_ON_0)):
        add(world, task_id, exit_conditions=conditions)
        add(world, f"after-{task_id}", task_id)
    for task_id, exit_code in (("a", 7), ("b", 7), ("c", 8), ("d", 0)):
        end(node, task_id, exit_code)
    assert at_node(node) == ["after-b"]
    world.drain()
    states = {task_id: world.task(f"after-{task_id}").state for task_id in "abcd"}
    assert [task_id for task_id, state in states.items() if state is TaskState.ACTIVE] == ["a", "c", "d"]
    assert world.job().state is JobState.ACTIVE


def test_a_blocked_task_goes_on_when_what_blocked_it_is_reactivated_and_succeeds(world: World, node: FakeNode) -> None:
    """A reactivated task gets another chance, and so do those that wait for it."""
    add(world, "a")
    add(world, "b", "a")
    end(node, "a", 1)
    world.verb(tasks.reactivate_task, "job", "a")
    assert at_node(node) == ["a"]
    end(node, "a")
    assert at_node(node) == ["b"]


def test_a_range_waits_for_a_task_of_each_of_its_numbers(world: World, node: FakeNode) -> None:
    """Leading zeros are ignored, the first of several with the same number satisfies, words are in no range."""
    add(world, "late", spans=((9, 12), (1, 1)))
    for task_id in ("01", "9", "009", "10", "0011", "x12", "13"):
        add(world, task_id)
    for task_id in ("9", "10", "0011", "x12", "13", "01"):
        end(node, task_id)
    assert at_node(node) == ["009"]
    add(world, "12")
    end(node, "12")
    assert at_node(node) == ["009", "late"]


def test_a_task_that_was_deleted_counts_for_those_that_waited_for_it(world: World, node: FakeNode) -> None:
    """Not for those that are added later: these wait for a new task of this id."""
    for task_id in ("a", "5", "slow"):
        add(world, task_id)
    add(world, "before", "a", "slow", spans=((5, 5),))
    end(node, "a")
    end(node, "5")
    world.verb(tasks.delete_task, "job", "a")
    world.verb(tasks.delete_task, "job", "5")
    add(world, "later", "a", spans=((5, 5),))
    end(node, "slow")
    assert at_node(node) == ["before"]
    add(world, "a")
    add(world, "05")
    end(node, "a")
    end(node, "05")
    assert at_node(node) == ["before", "later"]


def test_dependents_of_a_task_that_is_deleted_before_its_end_wait_on(world: World, node: FakeNode) -> None:
    """They are not started by its removal; terminating one that waits completes it, and it can be reactivated."""
    add(world, "a")
    add(world, "b", "a")
    world.verb(tasks.delete_task, "job", "a")
    node.fetch()
    world.drain()
    assert world.task("b").state is TaskState.ACTIVE
    world.verb(tasks.terminate_task, "job", "b")
    ended = world.task("b")
    assert (ended.state, ended.node, ended.execution.exit_code) == (TaskState.COMPLETED, None, None)
    world.verb(tasks.reactivate_task, "job", "b")
    assert at_node(node) == [], "it still waits"
    add(world, "a")
    end(node, "a")
    assert at_node(node) == ["b"]


def test_thousands_of_dependents_cost_one_row_each(worlds: Callable[..., World]) -> None:
    """However many tasks each waits for: a thousand, by range and by id."""
    world = worlds(1)
    world.create_job(uses_task_dependencies=True)
    names = tuple(str(number) for number in range(1, 1001))
    specs = [TaskCreate(id=name, command_line="x") for name in names]
    by_range = TaskDependencies(task_id_ranges=(TaskIdRange(start=1, end=1000),))
    by_id = TaskDependencies(task_ids=names)
    specs += [
        TaskCreate(id=f"after-{number}", command_line="x", depends_on=by_id if number % 2 else by_range)
        for number in range(1000)
    ]
    world.store.do(lambda tx: tasks.add_tasks(tx, "job", specs, world.store.now))
    assert world.store.do(lambda tx: tx.one("SELECT count(*) FROM task_waits")) == (1000,)
    node = world.nodes[0]
    for name in names[:-1]:
        end(node, name)
    assert at_node(node) == ["1000"]
    end(node, "1000")
    assert at_node(node) == ["after-0"]
    assert world.store.do(lambda tx: tx.one("SELECT count(*) FROM task_waits")) == (0,)


def test_deleting_a_job_leaves_nothing_of_its_dependencies(world: World, node: FakeNode) -> None:
    """Neither what waited nor what was met."""
    add(world, "a")
    add(world, "b", "a", "never")
    end(node, "a")
    world.verb(jobs.delete_job, "job")
    world.drain()
    left = "SELECT (SELECT count(*) FROM task_waits), (SELECT count(*) FROM satisfied), (SELECT count(*) FROM tasks)"
    assert world.store.do(lambda tx: tx.one(left)) == (0, 0, 0)


def test_dependencies_and_actions_are_refused_where_the_job_does_not_take_them(worlds: Callable[..., World]) -> None:
    """By Batch's codes, and the path of what is wrong."""
    world = worlds(1)
    world.create_job()

    def refusal(**more: object) -> BatchError:
        with pytest.raises(BatchError) as caught:
            add(world, "t", **more)  # type: ignore[arg-type]
        return caught.value

    assert refusal(depends_on=TaskDependencies(task_ids=("a",))).code == "TaskDependenciesNotSpecifiedOnJob"
    action = ExitOptions(job_action=JobAction.NONE)
    wrong = refusal(exit_conditions=ExitConditions(pre_processing_error=action))
    assert (wrong.status, wrong.code) == (400, "InvalidPropertyValue")
    assert dict(wrong.values)["PropertyName"] == "exitConditions.preProcessingError.jobAction"
    wrong = refusal(exit_conditions=SATISFY_ON_7)
    assert dict(wrong.values)["PropertyName"] == "exitConditions.exitCodes[0].exitOptions.dependencyAction"
    world.verb(jobs.delete_job, "job")
    world.create_job(uses_task_dependencies=True, on_task_failure=OnTaskFailure.PERFORM_EXIT_OPTIONS_JOB_ACTION)
    too_long = TaskDependencies(task_ids=("x" * 64,) * (MAX_TASK_IDS_LENGTH // 64 + 1))
    assert refusal(depends_on=too_long).code == "TaskDependencyListTooLong"
    add(world, "t", exit_conditions=ExitConditions(pre_processing_error=action))
