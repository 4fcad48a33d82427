"""How far a run is: what the events and looks at the service add up to. No I/O."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple


class News(NamedTuple):
    """One line that tells what happened; `notable` ones are shown even beside a live display."""

    text: str
    notable: bool = False


LONG_TRANSFER_SECONDS = 2.0
"""A transfer that takes longer is told in a line of its own."""


class Phase(StrEnum):
    """What a run is doing."""

    STARTING = "starting"
    RUNNING = "running tasks"
    RELEASING = "releasing"
    DONE = "done"


@dataclass(slots=True)
class Progress:
    """The state of a run, for those who show it."""

    job_id: str
    tasks: int
    slots: int
    phase: Phase = Phase.STARTING
    done: int = 0
    failed: int = 0
    retried: int = 0
    running: dict[str, int] = field(default_factory=dict)
    """Slots of each task that runs now, by task id."""
    preparation: dict[str, str] = field(default_factory=dict)
    """State of the preparation on each node: running, success or failure."""
    release: dict[str, str] = field(default_factory=dict)
    transfers: tuple[Mapping[str, Any], ...] = ()
    """What tasks transfer now, as the service lists it."""
    _transferring: dict[tuple[str, str], float] = field(default_factory=dict)
    """Since when (monotonic seconds) a task is in a phase of transfers; infinity once that has been told."""
    _ended: set[str] = field(default_factory=set)

    @property
    def slots_in_use(self) -> int:
        """How many slots the running tasks hold."""
        return sum(self.running.values())

    def all_ended(self) -> bool:
        """Tell whether every task has completed."""
        return len(self._ended) >= self.tasks

    def hear(self, event: Mapping[str, Any]) -> News | None:
        """Take in one event of the stream; returns what it tells, None for other jobs' events."""
        body = event["properties"]
        if body["jobId"].lower() != self.job_id.lower():
            return None
        task, node = body["id"], body["nodeInfo"]["nodeId"]
        match event["operationName"]:
            case "TaskStartEvent":
                return self._started(task, node, body)
            case "TaskCompleteEvent" if task not in self._ended:
                return self._completed(task, body["executionInfo"])
            case _:
                return None

    def look(self, statuses: list[dict[str, Any]]) -> list[News]:
        """Take in the preparation and release status list; returns what changed."""
        lines = []
        kinds = (
            ("preparation", "jobPreparationTaskExecutionInfo", self.preparation),
            ("release", "jobReleaseTaskExecutionInfo", self.release),
        )
        for status in statuses:
            for name, key, known in kinds:
                info = status.get(key)
                if info is None:
                    continue
                state = info["state"] if info["state"] == "running" else str(info.get("result", "failure"))
                if known.get(status["nodeId"]) != state:
                    known[status["nodeId"]] = state
                    exit_code = "" if info.get("exitCode") is None else f", exit code {info['exitCode']}"
                    text = f"{name} on {status['nodeId']}: {state}{exit_code}"
                    lines.append(News(text, notable=state == "failure"))
        return lines

    def transfer(self, listed: Sequence[Mapping[str, Any]], now: float) -> list[News]:
        """Take in the list of transfers at a monotonic time; returns those that take long, each once."""
        self.transfers = tuple(listed)
        since = {}
        lines = []
        for item in listed:
            key = (str(item["taskId"]), str(item["phase"]))
            since[key] = self._transferring.get(key, now)
            if now - since[key] > LONG_TRANSFER_SECONDS:
                since[key] = math.inf
                lines.append(News(f"{item['taskId']}: {transfer_text((item,))}"))
        self._transferring = since
        return lines

    def _started(self, task: str, node: str, body: Mapping[str, Any]) -> News:
        again = task in self.running
        retry = int(body["executionInfo"]["retryCount"])
        self.running[task] = int(body["requiredSlots"])
        if retry > 0:
            self.retried += 1
            return News(f"{task}: retry {retry} on {node}", notable=True)
        return News(f"{task}: {'started again' if again else 'started'} on {node}", notable=again)

    def _completed(self, task: str, info: Mapping[str, Any]) -> News:
        self._ended.add(task)
        self.running.pop(task, None)
        self.done += 1
        if info["result"].lower() == "success":
            return News(f"{task}: succeeded")
        self.failed += 1
        code = info.get("exitCode")
        why = info["schedulingError"]["code"] if code is None else f"exit code {code}"
        return News(f"{task}: failed, {why}", notable=True)


def transfer_texts(transfers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return e.g. `downloading 3 tasks: 412 MiB of 1.2 GiB`, one for each phase in which tasks are."""
    phases: dict[str, list[Mapping[str, Any]]] = {}
    for item in transfers:
        phases.setdefault(str(item["phase"]), []).append(item)
    return [
        transfer_text(items, f" {len(items)} {'task' if len(items) == 1 else 'tasks'}:") for items in phases.values()
    ]


def transfer_text(transfers: Sequence[Mapping[str, Any]], of: str = "") -> str:
    """Return how far transfers of one phase are together; a total only if it is known of each."""
    done = sum(int(item["bytesDone"]) for item in transfers)
    totals = [item.get("bytesTotal") for item in transfers]
    total = "" if None in totals else f" of {size_text(sum(int(known or 0) for known in totals))}"
    return f"{transfers[0]['phase']}{of} {size_text(done)}{total}"


def size_text(size: int) -> str:
    """Return e.g. `412 MiB`, `1.2 GiB`: three digits are enough."""
    value, units = float(size), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while value >= 1000 and (following := next(units, None)) is not None:
        value, unit = value / 1024, following
    return f"{value:.1f} {unit}" if unit != "B" and value < 10 else f"{value:.0f} {unit}"
