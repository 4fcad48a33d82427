"""Automatic scaling of pools (spec/rest.md §2.1)."""

import asyncio

from nodeagent.model.pool import EnableAutoScale, EvaluateAutoScale
from nodeagent.service.autoscale.evaluation import Situation
from nodeagent.service.autoscale.grammar import MAX_BYTES, parse_formula
from nodeagent.service.autoscale.tree import FormulaSyntaxError, FormulaTooLongError
from nodeagent.service.errors import refusal
from nodeagent.service.lifecycle import autoscaling, pools
from nodeagent.service.pool_scaling import run_of
from nodeagent.service.rest.call import Call
from nodeagent.service.rest.reply import Reply
from nodeagent.service.rest.validate import json_object, parse
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.pools import PoolRow


def check_formula(formula: str | None) -> None:
    """Raise BatchError 400 with the place if a text is no formula."""
    if formula is None:
        return
    try:
        parse_formula(formula)
    except FormulaTooLongError as error:
        raise refusal("AutoScalingFormulaTooLong", ("MaxLimit", str(MAX_BYTES))) from error
    except FormulaSyntaxError as error:
        values = [("PropertyName", "autoScaleFormula"), ("Reason", error.message)]
        if error.place is not None:
            values += [("Line", str(error.place[0])), ("Column", str(error.place[1]))]
        raise refusal("AutoScalingFormulaSyntaxError", *values) from error


async def enable(call: Call) -> Reply:
    """Let a pool scale by a formula."""
    options = parse(EnableAutoScale, json_object(call.body))
    check_formula(options.auto_scale_formula)
    pool_id, now = call.variables["pool_id"], call.context.clock()

    def act(tx: Transaction) -> PoolRow:
        row = pools.require(tx, pool_id)
        call.condition.check(row.etag, row.modified)
        autoscaling.enable(tx, pool_id, options, now)
        return pools.require(tx, pool_id)

    row = await call.database.write(act)
    return Reply(200, url=call.links.pool(row.id), modified=row.modified)


async def disable(call: Call) -> Reply:
    """Leave a pool at the size that it has."""
    pool_id, now = call.variables["pool_id"], call.context.clock()

    def act(tx: Transaction) -> PoolRow:
        autoscaling.disable(tx, pool_id, now)
        return pools.require(tx, pool_id)

    row = await call.database.write(act)
    return Reply(200, url=call.links.pool(row.id), modified=row.modified)


async def evaluate(call: Call) -> Reply:
    """Tell what a formula would come to now, and do nothing about it; the pool must scale by some formula already."""
    formula = parse(EvaluateAutoScale, json_object(call.body)).auto_scale_formula
    check_formula(formula)
    pool_id, now = call.variables["pool_id"], call.context.clock()

    def look(tx: Transaction) -> tuple[PoolRow, Situation]:
        pool = pools.require_open(tx, pool_id)
        if not pool.spec.enable_auto_scale:
            raise refusal("OperationInvalidForCurrentState", ("Reason", "The pool does not scale automatically."))
        return pool, autoscaling.situation(tx, pool, now)

    pool, situation = await call.database.read(look)
    run, _ = await asyncio.to_thread(run_of, formula, situation)
    body = {"odata.metadata": call.links.metadata("autoscalerun/@Element")} | run.to_wire()
    return Reply(200, body, call.links.pool(pool.id), pool.modified)
