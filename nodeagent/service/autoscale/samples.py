"""What a pool was like at the moments when it was looked at: the data of a formula."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

PERIOD = timedelta(seconds=30)
"""How often a pool is looked at, as Batch documents it."""
KEPT = timedelta(days=1)
"""How long what was seen is kept."""

NAMES = (
    "$CPUPercent",
    "$MemoryBytes",
    "$DiskBytes",
    "$SampleNodeCount",
    "$ActiveTasks",
    "$RunningTasks",
    "$PendingTasks",
    "$SucceededTasks",
    "$FailedTasks",
    "$TaskSlotsPerNode",
    "$CurrentDedicatedNodes",
    "$CurrentLowPriorityNodes",
    "$UsableNodeCount",
    "$PreemptedNodeCount",
)
"""What is looked at. Batch has numbers of disk and network operations too, which nodes here do not count."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a pool was like at one moment; averages over nodes where there are several."""

    at: datetime
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Series:
    """All that is known of one variable, oldest first."""

    name: str
    points: Sequence[tuple[datetime, float]]

    def between(self, start: datetime, end: datetime) -> tuple[float, ...]:
        """Return the values from `start` to `end`, both included."""
        return tuple(value for at, value in self.points if start <= at <= end)

    def percent(self, start: datetime, end: datetime) -> float:
        """Return how many of the samples that there should be from `start` to `end` there are, 0 to 100."""
        expected = max(1, (end - start) // PERIOD)
        return min(100.0, 100.0 * len(self.between(start, end)) / expected)


def series_of(samples: Sequence[Sample]) -> dict[str, Series]:
    """Return the variables of some samples by their lower-case names."""
    return {
        name.lower(): Series(
            name, tuple((sample.at, sample.values[name]) for sample in samples if name in sample.values)
        )
        for name in NAMES
    }
