"""Who tasks run as: uids from the configured range, given out and taken back in agent.db (docs/users.md).

A uid is committed to its holder before anything belongs to it, and free again only when the task's directory has been
taken away from it: whoever gets it next finds a closed door, whatever the agent died of in between.
"""

import fcntl
import grp
import os
import pwd
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from nodeagent.agent import failpoints, journal
from nodeagent.agent.database import Database
from nodeagent.agent.directories import Directories, Owner
from nodeagent.agent.errors import AccountsError, UnwritableError
from nodeagent.agent.introduction import user_name
from nodeagent.agent.settings import AgentSettings
from nodeagent.model.protocol import Assignment
from nodeagent.rules import accounts as rules
from nodeagent.rules.accounts import Account, Held, UidRange, Wanted
from nodeagent.rules.attempt import OVER
from nodeagent.shim.records import User

log = structlog.get_logger(__name__)

RANGES_FILE = Path("/run/nodeagent-uids.lock")
"""Agents of one machine lock the bytes here that are their uids: the kernel sees which ranges overlap."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who an attempt runs as, for its environment (`name`), its shim and its directories.

    `user` is None for the agent's own user; `owner` too, where accounts are not kept apart.
    """

    name: str
    user: User | None = None
    owner: Owner | None = None


class Accounts:
    """Gives attempts their accounts. Without a range, or for a plain user, all run as the agent's own user."""

    def __init__(self, database: Database, directories: Directories, uids: UidRange | None) -> None:
        self._database = database
        self._directories = directories
        self._uids = uids
        self._own = Actor(user_name())
        self._lasting: dict[str, int] = {}
        """Named users of the pool, by holder: they keep their uids."""
        self._passing: dict[str, int] = {}
        """Attempts in task scope that run, and their uids."""

    @property
    def kept_apart(self) -> bool:
        """Whether tasks run as users of their own at all."""
        return self._uids is not None

    async def hold(self, assignment: Assignment) -> Actor:
        """Return who an attempt runs as; its uid is stored when this returns. Raises rules.AccountError."""
        wanted = rules.wanted(assignment)
        if self._uids is None:
            return self._own
        account = rules.administrator() if wanted.administrator else await self._account(wanted, self._uids)
        if wanted.of_one_task:
            self._passing[assignment.attempt_id] = account.uid
        user = None if account.is_administrator else User(account.uid, account.gid, account.groups)
        mode = rules.directory_mode(assignment.attempt_kind)
        return Actor(account.name, user, Owner(account.uid, account.directory_gid, mode))

    async def _account(self, wanted: Wanted, uids: UidRange) -> Account:
        if wanted.is_pool_user:
            return rules.account(wanted, uids.first, uids)
        if wanted.is_named:
            _check_named(wanted, uids)
        if wanted.uid is not None:
            return rules.account(wanted, wanted.uid, uids)
        uid = self._lasting.get(wanted.holder)
        if uid is None:
            uid = await self._database.write(lambda db: _give(db, wanted, uids))
            failpoints.hit("after_account_commit")
            if not wanted.of_one_task:
                self._lasting[wanted.holder] = uid
        return rules.account(wanted, uid, uids)

    def release(self, assignment: Assignment) -> None:
        """The attempt is over and none of its processes is left: close its directories, and free the uid.

        What a preparation or start task has left may live on: their uids are free when their rows have gone.
        """
        uid = self._passing.pop(assignment.attempt_id, None)
        if uid is None or rules.outlives_its_attempt(assignment.attempt_kind):
            return
        self._close(assignment, uid)
        failpoints.hit("after_account_close")
        self._database.submit_soon(lambda db: _free(db, [rules.holder_of(assignment.attempt_id)]))

    async def recover(self) -> None:
        """Take back what a former life did not: uids of attempts that are over. Others keep theirs."""
        for uid, row in await self._database.write(_held_by_attempts):
            self._passing[row.attempt.attempt_id] = uid
            if row.attempt.state in OVER:
                self.release(row.assignment)

    def _close(self, assignment: Assignment, uid: int) -> None:
        paths = self._directories.layout.task(assignment.job_id, assignment.task_id)
        try:
            self._directories.close_to(paths, uid)
        except OSError as error:  # the uid is reused all the same, but last of all
            log.warning("directory not closed", path=str(error.filename), why=error.strerror)


def _check_named(wanted: Wanted, uids: UidRange) -> None:
    uid_of_name: int | None
    name_of_uid: str | None
    try:
        uid_of_name = pwd.getpwnam(wanted.name or "").pw_uid
    except (KeyError, ValueError):  # ValueError: a NUL in the name
        uid_of_name = None
    try:
        name_of_uid = None if wanted.uid is None else pwd.getpwuid(wanted.uid).pw_name
    except (KeyError, OverflowError):
        name_of_uid = None
    rules.check_named(wanted, uids, uid_of_name, name_of_uid)


