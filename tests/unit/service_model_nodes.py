"""What users and agents do to nodes in the model of the service (test_service_model.py): verbs, start tasks, errors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from nodeagent.model.enums import DrainOption
from nodeagent.model.pool import StartTask
from nodeagent.model.protocol import AttemptKind, NodeError, Transition
from nodeagent.service.errors import BatchError
from nodeagent.service.lifecycle import deadlines, node_verbs, pools
from nodeagent.service.lifecycle.nodes import NodeRefusedError
from nodeagent.service.store import nodes as node_rows
from tests.unit.service_world import LEASE, POOL, FakeNode, World, ignore

SMALL = st.integers(0, 3)
_OPTIONS = st.sampled_from((DrainOption.REQUEUE, DrainOption.TERMINATE, DrainOption.TASK_COMPLETION))
_BROKEN = NodeError(code="ApplicationPackageError", message="m")
_MAX_NODES = 4


class NodeRules(RuleBasedStateMachine):
    """The rules that are about nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        self._joined = 100

    @property
    def here(self) -> World:
        """The world, once it is there."""
        assert self.world is not None
        return self.world

    def node_of(self, index: int) -> FakeNode:
        """Return one of the nodes."""
        return self.here.nodes[index % len(self.here.nodes)]

    def let_nodes_go(self) -> None:
        """Forget the nodes that have left their pool; there is always one."""
        self.here.nodes = [node for node in self.here.nodes if self._is_there(node)]
        if not self.here.nodes:
            self.join(2)

    def _is_there(self, node: FakeNode) -> bool:
        return self.here.store.do(lambda tx: node_rows.by_id(tx, node.id)) is not None

    @contextmanager
    def unless_gone(self, node: FakeNode) -> Iterator[None]:
        """Let a node speak; one that has left its pool by its last word is refused, and says no more."""
        try:
            yield
        except NodeRefusedError as error:
            if error.code != "NodeNotRegistered" or self._is_there(node):
                raise

    def let_nodes_drain(self) -> None:
        """Let all nodes do what they are told until nothing moves any more."""
        moved = True
        while moved:
            moved = False
            for node in list(self.here.nodes):
                goes_on = self._is_there(node)
                if goes_on:
                    with self.unless_gone(node):
                        goes_on = self.here.step(node)
                moved = goes_on or moved
            before = self.here.nodes
            self.let_nodes_go()
            moved = moved or before != self.here.nodes  # one that joined in place of the last has work to fetch

    def _verb(self, verb: Callable[..., object], *arguments: object) -> None:
        """Do something to a node, or be refused."""
        try:
            self.here.verb(verb, POOL, *arguments)
        except BatchError:
            return
        self.let_nodes_go()

    @rule(slots=st.integers(1, 3))
    def join(self, slots: int) -> None:
        """Let one more node join."""
        if len(self.here.nodes) < _MAX_NODES:
            self._joined += 1
            node = FakeNode(self.here.store, f"node{self._joined}", slots)
            self.here.nodes.append(node)
            node.register()

    @rule(index=SMALL, verb=st.sampled_from(("reboot", "reimage")), option=_OPTIONS)
    def tell(self, index: int, verb: str, option: DrainOption) -> None:
        """Reboot or reimage a node."""
        self._verb(node_verbs.command, self.node_of(index).id, verb, option)

    @rule(index=SMALL, wiped=st.booleans())
    def obey(self, index: int, *, wiped: bool) -> None:
        """Let a node do what it was told, perhaps on a new disk; what it said before counts no longer."""
        node = self.node_of(index)
        if not node.cut:
            node.fetch()
            node.outbox.clear()
            node.obey(wiped=wiped)

    @rule(index=SMALL, reimaged=st.booleans())
    def begin_anew(self, index: int, *, reimaged: bool) -> None:
        """Let a machine be rebooted or reimaged by somebody else than the service."""
        node = self.node_of(index)
        if not node.cut:
            node.outbox.clear()
            node.begin_anew(reimaged=reimaged)

    @rule(index=SMALL, option=_OPTIONS)
    def disable(self, index: int, option: DrainOption) -> None:
        """Disable a node's scheduling, as a user."""
        self._verb(node_verbs.disable_scheduling, self.node_of(index).id, option)

    @rule(index=SMALL)
    def enable(self, index: int) -> None:
        """Enable a node's scheduling, as a user."""
        self._verb(node_verbs.enable_scheduling, self.node_of(index).id)

    @rule(index=SMALL, option=_OPTIONS)
    def remove(self, index: int, option: DrainOption) -> None:
        """Take a node out of the pool."""
        deadline = self.here.store.now + LEASE
        self._verb(node_verbs.remove_nodes, [self.node_of(index).id], option, deadline)

    @rule(waits=st.sampled_from((None, True, False)), retries=SMALL)
    def change_start_task(self, waits: bool | None, retries: int) -> None:  # noqa: FBT001 - drawn
        """Give the pool another start task, or none."""
        task = (
            None if waits is None else StartTask(command_line="s", wait_for_success=waits, max_task_retry_count=retries)
        )
        self._verb(pools.patch_pool, {"start_task": task})

    @rule(index=SMALL, end=st.sampled_from((0, 0, 1, None)))
    def end_start_task(self, index: int, end: int | None) -> None:
        """Let a node's start task succeed, fail, or get lost."""
        node = self.node_of(index)
        if not node.cut:
            node.fetch()
        for attempt in [item for item in node.live.values() if item.assignment.attempt_kind is AttemptKind.START]:
            with self.unless_gone(node):
                if not attempt.running:
                    node.report(attempt, Transition.RUNNING)
                if end is None:
                    node.report(attempt, Transition.LOST, detail="gone")
                else:
                    node.finish(attempt, end)

    @rule(index=SMALL, broken=st.booleans())
    def tell_errors(self, index: int, *, broken: bool) -> None:
        """Let something be wrong with a node, or not any more."""
        node = self.node_of(index)
        node.errors = (_BROKEN,) if broken else ()
        if not node.cut:
            node.heartbeat()

    @rule()
    def a_long_time_passes(self) -> None:
        """Let the leases of silent nodes that are rebooted or reimaged run out, too."""
        for _ in range(3):
            self.here.store.now += 4 * LEASE
            for node in self.here.nodes:
                if not node.cut:
                    node.heartbeat()
            self.here.store.do(lambda tx: ignore(deadlines.expire(tx, self.here.store.now, LEASE)))
            self.let_nodes_go()
