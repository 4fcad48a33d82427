"""Which account a task runs as, and which uid a new one gets (spec/node.md §7). Numbers, never passwords.

An account is a number from the node's range with Batch's name for it: no entry of /etc/passwd is needed for the kernel
to keep two of them apart, and none has to be made or cleaned up. An administrator is uid 0, as on Batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nodeagent.model.enums import AutoUserScope, ElevationLevel
from nodeagent.model.protocol import Assignment, AttemptKind

POOL_USER = "_azbatch"
TASK_USER_PREFIX = "_azbatchtask_"
ADMINISTRATOR = "root"

_POOL_HOLDER = "pool"
_NAMED = "user:"
_TASK = "task:"

_PRIVATE, _READABLE = 0o770, 0o755
_READABLE_KINDS = frozenset({AttemptKind.START, AttemptKind.JOB_PREPARATION})
"""Every task may read what these have left; only the same account may write it (spec/node.md §1)."""


class AccountError(ValueError):
    """The identity of a task is none that this node can give: the text says why, and what would be right."""


@dataclass(frozen=True, slots=True)
class UidRange:
    """The uids that a node may give to accounts, both ends included; the first is the pool's auto user's.

    `group` is that user's, and no other account's.
    """

    first: int
    last: int
    group: int

    def __contains__(self, uid: int) -> bool:
        """Whether a uid is one of them."""
        return self.first <= uid <= self.last


@dataclass(frozen=True, slots=True)
class Account:
    """Who a task runs as. Its directories belong to `uid` and `directory_gid`."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    directory_gid: int

    @property
    def is_administrator(self) -> bool:
        """It may do everything."""
        return self.uid == 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """The account that a task asks for. `holder` names who holds its uid: the same holder, the same uid.

    `uid` and `gid` are those that the pool's account prescribes.
    """

    holder: str
    name: str | None = None
    uid: int | None = None
    gid: int | None = None
    administrator: bool = False

    @property
    def is_pool_user(self) -> bool:
        """It is the pool's auto user, whose uid is always the first."""
        return self.holder == _POOL_HOLDER and not self.administrator

    @property
    def is_named(self) -> bool:
        """It is one of the pool's userAccounts."""
        return self.holder.startswith(_NAMED)

    @property
    def of_one_task(self) -> bool:
        """The account goes when the task has ended."""
        return self.holder.startswith(_TASK)


@dataclass(frozen=True, slots=True)
class Held:
    """A uid that was given once: to whom (None: it is free again), and its place in the order of releases."""

    uid: int
    holder: str | None
    released: int = 0


def wanted(assignment: Assignment) -> Wanted:
    """Return the account that an assignment asks for. Raises AccountError for a user that the pool does not have."""
    identity, named = assignment.work.user_identity, assignment.work.named_user
    if identity.auto_user is None:
        if named is None:
            raise AccountError(f"the pool has no user account '{identity.username}': add it to the pool's userAccounts")
        if named.elevation_level is ElevationLevel.ADMIN:
            return Wanted(_NAMED + named.name, administrator=True)
        return Wanted(_NAMED + named.name, named.name, named.uid, named.gid)
    if identity.auto_user.elevation_level is ElevationLevel.ADMIN:
        return Wanted(_POOL_HOLDER, administrator=True)
    if identity.auto_user.scope is AutoUserScope.TASK:
        return Wanted(holder_of(assignment.attempt_id))
    return Wanted(_POOL_HOLDER, POOL_USER)


def holder_of(attempt_id: str) -> str:
    """Return the holder of the uid that an attempt in task scope has."""
    return _TASK + attempt_id


def attempt_of(holder: str) -> str | None:
    """Return the attempt that a holder is, or None for an account of the pool."""
    return holder.removeprefix(_TASK) if holder.startswith(_TASK) else None


def administrator() -> Account:
    """Return the account of tasks with elevation level admin."""
    return Account(ADMINISTRATOR, 0, 0, (), 0)


def account(asked: Wanted, uid: int, uids: UidRange) -> Account:
    """Return the account of a uid that was given to `asked`.

    The pool's auto user is of the common group and so gets into directories of tasks with a user of their own; these
    have a group of their own too, and get into nobody's. Named users keep what is theirs to themselves.
    """
    if asked.of_one_task:
        return Account(f"{TASK_USER_PREFIX}{uid - uids.first}", uid, uid, (), uids.group)
    if asked.is_pool_user:
        return Account(POOL_USER, uid, uids.group, (), uids.group)
    gid = uid if asked.gid is None else asked.gid
    return Account(asked.name or str(uid), uid, gid, (), gid)


def choose_uid(asked: Wanted, held: Sequence[Held], uids: UidRange) -> int:
    """Return the uid that a holder has, or the one that it gets now.

    Never used ones first, then the one that has been free for longest: what a task has left in shared places belongs
    to a stranger as late as possible. Raises AccountError when all are held.
    """
    for row in held:
        if row.holder == asked.holder and (asked.of_one_task or row.uid in uids):
            return row.uid
    known = {row.uid for row in held} | {uids.first}
    for uid in range(uids.first, uids.last + 1):
        if uid not in known:
            return uid
    free = [row for row in held if row.holder is None and row.uid in uids and row.uid != uids.first]
    if not free:
        raise AccountError(f"all uids from {uids.first} to {uids.last} are in use: give the agent a larger uid_range")
    return min(free, key=lambda row: row.released).uid


def check_named(asked: Wanted, uids: UidRange, uid_of_name: int | None, name_of_uid: str | None) -> None:
    """Raise AccountError if a named user of the pool would be confused with an account of the machine.

    `uid_of_name` and `name_of_uid` are what the machine says of its name and of the uid that it prescribes. The same
    name with the same uid is the same account: an administrator has made it on purpose.
    """
    who = f"user account '{asked.name}'"
    if uid_of_name is not None and uid_of_name != asked.uid:
        raise AccountError(f"{who}: the node has an account of that name with uid {uid_of_name}: choose another name")
    if asked.uid is None:
        return
    if asked.uid == 0 or asked.gid == 0:
        raise AccountError(f"{who}: uid and gid 0 are root's: use elevationLevel admin instead")
    if asked.uid in uids:
        raise AccountError(f"{who}: uid {asked.uid} is of the node's own range, {uids.first} to {uids.last}")
    if name_of_uid not in (None, asked.name):
        raise AccountError(f"{who}: uid {asked.uid} is that of the node's account '{name_of_uid}'")


def directory_mode(kind: AttemptKind) -> int:
    """Return the mode of an attempt's directory where accounts are kept apart."""
    return _READABLE if kind in _READABLE_KINDS else _PRIVATE


def outlives_its_attempt(kind: AttemptKind) -> bool:
    """Whether what an attempt has left, processes and directory, is used by tasks after it has ended."""
    return kind in _READABLE_KINDS
