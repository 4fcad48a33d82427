"""What is to be done about an attempt: the effects that `rules.attempt.step` gives. All but Launch may be repeated."""

from dataclasses import dataclass

from nodeagent.model.protocol import Report, StopReason


@dataclass(frozen=True, slots=True)
class Send:
    """Put the report into the outbox, in the transaction of the step."""

    report: Report


@dataclass(frozen=True, slots=True)
class AwaitPreparation:
    """Wait for the end of the job's preparation task on this node."""


@dataclass(frozen=True, slots=True)
class TransferIn:
    """Make the directory, bring packages and resource files. Begun anew after a restart: files are replaced."""


@dataclass(frozen=True, slots=True)
class PullImage:
    """Bring the container image."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Make directories if that is not done, write the spec, launch, wait. At most once per execution."""


@dataclass(frozen=True, slots=True)
class Look:
    """Find out what became of the launch by the records; never launch a second time."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the execution that the shim holds."""

    reason: StopReason


@dataclass(frozen=True, slots=True)
class SweepBoundary:
    """Kill what is left of the execution, and prove that nothing is."""


@dataclass(frozen=True, slots=True)
class TransferOut:
    """Upload output files. Goes on after a restart where it was."""


Effect = Send | AwaitPreparation | TransferIn | PullImage | Launch | Look | Stop | SweepBoundary | TransferOut
