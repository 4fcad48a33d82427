"""The pools that scale by a formula: looked at every half minute, and evaluated when their time has come."""

import asyncio
from collections.abc import Callable
from datetime import datetime

import structlog

from nodeagent.model.pool import AutoScaleRun, AutoScaleRunError
from nodeagent.model.times import utc_now
from nodeagent.service.autoscale.evaluation import Results, Situation, evaluate
from nodeagent.service.autoscale.grammar import parse_formula
from nodeagent.service.autoscale.samples import PERIOD
from nodeagent.service.autoscale.tree import FormulaError
from nodeagent.service.lifecycle import autoscaling
from nodeagent.service.lifecycle.names import AUTO_SCALE
from nodeagent.service.signals import Signals
from nodeagent.service.store import autoscale, pools
from nodeagent.service.store.database import Database, Transaction
from nodeagent.service.store.pools import PoolRow

_log = structlog.get_logger()


async def scale_pools(database: Database, signals: Signals) -> None:
    """Scale pools for ever; when is in the store, so a restart misses no evaluation."""
    with signals.subscribe(AUTO_SCALE) as wake:
        while True:
            wake.clear()
            following = await scale_once(database, utc_now)
            seconds = None if following is None else max(0.0, (following - utc_now()).total_seconds())
            try:
                async with asyncio.timeout(seconds):
                    await wake.wait()
            except TimeoutError:
                continue


async def scale_once(database: Database, clock: Callable[[], datetime]) -> datetime | None:
    """Take the samples and make the evaluations that are due; return when to look again, None if no pool scales."""
    if not await database.read(autoscale.scaling):
        return None
    now = clock()
    await database.write(lambda tx: autoscaling.take_samples(tx, now))
    for pool, situation in await database.read(lambda tx: _due(tx, now)):
        run, results = await asyncio.to_thread(run_of, pool.spec.auto_scale_formula or "", situation)
        if run.error is not None:
            _log.warning("formula_failed", pool=pool.id, error=run.error.message)
        await database.write(
            lambda tx, pool=pool, run=run, results=results: autoscaling.apply(tx, pool, run, results, now)  # type: ignore[misc]
        )
    return await database.read(lambda tx: _following(tx, now))


def run_of(formula: str, situation: Situation) -> tuple[AutoScaleRun, Results | None]:
    """Evaluate a formula; return how that is shown, and what size it gives if it gives one."""
    try:
        results = evaluate(parse_formula(formula), situation)
    except FormulaError as error:
        why = AutoScaleRunError(code="AutoScalingFormulaEvaluationError", message=str(error))
        return AutoScaleRun(timestamp=situation.now, error=why), None
    return AutoScaleRun(timestamp=situation.now, results=results.text), results


def _due(tx: Transaction, now: datetime) -> list[tuple[PoolRow, Situation]]:
    due = [pools.get(tx, pool_id) for _, pool_id, at in autoscale.scaling(tx) if at <= now]
    return [(pool, autoscaling.situation(tx, pool, now)) for pool in due if pool is not None]


def _following(tx: Transaction, now: datetime) -> datetime | None:
    moments: list[datetime] = []
    for num, _, due in autoscale.scaling(tx):
        last = autoscale.last_sample(tx, num)
        moments += [due, (now if last is None else min(last, now)) + PERIOD]
    return min(moments, default=None)
