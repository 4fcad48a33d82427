"""Pools that scale by a formula: enable, disable, and what an evaluation does (spec/rest.md §2.1, §3.9)."""

from datetime import datetime, timedelta

from nodeagent.model.enums import AllocationState
from nodeagent.model.pool import DEFAULT_AUTO_SCALE_INTERVAL, AutoScaleRun, EnableAutoScale
from nodeagent.service.autoscale.evaluation import Results, Situation
from nodeagent.service.autoscale.samples import KEPT, PERIOD
from nodeagent.service.errors import BatchError, refusal
from nodeagent.service.lifecycle import pools, resizing
from nodeagent.service.lifecycle.names import AUTO_SCALE
from nodeagent.service.store import autoscale
from nodeagent.service.store import pools as pool_rows
from nodeagent.service.store.columns import later
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.pools import PoolRow

BETWEEN_ENABLES = timedelta(seconds=30)


def enable(tx: Transaction, pool_id: str, options: EnableAutoScale, now: datetime) -> None:
    """Let a pool scale by a formula, or change formula or interval; the first evaluation follows in half a minute.

    Raises PoolNotFound, PoolBeingDeleted, PoolBeingResized, MissingRequiredProperty, TooManyEnableAutoScaleRequests.
    """
    pool = pools.require_open(tx, pool_id)
    if pool.allocation_state is not AllocationState.STEADY:
        raise refusal("PoolBeingResized")
    formula = options.auto_scale_formula or pool.spec.auto_scale_formula
    if formula is None:
        raise refusal("MissingRequiredProperty", ("PropertyName", "autoScaleFormula"))
    last = autoscale.last_enabled(tx, pool.num)
    if last is not None and now - last < BETWEEN_ENABLES:
        text = "Automatic scaling of a pool may be enabled once in 30 seconds."
        raise BatchError(503, "TooManyEnableAutoScaleRequests", text)
    interval = options.auto_scale_evaluation_interval or pool.spec.auto_scale_evaluation_interval
    changes = {
        "enable_auto_scale": True,
        "auto_scale_formula": formula,
        "auto_scale_evaluation_interval": interval or DEFAULT_AUTO_SCALE_INTERVAL,
    }
    pool_rows.replace_spec(tx, pool.num, pool.spec.model_copy(update=changes), later(now, pool.modified))
    autoscale.set_enabled(tx, pool.num, now)
    autoscale.set_due(tx, pool.num, now + PERIOD)
    tx.signal(AUTO_SCALE)


def disable(tx: Transaction, pool_id: str, now: datetime) -> None:
    """Leave a pool at the size that it has; one that does not scale stays as it is.

    Raises PoolNotFound, PoolBeingDeleted.
    """
    pool = pools.require_open(tx, pool_id)
    if not pool.spec.enable_auto_scale:
        return
    changes = {"enable_auto_scale": False, "auto_scale_formula": None, "auto_scale_evaluation_interval": None}
    pool_rows.replace_spec(tx, pool.num, pool.spec.model_copy(update=changes), later(now, pool.modified))
    autoscale.set_due(tx, pool.num, None)
    autoscale.set_run(tx, pool.num, None)


def situation(tx: Transaction, pool: PoolRow, now: datetime) -> Situation:
    """Return what a formula of this pool is evaluated in."""
    spec = pool.spec
    samples = autoscale.samples(tx, pool.num)
    return Situation(now, spec.target_dedicated_nodes, spec.target_low_priority_nodes, samples)


def take_samples(tx: Transaction, now: datetime) -> None:
    """Look at the pools that scale by a formula, those whose turn it is."""
    for num, pool_id, _ in autoscale.scaling(tx):
        last = autoscale.last_sample(tx, num)
        if last is not None and last <= now < last + PERIOD:
            continue
        slots = pools.require(tx, pool_id).spec.task_slots_per_node
        autoscale.add_sample(tx, num, autoscale.look(tx, num, slots, now), now - KEPT)


def apply(tx: Transaction, evaluated: PoolRow, run: AutoScaleRun, results: Results | None, now: datetime) -> None:
    """Show what the formula of a pool came to, and give the pool that size; nothing if it has another formula by now.

    A pool that is on its way to another size goes to this one instead.
    """
    pool = pool_rows.get(tx, evaluated.id)
    if pool is None or pool.num != evaluated.num or pool.spec.auto_scale_formula != evaluated.spec.auto_scale_formula:
        return
    autoscale.set_run(tx, pool.num, run)
    autoscale.set_due(tx, pool.num, now + (pool.spec.auto_scale_evaluation_interval or DEFAULT_AUTO_SCALE_INTERVAL))
    if results is None or pool.allocation_state is AllocationState.STOPPING:
        return
    wanted = (results.dedicated, results.low_priority)
    targets = (pool.spec.target_dedicated_nodes, pool.spec.target_low_priority_nodes)
    current = (pool.current_dedicated_nodes, pool.current_low_priority_nodes)
    if wanted != targets or (pool.allocation_state is AllocationState.STEADY and wanted != current):
        size = resizing.Size(results.dedicated, results.low_priority, results.option, pool.spec.resize_timeout)
        resizing.apply(tx, pool, size, now)
