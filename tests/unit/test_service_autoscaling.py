"""Pools that scale by a formula, at the service: samples, evaluations, and what they do."""

from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from nodeagent.model.enums import AllocationState, DrainOption
from nodeagent.model.pool import EnableAutoScale, PoolCreate
from nodeagent.model.task import TaskCreate
from nodeagent.model.times import parse_duration
from nodeagent.service.autoscale.samples import KEPT, PERIOD
from nodeagent.service.errors import BatchError
from nodeagent.service.lifecycle import autoscaling, jobs, pools, resizing, tasks
from nodeagent.service.lifecycle.resizing import Size
from nodeagent.service.pool_scaling import run_of, scale_once
from nodeagent.service.store import autoscale
from nodeagent.service.store.database import Database, Transaction
from nodeagent.service.store.pools import PoolRow
from tests.unit.service_world import POOL, START, job_spec

BY_TASKS = "$TargetDedicatedNodes = max($PendingTasks.GetSample(2)); $NodeDeallocationOption = taskcompletion"


class Scaling:
    """A store with a pool, and a clock that only moves when it is told to."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = START

    async def do(self, function: Callable[..., object], *arguments: object) -> None:
        """Run a verb now."""

        def run(tx: Transaction) -> None:
            function(tx, *arguments, self.now)

        await self.database.write(run)

    async def enable(self, formula: str | None, interval: str | None = "PT5M") -> None:
        """Enable the scaling of the pool."""
        options = EnableAutoScale.model_validate({"autoScaleFormula": formula, "autoScaleEvaluationInterval": interval})
        await self.do(autoscaling.enable, POOL, options)

    async def go_on(self, duration: timedelta) -> None:
        """Let time pass: do what is due on the way, at the moments that the service asks for."""
        end = self.now + duration
        while True:
            following = await scale_once(self.database, lambda: self.now)
            if following is None or following > end:
                break
            assert following > self.now, "the service would never come to rest"
            self.now = following
        self.now = end

    async def pool(self) -> PoolRow:
        """Return the pool."""
        return await self.database.read(lambda tx: pools.require(tx, POOL))

    async def samples(self) -> list[datetime]:
        """Return when the pool was looked at."""
        pool = await self.pool()
        return [sample.at for sample in await self.database.read(lambda tx: autoscale.samples(tx, pool.num))]


@pytest.fixture
async def scaling(tmp_path: Path) -> AsyncIterator[Scaling]:
    """Return a pool without nodes, whose job has three tasks."""
    async with Database(tmp_path / "service.db", synchronous="normal") as database:
        found = Scaling(database)
        await found.do(pools.create_pool, PoolCreate(id=POOL, vm_size="v"))
        await found.do(jobs.create_job, job_spec("job"))
        for number in range(3):
            await found.do(tasks.add_task, "job", TaskCreate(id=f"t{number}", command_line="true"))
        yield found


async def test_a_pool_follows_its_formula(scaling: Scaling) -> None:
    """First with the first samples, then each interval; what it came to is shown."""
    assert await scale_once(scaling.database, lambda: scaling.now) is None, "nobody scales: there is nothing to do"
    await scaling.enable(BY_TASKS)
    await scaling.go_on(PERIOD / 2)
    pool = await scaling.pool()
    assert (pool.spec.target_dedicated_nodes, pool.auto_scale_run) == (0, None)
    await scaling.go_on(PERIOD)
    pool = await scaling.pool()
    assert pool.auto_scale_run is not None
    assert (pool.auto_scale_run.timestamp, pool.auto_scale_run.error) == (START + PERIOD, None)
    assert pool.auto_scale_run.results == (
        "$TargetDedicatedNodes=3;$TargetLowPriorityNodes=0;$NodeDeallocationOption=taskcompletion"
    )
    assert (pool.spec.target_dedicated_nodes, pool.allocation_state) == (3, AllocationState.RESIZING)
    await scaling.do(jobs.delete_job, "job")
    await scaling.go_on(timedelta(minutes=4))
    assert (await scaling.pool()).spec.target_dedicated_nodes == 3, "its interval is five minutes"
    await scaling.go_on(timedelta(minutes=2))
    pool = await scaling.pool()
    assert (pool.spec.target_dedicated_nodes, pool.allocation_state) == (0, AllocationState.STEADY)


async def test_samples_are_taken_each_half_minute_and_kept_for_a_day(scaling: Scaling) -> None:
    """After a stop of the service there is a gap, and no burst."""
    await scaling.enable(BY_TASKS)
    await scaling.go_on(timedelta(minutes=2))
    assert await scaling.samples() == [START + number * PERIOD for number in range(5)]
    scaling.now += timedelta(hours=1)
    await scaling.go_on(PERIOD / 2)
    assert len(await scaling.samples()) == 6
    scaling.now += KEPT
    await scaling.go_on(timedelta(0))
    assert await scaling.samples() == [scaling.now]


async def test_a_formula_that_has_no_value_leaves_the_pool_as_it_is_and_says_why(scaling: Scaling) -> None:
    """The error has the place."""
    await scaling.enable("$TargetDedicatedNodes = avg($CPUPercent.GetSample(1))")
    await scaling.go_on(PERIOD)
    pool = await scaling.pool()
    assert (pool.spec.target_dedicated_nodes, pool.allocation_state) == (0, AllocationState.STEADY)
    assert pool.auto_scale_run is not None
    assert pool.auto_scale_run.error is not None
    assert pool.auto_scale_run.error.code == "AutoScalingFormulaEvaluationError"
    assert "line 1, column 25" in (pool.auto_scale_run.error.message or "")


async def refused(scaling: Scaling, formula: str | None, interval: str | None = None) -> str:
    """Return the code that enabling is refused with."""
    with pytest.raises(BatchError) as caught:
        await scaling.enable(formula, interval)
    return caught.value.code


async def test_who_scales_by_a_formula_is_not_resized_and_the_other_way_round(scaling: Scaling) -> None:
    """Enable needs a steady pool, a formula, and half a minute; a new interval alone keeps the formula."""
    assert await refused(scaling, None, "PT10M") == "MissingRequiredProperty"
    await scaling.enable("$TargetDedicatedNodes = 0", None)
    pool = await scaling.pool()
    assert pool.spec.auto_scale_evaluation_interval == parse_duration("PT15M")
    size = Size(1, 0, DrainOption.REQUEUE, timedelta(minutes=15))
    with pytest.raises(BatchError, match="OperationInvalidForCurrentState"):
        await scaling.do(resizing.resize, POOL, size)
    assert await refused(scaling, BY_TASKS) == "TooManyEnableAutoScaleRequests"
    scaling.now += timedelta(seconds=30)
    await scaling.enable(None, "PT1H")
    pool = await scaling.pool()
    assert pool.spec.auto_scale_formula == "$TargetDedicatedNodes = 0"
    assert pool.spec.auto_scale_evaluation_interval == timedelta(hours=1)
    await scaling.go_on(timedelta(minutes=1))
    await scaling.do(autoscaling.disable, POOL)
    pool = await scaling.pool()
    assert (pool.spec.enable_auto_scale, pool.spec.auto_scale_formula, pool.auto_scale_run) == (False, None, None)
    await scaling.do(resizing.resize, POOL, size)
    assert await scale_once(scaling.database, lambda: scaling.now) is None
    assert await refused(scaling, BY_TASKS) == "PoolBeingResized"


async def test_an_evaluation_that_comes_too_late_does_nothing(scaling: Scaling) -> None:
    """While a formula was evaluated, the user has disabled it."""
    await scaling.enable("$TargetDedicatedNodes = 4")
    evaluated = await scaling.pool()
    await scaling.do(autoscaling.disable, POOL)
    situation = await scaling.database.read(lambda tx: autoscaling.situation(tx, evaluated, scaling.now))
    run, results = run_of("$TargetDedicatedNodes = 4", situation)
    assert results is not None
    await scaling.do(autoscaling.apply, evaluated, run, results)
    pool = await scaling.pool()
    assert (pool.spec.target_dedicated_nodes, pool.auto_scale_run) == (0, None)


async def test_a_pool_may_begin_with_a_formula(scaling: Scaling) -> None:
    """It is steady at once, and has the documented interval if none is given."""
    spec = PoolCreate(id="other", vm_size="v", enable_auto_scale=True, auto_scale_formula="$TargetDedicatedNodes = 2")
    await scaling.do(pools.create_pool, spec)
    other = await scaling.database.read(lambda tx: pools.require(tx, "other"))
    assert other.allocation_state is AllocationState.STEADY
    assert other.spec.auto_scale_evaluation_interval == parse_duration("PT15M")
    await scaling.go_on(PERIOD)
    other = await scaling.database.read(lambda tx: pools.require(tx, "other"))
    assert other.spec.target_dedicated_nodes == 2
