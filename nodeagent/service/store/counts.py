"""How many tasks of a job are in which state: kept in the transaction that changes the state, so always exact."""

from dataclasses import dataclass

from nodeagent.model.enums import ExecutionResult, TaskState
from nodeagent.model.task import TaskCounts
from nodeagent.service.store.database import Transaction

_BUCKETS = ("active", "preparing", "running", "succeeded", "failed")


def bucket(state: TaskState, result: ExecutionResult | None) -> str:
    """Return the counter that a task is in."""
    if state is not TaskState.COMPLETED:
        return state.value
    return "succeeded" if result is ExecutionResult.SUCCESS else "failed"


@dataclass(frozen=True, slots=True)
class JobCounts:
    """The counters of a job: tasks and slots as the REST API shows them, and how many tasks are not completed."""

    tasks: TaskCounts
    slots: TaskCounts

    @property
    def unfinished(self) -> int:
        """Tasks that are not completed."""
        return self.tasks.active + self.tasks.running


def get(tx: Transaction, job_num: int) -> JobCounts:
    """Return a job's counters; `preparing` counts as running (spec/rest.md §3.8)."""
    columns = ", ".join((*_BUCKETS, *(f"{name}_slots" for name in _BUCKETS)))
    row = tx.one(f"SELECT {columns} FROM job_counts WHERE job_num = ?", (job_num,)) or (0,) * 10  # noqa: S608
    return JobCounts(shape(*row[:5]), shape(*row[5:]))


def shape(active: int, preparing: int, running: int, succeeded: int, failed: int) -> TaskCounts:
    """Return numbers of tasks (or slots) in each state as the REST API shows them."""
    return TaskCounts(
        active=active,
        running=preparing + running,
        completed=succeeded + failed,
        succeeded=succeeded,
        failed=failed,
    )


def add(tx: Transaction, job_num: int, name: str, *, tasks: int, slots: int) -> None:
    """Count tasks in (negative: out)."""
    tx.execute(
        f"UPDATE job_counts SET {name} = {name} + ?, {name}_slots = {name}_slots + ? WHERE job_num = ?",  # noqa: S608
        (tasks, slots, job_num),
    )


def move(tx: Transaction, job_num: int, before: str, after: str, slots: int) -> None:
    """Count one task from one state to another."""
    if before != after:
        tx.execute(
            f"UPDATE job_counts SET {before} = {before} - 1, {before}_slots = {before}_slots - :slots,"  # noqa: S608
            f" {after} = {after} + 1, {after}_slots = {after}_slots + :slots WHERE job_num = :job",
            {"slots": slots, "job": job_num},
        )
