"""The uploads of executions in agent.db: what was planned, begun, done (docs/on-disk-layout.md).

Row 0 of an execution says that its plan is stored, which may be empty; the files follow from 1.
"""

import asyncio
import sqlite3
from collections.abc import Iterable, Sequence

from nodeagent.agent.database import Database
from nodeagent.rules.upload_failures import UploadProblem
from nodeagent.transfer.upload_plan import FileState, Ledger, PlannedFile

_PLAN = "plan"


class UploadLedgers:
    """The ledgers of all executions of a node."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, execution_id: str) -> Ledger:
        """Return the ledger of one execution."""
        return _UploadLedger(self._database, execution_id)

    async def forget(self, execution_ids: Iterable[str]) -> None:
        """Drop the ledgers of executions whose attempts are over or removed."""
        ids = tuple(execution_ids)
        await self._database.write(lambda db: drop_uploads(db, ids))


def drop_uploads(connection: sqlite3.Connection, execution_ids: Iterable[str]) -> None:
    """Drop the ledgers of executions, inside a transaction of somebody else."""
    connection.executemany("DELETE FROM uploads WHERE execution_id = ?", [(name,) for name in execution_ids])


class _UploadLedger:
    """One execution's uploads. See `transfer.upload_plan.Ledger`."""

    def __init__(self, database: Database, execution_id: str) -> None:
        self._database = database
        self._execution_id = execution_id
        self._unsettled: set[asyncio.Future[None]] = set()

    async def planned(self) -> tuple[PlannedFile, ...] | None:
        """Return the plan as far as it is done, or None if there is none yet."""
        return await self._database.write(lambda db: _planned(db, self._execution_id))

    async def plan(self, files: Sequence[PlannedFile]) -> None:
        """Store a plan, which may be empty."""
        await self._database.write(lambda db: _plan(db, self._execution_id, files))

    async def begun(self, number: int, identity: str) -> None:
        """Store that a file with this content is sent from now on."""
        row = (FileState.BEGUN.value, identity, self._execution_id, number)
        await self._database.write(
            lambda db: _update(
                db, "UPDATE uploads SET state = ?, identity = ? WHERE execution_id = ? AND number = ?", row
            )
        )

    def finished(self, number: int, problem: UploadProblem | None) -> None:
        """Store that a file is done, or why it failed; soon, see `settled`."""
        state = FileState.DONE if problem is None else FileState.FAILED
        detail = None if problem is None else problem.to_json()
        row = (state.value, detail, self._execution_id, number)
        future = self._database.submit_soon(
            lambda db: _update(
                db, "UPDATE uploads SET state = ?, detail = ? WHERE execution_id = ? AND number = ?", row
            )
        )
        self._unsettled.add(future)

    async def settled(self) -> None:
        """Return when all that is finished is stored. Raises what the database raises."""
        waiting, self._unsettled = self._unsettled, set()
        await asyncio.gather(*waiting)


# agent.db, in the writer thread.


def _planned(connection: sqlite3.Connection, execution_id: str) -> tuple[PlannedFile, ...] | None:
    rows = connection.execute(
        "SELECT number, rule, path, blob, identity, state, detail FROM uploads WHERE execution_id = ? ORDER BY number",
        (execution_id,),
    ).fetchall()
    if not rows:
        return None
    return tuple(
        PlannedFile(
            number=number,
            rule=rule,
            path=path,
            blob=blob,
            identity=identity,
            state=FileState(state),
            problem=None if detail is None else UploadProblem.from_json(detail),
        )
        for number, rule, path, blob, identity, state, detail in rows[1:]
    )


def _plan(connection: sqlite3.Connection, execution_id: str, files: Sequence[PlannedFile]) -> None:
    connection.execute(
        "INSERT INTO uploads VALUES (?, 0, 0, '', '', NULL, ?, NULL)",
        (execution_id, _PLAN),
    )
    connection.executemany(
        "INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                execution_id,
                file.number,
                file.rule,
                file.path,
                file.blob,
                file.identity,
                file.state.value,
                None if file.problem is None else file.problem.to_json(),
            )
            for file in files
        ],
    )


def _update(connection: sqlite3.Connection, statement: str, row: tuple[str | int | None, ...]) -> None:
    connection.execute(statement, row)
