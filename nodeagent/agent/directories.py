"""The directories of executions below the node root (spec/node.md §1, §4): fresh for each, the earlier ones kept.

The newest execution of a task has `<task>`; before it is made, the one that is there is renamed to `<task>~<n>`, `n`
being the number of the execution that it belongs to. Nothing is overwritten and nothing is deleted here. A directory
in which nothing was ever begun (a life of the agent that ended early) is simply used.
"""

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from nodeagent.agent.identity import make_directory
from nodeagent.rules.layout import NodeLayout, TaskPaths, earlier_attempt_directory

_MODE = 0o770
_SHARED_MODE = 0o1777
"""Every task may write into the shared directory, whoever it runs as."""
_WORKING_DIRECTORY = "wd"


class Directories:
    """Makes the tree of the node and the directories of tasks. Small local operations, done in place."""

    def __init__(self, layout: NodeLayout) -> None:
        self.layout = layout
        self._made_jobs: set[Path] = set()

    def make_node(self) -> None:
        """Make the top of the tree. Raises UnwritableError."""
        make_directory(self.layout.root, 0o755)
        for path in self.layout.top_level():
            make_directory(path, 0o755)
        shared = self.layout.shared.stat()
        if shared.st_uid == os.geteuid() and stat.S_IMODE(shared.st_mode) != _SHARED_MODE:
            self.layout.shared.chmod(_SHARED_MODE)

    def make_task(self, paths: TaskPaths) -> bool:
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
        return True

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
            path.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._made_jobs.add(path)


def _is_unused(root: Path) -> bool:
    """Only an empty `wd`, or not even that: no command was ever begun here."""
    names = os.listdir(root)  # noqa: PTH208 - names are all that is needed
    if not names:
        return True
    return names == [_WORKING_DIRECTORY] and not os.listdir(root / _WORKING_DIRECTORY)  # noqa: PTH208 - as above


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
