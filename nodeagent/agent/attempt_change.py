"""One step of an attempt: what of it is stored, in one transaction, before anything is done about it."""

import sqlite3
from dataclasses import dataclass, field
from datetime import datetime

from nodeagent.agent import journal
from nodeagent.rules import attempt as rules
from nodeagent.rules import attempt_effects, attempt_events
from nodeagent.rules.attempt import Attempt
from nodeagent.rules.retention import expiry


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
            expires = expiry(self.after, self.at)
            if expires is not None:
                journal.set_expiry(connection, self.after.attempt_id, expires)
        if self.silenced or (self.after.acknowledged and not self.before.acknowledged):
            journal.drop_reports(connection, self.after.attempt_id)


def change_of(before: Attempt, event: attempt_events.Event, stepped: rules.Stepped, at: datetime) -> Change:
    """Return the change that a step is."""
    after, effects = stepped
    rows = tuple(_outbox_row(effect, after) for effect in effects if isinstance(effect, attempt_effects.Send))
    return Change(before, after, type(event).__name__, at, effects, rows, getattr(event, "detail", None))


def _outbox_row(effect: attempt_effects.Send, after: Attempt) -> journal.OutboxRow:
    report = effect.report
    last = after.terminal is not None and report.seq == after.last_seq
    return journal.OutboxRow(report.attempt_id, report.seq, report.to_json(), last)
