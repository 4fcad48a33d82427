"""What a new life of the agent finds, and takes over (design.md §6): the start after a stop, a kill, or a reboot.

Every attempt that is owed to the service gets its runner back, and the effects that its state asks for: records tell
whether its shim holds it, it has ended, or nobody knows. Records without an attempt are swept and put into quarantine.
Doing all this twice changes nothing.
"""

import asyncio
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from nodeagent.agent import journal
from nodeagent.agent.attempt_runner import AttemptRunner
from nodeagent.agent.identity import StateDirectory
from nodeagent.agent.removal import Removals
from nodeagent.agent.tools import Tools
from nodeagent.boundary.base import BoundaryError
from nodeagent.model.protocol import NodeCommand, Registered, StopReason
from nodeagent.rules.attempt import OVER, execution_id, resume
from nodeagent.rules.attempt_events import Disowned, Rebooted
from nodeagent.runtime.base import Running, RuntimeFailure
from nodeagent.shim import records
from nodeagent.shim.records import RecordError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """What agent.db holds of former lives."""

    cursor: int
    registered: Registered | None
    attempts: Sequence[journal.AttemptRow]
    outbox: Sequence[journal.OutboxRow]
    sessions: Sequence[journal.SessionRow]
    removals: Sequence[journal.Removal]
    executions: frozenset[str]
    command: NodeCommand | None
    boot: str | None
    """In which boot attempts were last taken over."""


def load(connection: sqlite3.Connection) -> Stored:
    """Read it all. Runs in the database's thread."""
    return Stored(
        cursor=journal.cursor(connection),
        registered=journal.registered(connection),
        attempts=journal.owed_attempts(connection),
        outbox=journal.outbox(connection),
        sessions=journal.sessions(connection),
        removals=journal.removals(connection),
        executions=frozenset(execution_id(row.attempt_id, row.execution) for row in journal.all_executions(connection)),
        command=journal.command(connection),
        boot=journal.boot(connection),
    )


async def recover(tools: Tools, stored: Stored, removals: Removals, state: StateDirectory, boot_id: str) -> None:
    """Take over what is stored, and begin what it asks for. The runtime is open; `boot_id` is the present boot."""
    await _sweep_orphans(tools, stored.executions, state)
    ending = tools.sessions.load(stored.sessions)
    runners = [AttemptRunner(tools, row.attempt, row.assignment, row.number) for row in stored.attempts]
    for runner in runners:
        tools.attempts.add(runner)
    tools.reporter.add(stored.outbox)
    if stored.boot != boot_id:
        # an agent.db of before boots were counted does not tell of a reboot
        await _leave_former_boot(tools, () if stored.boot is None else runners, boot_id)
    for runner in runners:
        runner.pursue(resume(runner.attempt))
    for removal in stored.removals:
        removals.begin(removal)
    for preparation in ending:
        tools.tasks.create_task(tools.sessions.end(preparation, tools.attempts.ids()))
    tools.tasks.create_task(removals.empty_bin())
    log.info("recovered", attempts=len(runners), reports=len(stored.outbox), sessions=len(stored.sessions))


async def _leave_former_boot(tools: Tools, runners: Sequence[AttemptRunner], boot_id: str) -> None:
    """Give up start and preparation tasks of a former boot: the service sends others, as it hears of this boot.

    What was not launched yet is given back, as nothing may run before those (spec/node.md §10, §11). All other
    attempts are resumed: their records tell what became of them.
    """
    changes = [
        (runner, runner.apply(Disowned() if runner.attempt.plan.node_bound else Rebooted()))
        for runner in runners
        if runner.attempt.state not in OVER
    ]

    def save(connection: sqlite3.Connection) -> None:
        for _, change in changes:
            change.save(connection)
        journal.set_boot(connection, boot_id)

    await tools.database.write(save)
    for runner, change in changes:
        runner.committed(change)


async def _sweep_orphans(tools: Tools, known: frozenset[str], state: StateDirectory) -> None:
    """End and put aside executions that agent.db does not know: it was restored, or the directory is not ours."""
    names = await asyncio.to_thread(lambda: [path.name for path in state.attempts.iterdir() if path.is_dir()])
    for name in names:
        if name not in known:
            await _sweep_orphan(tools, state, name)


async def _sweep_orphan(tools: Tools, state: StateDirectory, name: str) -> None:
    try:
        spec = records.read(str(state.attempts / name), records.Spec)
        if spec is not None:
            if isinstance(tools.runtime.look(name), Running):
                await tools.runtime.stop(name, StopReason.SUPERSEDED, 0)
            await tools.runtime.wait(name)
            tools.boundaries.remove(dict(spec.boundary))
    except (RuntimeFailure, RecordError, BoundaryError) as error:
        # not even these records can be trusted; what may still run of it is for a person to end
        log.error("orphan not swept", execution=name, why=str(error))  # noqa: TRY400 - expected, and said in one line
    state.quarantine.mkdir(mode=0o700, exist_ok=True)
    target = _free(state.quarantine / name)
    (state.attempts / name).rename(target)
    log.warning("orphan in quarantine", execution=name, path=str(target))


def _free(path: Path) -> Path:
    number = 0
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free