# agent.db, in the writer thread.


def _all(connection: sqlite3.Connection) -> list[Held]:
    rows = connection.execute("SELECT uid, holder, released FROM accounts ORDER BY uid")
    return [Held(uid, holder, released) for uid, holder, released in rows]


def _held_by_attempts(connection: sqlite3.Connection) -> list[tuple[int, journal.AttemptRow]]:
    """Return the uids of attempts that are still known. Those of others are free, see `_give`."""
    found = []
    for held in _all(connection):
        name = None if held.holder is None else rules.attempt_of(held.holder)
        row = None if name is None else journal.attempt(connection, name)
        if row is not None:
            found.append((held.uid, row))
    return found


def _give(connection: sqlite3.Connection, wanted: Wanted, uids: UidRange) -> int:
    """Store who holds which uid. Those of attempts that have been removed are free again. Raises AccountError."""
    held = _all(connection)
    gone = [
        row.holder
        for row in held
        if row.holder is not None
        and (name := rules.attempt_of(row.holder)) is not None
        and not journal.knows(connection, name)
    ]
    if gone:
        _free(connection, gone)
        held = _all(connection)
    uid = rules.choose_uid(wanted, held, uids)
    connection.execute("UPDATE accounts SET holder = NULL WHERE holder = ? AND uid <> ?", (wanted.holder, uid))
    connection.execute(
        "INSERT INTO accounts (uid, holder, released) VALUES (?, ?, 0)"
        " ON CONFLICT (uid) DO UPDATE SET holder = excluded.holder",
        (uid, wanted.holder),
    )
    return uid


def _free(connection: sqlite3.Connection, holders: Iterable[str]) -> None:
    for holder in holders:
        connection.execute(
            "UPDATE accounts SET holder = NULL, released = (SELECT max(released) + 1 FROM accounts) WHERE holder = ?",
            (holder,),
        )


# What the machine must allow, looked at once, at the start.


@asynccontextmanager
async def claimed(uids: UidRange | None) -> AsyncIterator[None]:
    """Claim the uids on this machine for the `with` block; the kernel drops the claim when the agent dies.

    Raises AccountsError, UnwritableError.
    """
    if uids is None:
        yield
        return
    try:
        file = os.open(RANGES_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UnwritableError(f"{RANGES_FILE} cannot be written: {error.strerror}") from error
    try:
        _lock(file, uids)
        yield
    finally:
        os.close(file)


def _lock(file: int, uids: UidRange) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, uids.last - uids.first + 1, uids.first)
    except (BlockingIOError, PermissionError) as error:
        raise AccountsError(
            f"another agent of this machine gives out uids from {uids.first} to {uids.last}:"
            " give each its own uid_range"
        ) from error


def uids_of(settings: AgentSettings) -> UidRange | None:
    """Return the uids that tasks may have, or None where all run as the agent's user; say which, once.

    Raises AccountsError if the machine's own accounts have some of them, or its user namespace has not.
    """
    is_root = os.geteuid() == 0
    if settings.accounts == "none" or (settings.accounts == "auto" and not is_root):
        why = 'accounts = "none"' if is_root else "the agent is not root"
        log.warning("every task runs as the agent's own user, whatever its userIdentity", user=user_name(), why=why)
        return None
    if not is_root:
        raise AccountsError(f'accounts = "uids" needs root, and this is user {user_name()}')
    first, last = settings.uid_range
    uids = UidRange(first, last, settings.gid or first)
    taken = [entry.pw_name for entry in pwd.getpwall() if entry.pw_uid in uids]
    taken += [f"group {entry.gr_name}" for entry in grp.getgrall() if entry.gr_gid in uids]
    if taken:
        raise AccountsError(f"uid_range: the machine has accounts from {first} to {last} itself: {', '.join(taken)}")
    for name in ("uid_map", "gid_map"):
        if not _is_mapped(Path("/proc/self", name).read_text(), first, last):
            raise AccountsError(f"uid_range: not all of {first} to {last} exist in this user namespace ({name})")
    log.info("tasks run as users of their own", uids=f"{first}-{last}", group=uids.group)
    return uids


def _is_mapped(text: str, first: int, last: int) -> bool:
    spans = [tuple(int(part) for part in line.split()) for line in text.splitlines()]
    return any(start <= first and last < start + count for start, _, count in spans)


def check_reachable(root: Path) -> None:
    """Raise AccountsError, with the directory and its mode, if users of tasks cannot get to the node root."""
    real = root.resolve()
    for directory in (*reversed(root.parents), root, *reversed(real.parents), real):
        mode = stat.S_IMODE(directory.stat().st_mode)
        if not mode & stat.S_IXOTH:
            raise AccountsError(
                f"tasks run as users of their own, and these cannot pass {directory} (mode {mode:04o}) on the way to"
                f' the node root {root}: chmod o+x {directory}, choose another root, or set accounts = "none"'
            )
