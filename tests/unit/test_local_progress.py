"""What the events of a run add up to."""

from typing import Any

import pytest

from nodeagent.local.outcome import Execution, RunOutcome
from nodeagent.local.progress import Progress, size_text, transfer_texts


def event(name: str, task: str, job: str = "j", **info: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON values
    """Return an event of the stream."""
    properties = {"jobId": job, "id": task, "requiredSlots": 2, "nodeInfo": {"nodeId": "n1"}, "executionInfo": info}
    return {"operationName": name, "properties": properties}


def ended(task: str, result: str, **info: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON values
    """Return the event of a completion."""
    return event("TaskCompleteEvent", task, result=result, schedulingError={"code": "Why"}, **info)


def test_a_run_adds_up() -> None:
    """Starts, retries, successes and failures are counted once each; slots are those of running tasks."""
    progress = Progress("j", 3, 4)
    told = [
        progress.hear(item)
        for item in (
            event("TaskStartEvent", "a", retryCount=0),
            event("TaskStartEvent", "b", retryCount=0),
            event("TaskStartEvent", "x", job="other", retryCount=0),
            event("TaskStartEvent", "a", retryCount=1),
        )
    ]
    assert [news.text if news else None for news in told] == [
        "a: started on n1",
        "b: started on n1",
        None,
        "a: retry 1 on n1",
    ]
    assert (progress.slots_in_use, progress.retried) == (4, 1)
    progress.hear(ended("a", "Success", exitCode=0))
    progress.hear(ended("b", "Failure", exitCode=3))
    progress.hear(event("TaskFailEvent", "b", result="Failure", exitCode=3, schedulingError={"code": "Why"}))
    assert (progress.done, progress.failed, progress.slots_in_use) == (2, 1, 0)
    assert not progress.all_ended()
    news = progress.hear(ended("c", "Failure"))
    assert news is not None
    assert (news.text, news.notable) == ("c: failed, Why", True)
    assert progress.all_ended()


def test_an_event_that_is_heard_twice_counts_once() -> None:
    """A stream that was opened again repeats nothing in the sums."""
    progress = Progress("J", 1, 1)
    progress.hear(ended("a", "Success", exitCode=0))
    assert progress.hear(ended("a", "Success", exitCode=0)) is None
    assert progress.done == 1


def test_only_changes_of_special_tasks_are_news() -> None:
    """A second look that shows the same tells nothing."""
    progress = Progress("j", 1, 1)
    running = [{"nodeId": "n1", "jobPreparationTaskExecutionInfo": {"state": "running"}}]
    failed = {"state": "completed", "result": "failure", "exitCode": 2}
    over = [{"nodeId": "n1", "jobPreparationTaskExecutionInfo": failed}]
    assert [news.text for news in progress.look(running)] == ["preparation on n1: running"]
    assert progress.look(running) == []
    assert [(news.text, news.notable) for news in progress.look(over)] == [
        ("preparation on n1: failure, exit code 2", True)
    ]


def _outcome(**changes: object) -> RunOutcome:
    rows = {"tasks": (Execution(id="t", state="completed", result="success"),), "preparation": (), "release": ()}
    return RunOutcome.model_validate(
        {
            "job_id": "j",
            "job_state": "completed",
            "interrupted": False,
            "problem": None,
            "elapsed_seconds": 1,
            "state_dir": "/s",
            "kept": True,
            "nodes": {},
            **rows,
            **changes,
        }
    )


def test_success_needs_every_task_and_every_special_task() -> None:
    """A task that never ran, a failed release, or a problem of the run each make it a failure."""
    assert _outcome().succeeded
    assert not _outcome(tasks=(Execution(id="t", state="active"),)).succeeded
    assert not _outcome(release=(Execution(id="r", state="completed", result="failure"),)).succeeded
    assert not _outcome(problem="no node left").succeeded


def moved(task: str, phase: str, done: int, total: int | None = None) -> dict[str, Any]:
    """Return a line of the service's list of transfers."""
    known = {} if total is None else {"bytesTotal": total}
    return {"taskId": task, "nodeId": "n1", "phase": phase, "filesDone": 0, "bytesDone": done, **known}


def test_transfers_that_take_long_are_told_once() -> None:
    """After two seconds in one phase; uploading after downloading is another transfer, and so is a second try."""
    progress = Progress("j", 2, 2)
    down = moved("a", "downloading", 3 << 20, 10 << 20)
    assert progress.transfer([down], 100.0) == []
    assert progress.transfer([down, moved("b", "downloading", 5)], 102.0) == []
    assert [news.text for news in progress.transfer([down, moved("b", "downloading", 5)], 102.5)] == [
        "a: downloading 3.0 MiB of 10 MiB"
    ]
    assert progress.transfer([down], 200.0) == []
    assert progress.transfer([moved("a", "uploading", 0)], 201.0) == []
    assert [news.text for news in progress.transfer([moved("a", "uploading", 2000)], 203.5)] == ["a: uploading 2.0 KiB"]
    assert progress.transfer([], 204.0) == []
    assert progress.transfers == ()
    assert progress.transfer([down], 205.0) == []
    assert len(progress.transfer([down], 208.0)) == 1


def test_transfers_add_up_by_phase() -> None:
    """A total is shown only if it is known of each."""
    transfers = [
        moved("a", "downloading", 400 << 20, 1 << 30),
        moved("b", "downloading", 12 << 20, 200 << 20),
        moved("c", "downloading", 0, 5 << 20),
        moved("d", "uploading", 999),
        moved("e", "installing", 1, 2),
        moved("f", "installing", 1),
    ]
    assert transfer_texts(transfers) == [
        "downloading 3 tasks: 412 MiB of 1.2 GiB",
        "uploading 1 task: 999 B",
        "installing 2 tasks: 2 B",
    ]
    assert transfer_texts([]) == []


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (10240, "10 KiB"), (1 << 40, "1.0 TiB"), (1 << 50, "1024 TiB")],
)
def test_sizes_have_few_digits(size: int, text: str) -> None:
    """In the binary units that files are counted in."""
    assert size_text(size) == text
