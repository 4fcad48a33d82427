"""The agents of a local stack: begun and ended while it runs, as the pool wants it."""

import asyncio
from collections.abc import Callable
from functools import partial

from nodeagent.local.agent_process import AgentProcess


class Fleet:
    """Agents as child processes, each kept alive until it is removed from its pool or the fleet stops.

    `make` makes the agent of a node; `on_end` is called when one has ended for good and its node's id is free again.
    """

    def __init__(self, make: Callable[[str], AgentProcess], on_end: Callable[[], None]) -> None:
        self._make = make
        self._on_end = on_end
        self._agents: dict[str, AgentProcess] = {}
        self._keepers: set[asyncio.Task[None]] = set()
        self._broken = asyncio.Event()
        self._failure: BaseException | None = None
        self._stopping = False
        self.has_begun = False
        """Whether there has ever been an agent."""

    @property
    def node_ids(self) -> frozenset[str]:
        """The ids of the nodes whose agents are kept alive now."""
        return frozenset(self._agents)

    def begin(self, node_id: str) -> None:
        """Start the agent of a node that has none."""
        if self._stopping:
            return
        self.has_begun = True
        agent = self._make(node_id)
        self._agents[node_id] = agent
        keeper = asyncio.create_task(agent.run(), name=f"agent {node_id}")
        self._keepers.add(keeper)
        keeper.add_done_callback(partial(self._ended, node_id))

    def watch(self, task: asyncio.Task[None]) -> None:
        """Count a task's failure as the fleet's."""
        task.add_done_callback(self._note_failure)

    async def until_broken(self) -> None:
        """Wait until an agent has ended for good that should not. Raises AgentEndedError then; else waits for ever."""
        await self._broken.wait()
        if self._failure is not None:
            raise self._failure

    def kill(self) -> None:
        """End all agents at once; `stop` waits for them."""
        self._stopping = True
        for agent in self._agents.values():
            agent.kill()

    async def stop(self, seconds: float) -> None:
        """Ask all agents to end (their tasks run on), and kill those that take longer than `seconds`."""
        self._stopping = True
        await asyncio.gather(*(agent.stop(seconds) for agent in self._agents.values()))
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def _ended(self, node_id: str, keeper: asyncio.Task[None]) -> None:
        self._keepers.discard(keeper)
        self._agents.pop(node_id, None)
        self._note_failure(keeper)
        self._on_end()

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        failure = None if task.cancelled() else task.exception()
        if failure is not None and self._failure is None:
            self._failure = failure
            self._broken.set()
