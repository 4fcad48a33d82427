"""What can happen to an attempt: the events that `rules.attempt.step` takes."""

from dataclasses import dataclass
from datetime import datetime

from nodeagent.model.failure import FailureInfo
from nodeagent.model.protocol import Statistics, StopReason, Sweep
from nodeagent.rules.failures import Detail


@dataclass(frozen=True, slots=True)
class Accepted:
    """The assignment has been read; the first event of every attempt."""


@dataclass(frozen=True, slots=True)
class PreparationSucceeded:
    """The gate is open."""


@dataclass(frozen=True, slots=True)
class PreparationFailed:
    """The job's preparation task failed here: the attempt is given back."""

    detail: str


@dataclass(frozen=True, slots=True)
class PreparationUnknown:
    """Nothing is known of the preparation task that the attempt waits for."""

    detail: str


@dataclass(frozen=True, slots=True)
class TransferredIn:
    """Resource files and packages are in place."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """The image is there."""


@dataclass(frozen=True, slots=True)
class PreProcessingFailed:
    """Something before the launch failed: the command never runs, and there is no exit code."""

    failure: FailureInfo


@dataclass(frozen=True, slots=True)
class Launched:
    """A shim holds the attempt."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The execution has ended, by what the kernel said and the shim wrote down."""

    at: datetime
    exit_code: int | None = None
    """`-n` for signal n; None if the command was never executed."""
    failure: FailureInfo | None = None
    """Why the command was never executed; or of one that was, if more is known than its exit code."""
    stop_reason: StopReason | None = None
    """Why it was ended, if a stop was under way when it ended."""
    statistics: Statistics | None = None
    sweep: Sweep | None = None
    """Proof that nothing is left of it; None if that is still to be shown."""
    stderr_tail: str | None = None
    task_message: str | None = None
    """What the task wrote to the file named by NODEAGENT_ERROR_FILE, if it failed."""
    evidence: tuple[Detail, ...] = ()
    """More details for a failure: what was counted, which limit was met."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Nobody knows how the execution ended, and nothing of it is left; or it never began (`detail` says which)."""

    detail: str


@dataclass(frozen=True, slots=True)
class Rebooted:
    """The node has been rebooted since the attempt was accepted; what a shim held, its records tell."""


@dataclass(frozen=True, slots=True)
class Swept:
    """The boundary was swept."""

    sweep: Sweep


@dataclass(frozen=True, slots=True)
class TransferredOut:
    """Uploads are over; `failure` if one of them could not be made."""

    failure: FailureInfo | None = None


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The attempt is to end before its time. The first reason counts."""

    reason: StopReason


@dataclass(frozen=True, slots=True)
class Disowned:
    """The service does not know the attempt or has given it up."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The service has the terminal report."""


@dataclass(frozen=True, slots=True)
class Removed:
    """The attempt's files are gone."""


Event = (
    Accepted
    | PreparationSucceeded
    | PreparationFailed
    | PreparationUnknown
    | TransferredIn
    | Pulled
    | PreProcessingFailed
    | Launched
    | Ended
    | Lost
    | Rebooted
    | Swept
    | TransferredOut
    | StopRequested
    | Disowned
    | Acknowledged
    | Removed
)
