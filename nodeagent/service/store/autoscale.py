"""Rows of pools that scale by a formula: when it is evaluated, what it came to, and the samples that it reads."""

from datetime import datetime

import orjson

from nodeagent.model.pool import AutoScaleRun
from nodeagent.service.autoscale.samples import Sample
from nodeagent.service.store.columns import from_micros, optional_micros, optional_time, to_micros
from nodeagent.service.store.database import Transaction


def set_due(tx: Transaction, pool_num: int, due: datetime | None) -> None:
    """Set when a pool's formula is evaluated next; None when it has none any more."""
    tx.execute("UPDATE pools SET auto_scale_due = ? WHERE num = ?", (optional_micros(due), pool_num))


def set_enabled(tx: Transaction, pool_num: int, now: datetime) -> None:
    """Record when a user enabled the scaling of a pool."""
    tx.execute("UPDATE pools SET auto_scale_enabled = ? WHERE num = ?", (to_micros(now), pool_num))


def last_enabled(tx: Transaction, pool_num: int) -> datetime | None:
    """Return when a user enabled the scaling of a pool last."""
    row = tx.one("SELECT auto_scale_enabled FROM pools WHERE num = ?", (pool_num,))
    return None if row is None else optional_time(row[0])


def set_run(tx: Transaction, pool_num: int, run: AutoScaleRun | None) -> None:
    """Store what an evaluation came to; None forgets it."""
    tx.execute("UPDATE pools SET auto_scale_run = ? WHERE num = ?", (None if run is None else run.to_json(), pool_num))


def scaling(tx: Transaction) -> list[tuple[int, str, datetime]]:
    """Return number, id and next evaluation of the pools that scale by a formula."""
    sql = "SELECT num, id, auto_scale_due FROM pools WHERE auto_scale_due IS NOT NULL AND state = 'active' ORDER BY num"
    return [(row[0], row[1], from_micros(row[2])) for row in tx.execute(sql)]


def add_sample(tx: Transaction, pool_num: int, sample: Sample, keep_after: datetime) -> None:
    """Store a sample, and forget those that are too old."""
    tx.execute("DELETE FROM pool_samples WHERE pool_num = ? AND at <= ?", (pool_num, to_micros(keep_after)))
    text = orjson.dumps(dict(sample.values)).decode()
    tx.execute("INSERT OR REPLACE INTO pool_samples VALUES (?, ?, ?)", (pool_num, to_micros(sample.at), text))


def samples(tx: Transaction, pool_num: int) -> list[Sample]:
    """Return the samples of a pool, oldest first."""
    rows = tx.execute("SELECT at, sample FROM pool_samples WHERE pool_num = ? ORDER BY at", (pool_num,))
    return [Sample(from_micros(row[0]), orjson.loads(row[1])) for row in rows]


def last_sample(tx: Transaction, pool_num: int) -> datetime | None:
    """Return when a pool was looked at last."""
    row = tx.one("SELECT max(at) FROM pool_samples WHERE pool_num = ?", (pool_num,))
    return None if row is None else optional_time(row[0])


def look(tx: Transaction, pool_num: int, slots_per_node: int, now: datetime) -> Sample:
    """Return what a pool is like now: its tasks (those of jobs that are not over), its nodes, and their machines."""
    tasks = tx.one(
        "SELECT coalesce(sum(c.active), 0), coalesce(sum(c.preparing + c.running), 0), coalesce(sum(c.succeeded), 0),"
        " coalesce(sum(c.failed), 0) FROM job_counts c JOIN jobs j ON j.num = c.job_num"
        " JOIN pools p ON p.key = j.pool_key WHERE p.num = ? AND j.state NOT IN ('completed', 'deleting')",
        (pool_num,),
    ) or (0, 0, 0, 0)
    waiting = tx.one(
        "SELECT count(*) FROM jobs j JOIN pools p ON p.key = j.pool_key JOIN tasks t ON t.job_num = j.num"
        " WHERE p.num = ? AND j.state NOT IN ('completed', 'deleting') AND t.state = 'active' AND t.waits = 1",
        (pool_num,),
    ) or (0,)
    nodes = tx.one(
        "SELECT coalesce(sum(is_dedicated), 0), count(*) - coalesce(sum(is_dedicated), 0),"
        " coalesce(sum(state IN ('idle', 'running')), 0), coalesce(sum(state = 'preempted'), 0), count(host),"
        " avg(json_extract(host, '$.cpuPercent')), avg(json_extract(host, '$.memoryUsedBytes')),"
        " avg(json_extract(host, '$.diskTotalBytes') - json_extract(host, '$.diskFreeBytes'))"
        " FROM nodes WHERE pool_num = ?",
        (pool_num,),
    ) or (0, 0, 0, 0, 0, None, None, None)
    active = tasks[0] - waiting[0]
    found = {
        "$ActiveTasks": active,
        "$RunningTasks": tasks[1],
        "$PendingTasks": active + tasks[1],
        "$SucceededTasks": tasks[2],
        "$FailedTasks": tasks[3],
        "$TaskSlotsPerNode": slots_per_node,
        "$CurrentDedicatedNodes": nodes[0],
        "$CurrentLowPriorityNodes": nodes[1],
        "$UsableNodeCount": nodes[2],
        "$PreemptedNodeCount": nodes[3],
        "$SampleNodeCount": nodes[4],
        "$CPUPercent": nodes[5],
        "$MemoryBytes": nodes[6],
        "$DiskBytes": nodes[7],
    }
    return Sample(now, {name: float(value) for name, value in found.items() if value is not None})
