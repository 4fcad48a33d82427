"""Local mode gives its pool the nodes that it wants, as far as there are any (docs/adr/0031).

`--nodes` is how many node processes there may be. The pool begins with that many; resize and autoscale take it down
and up again. All of them are dedicated.
"""

from collections.abc import Sequence

import structlog

from nodeagent.local.fleet import Fleet
from nodeagent.model.enums import AllocationState, DrainOption
from nodeagent.model.pool import ResizeError
from nodeagent.model.times import parse_duration, utc_now
from nodeagent.service.app import Service
from nodeagent.service.lifecycle import resizing
from nodeagent.service.lifecycle.names import ALLOCATION
from nodeagent.service.store import nodes, pools
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.pools import PoolRow

log = structlog.get_logger(__name__)

_TIMEOUT = parse_duration("PT15M")

Found = tuple[PoolRow, list[NodeRow]]


class Allocation:
    """Keeps a fleet as large as its pool wants it; `node_ids` are the nodes that there may be."""

    def __init__(self, service: Service, pool_id: str, node_ids: Sequence[str], fleet: Fleet) -> None:
        self._service = service
        self._pool_id = pool_id
        self._node_ids = tuple(node_ids)
        self._fleet = fleet

    async def begin(self, *, anew: bool) -> None:
        """Start the nodes that the pool has, and those that it waits for.

        A node on its way out is started too: its tasks may be running still.

        `anew`: the number of nodes is not the one of the stack's former life, and the pool shall have all of them.
        A pool that scales by its formula is left to it.
        """
        if anew:
            await self._service.database.write(self._resize)
        found = await self._look()
        known = set() if found is None else {node.id for node in found[1]}
        for node_id in self._node_ids:
            if node_id in known:
                self._fleet.begin(node_id)
        await self._give(found)

    async def keep(self) -> None:
        """Start nodes whenever the pool comes to want more, for ever; those that it wants no longer end themselves."""
        with self._service.signals.subscribe(ALLOCATION) as wake:
            while True:
                wake.clear()
                await self._give(await self._look())
                await wake.wait()

    async def _look(self) -> Found | None:
        def look(tx: Transaction) -> Found | None:
            pool = pools.get(tx, self._pool_id)
            return None if pool is None else (pool, nodes.of_pool(tx, pool.num))

        return await self._service.database.read(look)

    async def _give(self, found: Found | None) -> None:
        if found is None or found[0].allocation_state is not AllocationState.RESIZING:
            return
        pool, there = found
        running = self._fleet.node_ids
        free = [node_id for node_id in self._node_ids if node_id not in running]
        missing = max(0, pool.spec.target_dedicated_nodes - len(running))
        for node_id in free[:missing]:
            log.info("node begins", node=node_id, pool=self._pool_id)
            self._fleet.begin(node_id)
        if self._wants_too_much(pool) and self._fleet.node_ids == {node.id for node in there}:
            count = len(self._node_ids)
            why = f"This machine has {count} dedicated {'node' if count == 1 else 'nodes'} to give (--nodes), no more."
            error = ResizeError(code="AllocationFailed", message=why)
            await self._service.database.write(lambda tx: resizing.give_up(tx, self._pool_id, error, utc_now()))

    def _wants_too_much(self, pool: PoolRow) -> bool:
        return (
            pool.spec.target_low_priority_nodes > pool.current_low_priority_nodes
            or pool.spec.target_dedicated_nodes > len(self._node_ids)
        )

    def _resize(self, tx: Transaction) -> None:
        pool = pools.get(tx, self._pool_id)
        if pool is not None and not pool.spec.enable_auto_scale:
            size = resizing.Size(len(self._node_ids), None, DrainOption.REQUEUE, _TIMEOUT)
            resizing.apply(tx, pool, size, utc_now())
