"""Exit statuses, one place for all commands (docs/cli.md has the same table)."""

from enum import IntEnum


class Exit(IntEnum):
    """What a command's exit status means."""

    OK = 0
    """Done; for `run`: every task succeeded."""
    TASK_FAILED = 1
    """`run`: a task failed, or could not run."""
    USAGE = 2
    """The command line, the job file or a setting is wrong."""
    INTERNAL = 3
    """A fault of nodeagent itself."""
    PORT_IN_USE = 4
    """The address or port is taken."""
    STATE_IN_USE = 5
    """Another process works on the state folder."""
    NEWER_STATE = 6
    """The state folder was written by a newer version."""
    UNWRITABLE = 7
    """A folder cannot be made or written."""
    UNREACHABLE = 8
    """The service does not answer, or refused the request."""
    FENCED = 9
    """A newer life of this node has taken over."""
    REMOVED = 10
    """`agent`: a user took the node out of its pool."""
    INTERRUPTED = 130
    """Ended by Ctrl-C or SIGTERM before it was done."""


STATUS_HELP = """\b
Exit status:
  0    done; for run: every task succeeded
  1    run: a task failed, or could not run
  2    the command line, the job file or a setting is wrong
  3    a fault of nodeagent itself
  4    the port is in use
  5    another process works on the state folder
  6    the state folder was written by a newer version
  7    a folder cannot be made or written
  8    the service does not answer, or refused
  9    a newer life of this node has taken over
  10   agent: a user took the node out of its pool
  130  interrupted
"""


class CommandError(Exception):
    """What ends a command: one clear line for the person, and an exit status."""

    def __init__(self, message: str, status: Exit) -> None:
        super().__init__(message)
        self.status = status
