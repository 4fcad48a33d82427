"""One step of an attempt: what of it is stored, in one transaction, before anything is done about it."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from nodeagent.agent import journal
from nodeagent.model.protocol import KeptLog
from nodeagent.rules import attempt as rules
from nodeagent.rules import attempt_effects, attempt_events
from nodeagent.rules.attempt import Attempt
from nodeagent.rules.retention import ended, expiry


@dataclass(frozen=True, slots=True)
class Change:
    """One step: what is to be stored, and what is to be done once it is."""

    before: Attempt
    after: Attempt
    event: str
    at: datetime
    effects: tuple[attempt_effects.Effect, ...]
    rows: tuple[journal.OutboxRow, ...] = field(default=())
    detail: str | None = None

    @property
    def silenced(self) -> bool:
        """From this step on nothing is reported of the attempt."""
        return self.after.muted and not self.before.muted

    def save(self, connection: sqlite3.Connection) -> None:
        """Store the attempt's new state, its journal line and its reports. Runs in the writer thread."""
        journal.update_attempt(connection, self.after)
        self.save_tracks(connection)

    def save_tracks(self, connection: sqlite3.Connection) -> None:
        """Store the journal line and the reports only: the attempt's row is new, and is stored by who made it."""
        journal.note(connection, self.after.attempt_id, self.at, self.event, self.after.state, self.detail)
        for row in self.rows:
            journal.add_report(connection, row)
        if self.after.terminal is not None and self.before.terminal is None:
            journal.set_end(connection, self.after.attempt_id, ended(self.after, self.at), expiry(self.after, self.at))
            if self.after.plan.transfers_out:
                journal.forget_uploads(connection, self.after.execution_id)
        if self.silenced or (self.after.acknowledged and not self.before.acknowledged):
            journal.drop_reports(connection, self.after.attempt_id)


def change_of(
    before: Attempt,
    event: attempt_events.Event,
    stepped: rules.Stepped,
    at: datetime,
    logs: Callable[[], tuple[KeptLog, ...]] = tuple,
) -> Change:
    """Return the change that a step is. `logs` gives what its completion tells of the task's logs."""
    after, effects = stepped
    rows = tuple(_outbox_row(effect, after, logs) for effect in effects if isinstance(effect, attempt_effects.Send))
    return Change(before, after, type(event).__name__, at, effects, rows, getattr(event, "detail", None))


def _outbox_row(
    effect: attempt_effects.Send, after: Attempt, logs: Callable[[], tuple[KeptLog, ...]]
) -> journal.OutboxRow:
    report = effect.report
    last = after.terminal is not None and report.seq == after.last_seq
    ran = report.outcome is not None and report.outcome.exit_code is not None
    if ran and (kept := logs()):  # else they may be an earlier execution's
        report = report.model_copy(update={"logs": kept})
    return journal.OutboxRow(report.attempt_id, report.seq, report.to_json(), last)
