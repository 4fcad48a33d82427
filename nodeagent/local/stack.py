"""Local mode is composition: the service in this process, agents as child processes, real HTTP between them."""

import asyncio
import shutil
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from nodeagent.local.agent_process import AgentProcess
from nodeagent.local.allocation import Allocation
from nodeagent.local.client import BatchClient
from nodeagent.local.errors import NotReadyError
from nodeagent.local.fleet import Fleet
from nodeagent.local.folders import Folders
from nodeagent.local.leftovers import end_tasks
from nodeagent.model.enums import NodeState
from nodeagent.model.pool import PoolCreate
from nodeagent.service.app import Service
from nodeagent.service.lifecycle.names import ALLOCATION
from nodeagent.service.settings import ServiceSettings

log = structlog.get_logger(__name__)

READY_SECONDS = 60.0
_STOP_SECONDS = 15.0
_GRACE_SECONDS = 10.0
_SETTLED_STATES = (NodeState.IDLE, NodeState.RUNNING, NodeState.LEAVING_POOL)
"""What a node comes to when it has begun; one that was leaving the pool goes on leaving it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stack consists of."""

    service: ServiceSettings
    """Its `state_dir` is `Folders(state_dir).service`."""
    state_dir: Path
    pool_id: str
    nodes: int
    slots: int
    agent_options: Sequence[str] = ()
    """Further options of `nodeagent agent`, for every agent."""
    ephemeral: bool = False
    """Remove `state_dir` at the end."""
    users: bool = False
    """Tasks run as users of their own, who must get to the nodes' folders below `state_dir`."""

    @property
    def node_ids(self) -> list[str]:
        """The ids of the nodes: `node-1`, `node-2`, ..."""
        return [f"node-{number}" for number in range(1, self.nodes + 1)]


class Stack:
    """A running stack; use it as an async context manager.

    Leaving it stops service and agents and ends the tasks (they are requeued if the folder is used again), unless
    `detach_tasks` was set. Entering raises what the service raises, FolderError, AgentEndedError, NotReadyError.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.folders = Folders(plan.state_dir)
        self.detach_tasks = False
        self._fleet = Fleet(self._agent, self._tell_of_room)
        self._exit = AsyncExitStack()
        self._allocating: asyncio.Task[None] | None = None
        self._service: Service | None = None
        self._client: BatchClient | None = None
        self._hurry = asyncio.Event()

    @property
    def endpoint(self) -> str:
        """URL of the Batch REST API."""
        if self._service is None:
            raise RuntimeError("the stack has not started")
        scheme = "https" if self.plan.service.serves_tls else "http"
        return f"{scheme}://127.0.0.1:{self._service.port}"

    @property
    def ca_file(self) -> Path | None:
        """The certificate (PEM) of the authority that clients must trust; None for plain HTTP."""
        if self._service is None:
            raise RuntimeError("the stack has not started")
        return self._service.ca_file

    @property
    def client(self) -> BatchClient:
        """A client of this stack's own service."""
        if self._client is None:
            raise RuntimeError("the stack has not started")
        return self._client

    async def __aenter__(self) -> Self:
        try:
            self.folders.make(self.plan.node_ids, users=self.plan.users)
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _start(self) -> None:
        settings = self.plan.service
        self._service = await self._exit.enter_async_context(Service(settings))
        client = BatchClient(self.endpoint, settings.account, settings.key.get_secret_value(), self.ca_file)
        self._client = await self._exit.enter_async_context(client)
        await self._service.ensure_pool(self._pool())
        allocation = Allocation(self._service, self.plan.pool_id, self.plan.node_ids, self._fleet)
        await allocation.begin(anew=await asyncio.to_thread(self.folders.remember_nodes, self.plan.nodes))
        self._allocating = asyncio.create_task(allocation.keep(), name="allocation")
        self._fleet.watch(self._allocating)
        await self._until_ready()

    async def until_broken(self) -> None:
        """Wait until an agent has ended for good. Raises AgentEndedError then; else it waits for ever."""
        await self._fleet.until_broken()

    def hurry(self) -> None:
        """Make `close` kill agents and tasks instead of asking them, also if it is under way."""
        self._hurry.set()
        self._fleet.kill()

    async def close(self) -> None:
        """Stop everything; with an ephemeral plan nothing remains."""
        try:
            if self._allocating is not None:
                self._allocating.cancel()
                await asyncio.gather(self._allocating, return_exceptions=True)
            await self._fleet.stop(_STOP_SECONDS)
            if self._fleet.has_begun and not self.detach_tasks:
                state_dirs = [node.state for node in self.folders.known_nodes()]
                await end_tasks(state_dirs, grace_seconds=_GRACE_SECONDS, hurry=self._hurry)
        finally:
            await self._exit.aclose()
        if self.plan.ephemeral:
            await asyncio.to_thread(shutil.rmtree, self.plan.state_dir)

    def _agent(self, node_id: str) -> AgentProcess:
        return AgentProcess(node_id, self._agent_arguments(node_id), self.folders.node(node_id).log)

    def _tell_of_room(self) -> None:
        """A node's id is free again: the pool may want it back."""
        if self._service is not None:
            self._service.signals.publish((ALLOCATION,))

    def _agent_arguments(self, node_id: str) -> list[str]:
        node = self.folders.node(node_id)
        return [
            f"--service={self.endpoint}",
            f"--pool={self.plan.pool_id}",
            f"--node={node_id}",
            f"--slots={self.plan.slots}",
            f"--state-dir={node.state}",
            f"--root={node.root}",
            f"--node-key-file={self.folders.node_key}",
            *(() if self.ca_file is None else (f"--service-ca-file={self.ca_file}",)),
            *self.plan.agent_options,
        ]

    def _pool(self) -> PoolCreate:
        return PoolCreate(
            id=self.plan.pool_id,
            vm_size="local",
            target_dedicated_nodes=self.plan.nodes,
            task_slots_per_node=self.plan.slots,
        )

    async def _until_ready(self) -> None:
        """Wait until every node that has begun is idle or running. Raises NotReadyError, AgentEndedError."""
        broken = asyncio.create_task(self.until_broken())
        ready = asyncio.create_task(self._poll_nodes())
        try:
            async with asyncio.timeout(READY_SECONDS):
                await asyncio.wait((broken, ready), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            logs = ", ".join(str(self.folders.node(node_id).log) for node_id in sorted(self._fleet.node_ids))
            raise NotReadyError(f"the nodes are not ready after {READY_SECONDS:.0f} s; see {logs}") from None
        finally:
            for task in (broken, ready):
                if not task.done():
                    task.cancel()
            await asyncio.gather(broken, ready, return_exceptions=True)
        for task in (broken, ready):
            if task.done() and not task.cancelled():
                task.result()

    async def _poll_nodes(self) -> None:
        pause = 0.02
        while True:
            nodes = await self.client.list_nodes(self.plan.pool_id)
            if self._fleet.node_ids <= {node["id"] for node in nodes if node["state"] in _SETTLED_STATES}:
                return
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.25)
