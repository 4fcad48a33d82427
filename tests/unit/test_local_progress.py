"""What the events of a run add up to."""

from typing import Any

from nodeagent.local.outcome import Execution, RunOutcome
from nodeagent.local.progress import Progress


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
