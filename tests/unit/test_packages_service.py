"""Packages in the service's decisions: what assignments and registrations say, and nodes that cannot install them."""

from collections.abc import Iterator

import pytest

from nodeagent.model.enums import NodeState, TaskState
from nodeagent.model.pool import PoolCreate
from nodeagent.model.protocol import Assignment, Heartbeat, NodeCall, NodeError
from nodeagent.model.task import TaskCreate
from nodeagent.model.values import ApplicationPackageReference
from nodeagent.service.lifecycle import applications, deadlines, nodes, pools, tasks
from tests.unit.service_world import LEASE, POOL, FakeNode, World

ERROR = NodeError(code="ApplicationPackageError", message="One or more application packages are invalid")


def reference(application: str, version: str | None = None) -> ApplicationPackageReference:
    """Return a reference."""
    return ApplicationPackageReference(application_id=application, version=version)


def add(world: World, application: str, version: str, content: str = "0") -> None:
    """Add a package whose digest is one digit, many times."""
    world.store.do(
        lambda tx: applications.add_package(tx, application, version, sha256=content * 64, size=1, now=world.store.now)
    )


def assigned(world: World, node: FakeNode, *references: ApplicationPackageReference) -> Assignment:
    """Run a task with references on a node; return what the node was told."""
    spec = TaskCreate(id="t", command_line="true", application_package_references=references)
    world.create_job("packages")
    world.store.do(lambda tx: tasks.add_task(tx, "packages", spec, world.store.now))
    node.fetch()
    (running,) = node.live.values()
    return running.assignment


@pytest.fixture
def world() -> Iterator[World]:
    """A world with one node, and the application `App` with the versions 1 (default) and 2."""
    made = World(2)
    add(made, "App", "1", "1")
    add(made, "App", "2", "2")
    made.store.do(lambda tx: applications.change(tx, "app", display_name=None, default_version="1"))
    yield made
    made.store.close()


def test_an_assignment_names_packages_by_their_content(world: World) -> None:
    """Each package once, with the id and version as they were added, and whether it is the default."""
    work = assigned(world, world.nodes[0], reference("APP"), reference("app", "2"), reference("app", "1")).work
    found = [(each.application_id, each.version, each.is_default, each.sha256[0]) for each in work.application_packages]
    assert found == [("App", "1", True, "1"), ("App", "2", False, "2")]


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (reference("other", "1"), "There is no application of this id"),
        (reference("app", "3"), "The application has no such version"),
    ],
)
def test_an_assignment_tells_why_a_reference_means_nothing(
    world: World, wanted: ApplicationPackageReference, problem: str
) -> None:
    """The node makes it the failure of the task."""
    (package,) = assigned(world, world.nodes[0], wanted).work.application_packages
    assert (package.problem, package.version, package.sha256) == (problem, wanted.version, "")


def test_an_application_without_default_needs_a_version(world: World) -> None:
    """As an error of the task, not of its submission."""
    add(world, "plain", "1")
    (package,) = assigned(world, world.nodes[0], reference("plain")).work.application_packages
    assert package.problem is not None
    assert "no default version" in package.problem


def package_pool(world: World) -> FakeNode:
    """Give the pool's place to one with a package; return its node, which has not registered."""
    world.store.do(lambda tx: pools.delete_pool(tx, POOL, world.store.now))
    spec = PoolCreate(id=POOL, vm_size="v", application_package_references=(reference("app"),))
    world.store.do(lambda tx: pools.create_pool(tx, spec, world.store.now))
    return FakeNode(world.store, "packed", 1)


def beat(node: FakeNode, *errors: NodeError) -> None:
    """Send a heartbeat with errors."""
    call = Heartbeat(
        node_id=node.id, epoch=node.epoch, cursor=node.cursor, live_attempts=tuple(node.live), errors=errors
    )
    node.store.do(lambda tx: nodes.heartbeat(tx, call, node.store.now))


def state(node: FakeNode) -> NodeState:
    """Return the state that the service shows of a node now."""
    return node.row.state


def ask(node: FakeNode) -> None:
    """Ask for work, as the node does once its packages are installed."""
    call = NodeCall(node_id=node.id, epoch=node.epoch)
    node.store.do(lambda tx: nodes.ready(tx, call, node.store.now))


def test_a_node_with_packages_to_install_gets_work_when_it_asks(world: World) -> None:
    """Until then it is starting, and its heartbeats change nothing."""
    node = package_pool(world)
    node.register()
    assert [each.sha256[0] for each in world.store.do(lambda tx: applications.of_pool(tx, POOL))] == ["1"]
    world.create_job()
    world.add_task("t")
    beat(node)
    assert state(node) is NodeState.STARTING
    assert world.task("t").node is None
    ask(node)
    assert state(node) is NodeState.IDLE
    assert world.task("t").node is not None


def test_a_node_without_packages_works_at_once(world: World) -> None:
    """Nothing changes for pools without references."""
    assert world.nodes[0].row.state is NodeState.IDLE


def test_a_node_with_errors_is_unusable_until_they_are_gone(world: World) -> None:
    """No work for it, its errors are shown, and the task that it has not fetched runs elsewhere."""
    first, second = package_pool(world), FakeNode(world.store, "other", 1)
    first.register()
    ask(first)
    world.create_job()
    world.add_task("t")
    beat(first, ERROR)
    assert (first.row.state, first.row.errors) == (NodeState.UNUSABLE, (ERROR,))
    assert world.task("t").state is TaskState.ACTIVE
    second.register()
    ask(second)
    found = world.task("t").node
    assert found is not None
    assert found.id == "other"
    ask(first)
    assert state(first) is NodeState.UNUSABLE
    first.fetch()
    beat(first)
    assert (first.row.state, first.row.errors, first.row.free_slots) == (NodeState.IDLE, (), 1)


def test_what_a_node_with_errors_has_begun_goes_on(world: World) -> None:
    """Only what it has not fetched is taken from it."""
    node = world.nodes[0]
    world.create_job()
    world.add_task("t")
    node.fetch()
    (running,) = node.live.values()
    node.run(running)
    beat(node, ERROR)
    assert (node.row.state, world.task("t").state) == (NodeState.UNUSABLE, TaskState.RUNNING)
    node.finish(running)
    assert world.task("t").state is TaskState.COMPLETED
    assert state(node) is NodeState.UNUSABLE
    beat(node)
    assert state(node) is NodeState.IDLE


def test_registering_again_is_a_new_try(world: World) -> None:
    """The errors are those of the last life of the agent."""
    node = package_pool(world)
    node.register()
    beat(node, ERROR)
    node.epoch += 1
    node.register()
    assert (node.row.state, node.row.errors) == (NodeState.STARTING, ())


@pytest.mark.parametrize("errors", [(), (ERROR,)])
def test_a_silent_node_is_lost_in_every_state(world: World, errors: tuple[NodeError, ...]) -> None:
    """A starting or unusable node that goes silent is unknown, and comes back as what it is."""
    node = package_pool(world)
    node.register()
    beat(node, *errors)
    later = world.store.now + 2 * LEASE
    world.store.do(lambda tx: deadlines.expire(tx, later, LEASE))
    assert state(node) is NodeState.UNKNOWN
    beat(node, *errors)
    assert state(node) is (NodeState.UNUSABLE if errors else NodeState.IDLE)
