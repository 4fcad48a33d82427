"""The directories of executions below the node root (spec/node.md §1, §4): fresh for each, the earlier ones kept.

The newest execution of a task has `<task>`; before it is made, the one that is there is renamed to `<task>~<n>`, `n`
being the number of the execution that it belongs to. Nothing is overwritten and nothing is deleted here. A directory
in which nothing was ever begun (a life of the agent that ended early) is simply used.
"""

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nodeagent.agent.errors import UnwritableError
from nodeagent.agent.identity import make_directory
from nodeagent.rules.layout import NodeLayout, TaskPaths, earlier_attempt_directory

_MODE = 0o770
_SHARED_MODE = 0o1777
"""Every task may write into the shared directory, whoever it runs as."""
_WORKING_DIRECTORY = "wd"
_PASSABLE = 0o755
_CLOSED = 0o700
_OPENED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an execution's directories are, where accounts are kept apart."""

    uid: int
    gid: int
    mode: int


class Directories:
    """Makes the tree of the node and the directories of tasks. Small local operations, done in place."""

    def __init__(self, layout: NodeLayout) -> None:
        self.layout = layout
        self._made_jobs: set[Path] = set()
        self._for_users = False

    def make_node(self) -> None:
        """Make the top of the tree. Raises UnwritableError."""
        make_directory(self.layout.root, 0o755)
        for path in self.layout.top_level():
            make_directory(path, 0o755)
        shared = self.layout.shared.stat()
        if shared.st_uid == os.geteuid() and stat.S_IMODE(shared.st_mode) != _SHARED_MODE:
            self.layout.shared.chmod(_SHARED_MODE)

    def open_to_users(self) -> None:
        """Let users of tasks into the tree, whatever our umask is. Raises UnwritableError."""
        self._for_users = True
        for path in (self.layout.root, *self.layout.top_level()):
            try:
                path.chmod(_SHARED_MODE if path == self.layout.shared else _PASSABLE)
            except OSError as error:
                raise UnwritableError(f"{path} cannot be opened to users of tasks: {error.strerror}") from error

    def make_task(self, paths: TaskPaths, owner: Owner | None = None) -> bool:
        """Make `<task>` and its `wd`, and return True; or return False because an earlier execution is there.

        Raises OSError.
        """
        self._make_job(paths.root.parent)
        try:
            os.mkdir(paths.root, _MODE)  # noqa: PTH102 - on the path of every task, and pathlib is several times slower
        except FileExistsError:
            if not _is_unused(paths.root):
                return False
        except FileNotFoundError:  # somebody removed the job's directory behind our back
            self._made_jobs.discard(paths.root.parent)
            self._make_job(paths.root.parent)
            os.mkdir(paths.root, _MODE)  # noqa: PTH102 - as above
        _make_existing(paths.wd)
        if owner is not None:
            _give(paths.root, owner)
        return True

    def close_to(self, paths: TaskPaths, uid: int) -> None:
        """Take the directory of a task that a uid has, be it the newest or an earlier one, away from it.

        Raises OSError.
        """
        if _take(str(paths.root), uid):
            return
        earlier = f"{paths.root.name}~"
        for name in os.listdir(paths.root.parent):  # noqa: PTH208 - a job may have thousands of tasks
            if name.startswith(earlier):
                _take(f"{paths.root.parent}/{name}", uid)

    def move_aside(self, paths: TaskPaths, number: int | None) -> Path:
        """Rename `<task>` to the first free `<task>~<n>` from `number` on (1 if unknown). Raises OSError."""
        number = number or 1
        while os.path.lexists(target := earlier_attempt_directory(str(paths.root), number)):
            number += 1
        paths.root.rename(target)
        return Path(target)

    def forget(self, job_directory: Path) -> None:
        """Note that a job's directory is gone."""
        self._made_jobs = {path for path in self._made_jobs if not path.is_relative_to(job_directory)}

    def _make_job(self, path: Path) -> None:
        if path not in self._made_jobs:
            path.mkdir(parents=True, exist_ok=True, mode=_PASSABLE)
            if self._for_users:
                for made in (path, path.parent):
                    made.chmod(_PASSABLE)
            self._made_jobs.add(path)


def _is_unused(root: Path) -> bool:
    """Only an empty `wd`, or not even that: no command was ever begun here."""
    names = os.listdir(root)  # noqa: PTH208 - names are all that is needed
    if not names:
        return True
    working = root / _WORKING_DIRECTORY
    return names == [_WORKING_DIRECTORY] and not working.is_symlink() and not os.listdir(working)  # noqa: PTH208 - as above


def _take(path: str, uid: int) -> bool:
    """Close a directory if it is this uid's; whether it was."""
    try:
        handle = os.open(path, _OPENED)
    except FileNotFoundError:
        return False
    try:
        if os.fstat(handle).st_uid != uid:
            return False
        os.fchmod(handle, _CLOSED)
        os.fchown(handle, os.geteuid(), os.getegid())
    finally:
        os.close(handle)
    return True


def _give(root: Path, owner: Owner) -> None:
    """Hand a directory and its `wd` over. While that goes on only we can get in: nothing is swapped for a link."""
    handle = os.open(root, _OPENED)
    try:
        os.fchmod(handle, _CLOSED)
        os.fchown(handle, os.geteuid(), os.getegid())
        working = os.open(_WORKING_DIRECTORY, _OPENED, dir_fd=handle)
        try:
            os.fchown(working, owner.uid, owner.gid)
            os.fchmod(working, owner.mode)
        finally:
            os.close(working)
        os.fchown(handle, owner.uid, owner.gid)
        os.fchmod(handle, owner.mode)
    finally:
        os.close(handle)


def _make_existing(path: Path) -> None:
    try:
        os.mkdir(path, _MODE)  # noqa: PTH102 - on the path of every task
    except FileExistsError:
        return


def directory_of(paths: TaskPaths, number: int, newer: Iterable[int], made: Callable[[int], bool]) -> Path | None:
    """Return where execution `number` of a task has its directory, or None if it has none.

    `newer` are the numbers of later executions of the task, `made` tells which of those have made theirs.
    """
    aside = Path(earlier_attempt_directory(str(paths.root), number))
    if os.path.lexists(aside):
        return aside
    if any(made(later) for later in newer) or not made(number):
        return None
    return paths.root
