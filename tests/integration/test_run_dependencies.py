"""`nodeagent run` with tasks that wait for others, exit conditions and job managers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command_line import kill_processes_of, nodeagent, shell


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    """Leave no process behind, also when a test has failed."""
    yield
    kill_processes_of(tmp_path)


async def run(tmp_path: Path, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Run a job; return the exit status and the outcome."""
    path = tmp_path / "job.json"
    path.write_text(json.dumps(body))
    status, out, err = await nodeagent("run", path, "--json", "--slots=4", f"--state-dir={tmp_path / 'state'}")
    assert out, err
    outcome: dict[str, Any] = json.loads(out)
    return status, outcome


def task(task_id: str, script: str, **more: object) -> dict[str, object]:
    """Return a task that runs a script."""
    return {"id": task_id, "commandLine": shell(script), **more}


def states(outcome: dict[str, Any]) -> dict[str, str]:
    """Return how each task stands."""
    return {row["id"]: row["result"] or row["state"] for row in outcome["tasks"]}


async def test_tasks_run_in_the_order_of_their_dependencies(tmp_path: Path) -> None:
    """By id, by range, and through a failure that satisfies: each appends its name when its turn has come."""
    note = "echo $AZ_BATCH_TASK_ID >> $AZ_BATCH_NODE_SHARED_DIR/order"
    satisfy = {"default": {"dependencyAction": "satisfy"}}
    body = {
        "id": "ordered",
        "usesTaskDependencies": True,
        "tasks": [
            task("last", note, dependsOn={"taskIds": ["middle"], "taskIdRanges": [{"start": 1, "end": 3}]}),
            task("middle", note, dependsOn={"taskIdRanges": [{"start": 1, "end": 2}]}),
            task("1", f"{note}; exit 9", exitConditions=satisfy),
            task("2", note, dependsOn={"taskIds": ["1"]}),
            task("3", note, dependsOn={"taskIds": ["MIDDLE"]}),
        ],
    }
    status, outcome = await run(tmp_path, body)
    assert status == 1, "one task did fail"
    assert states(outcome) == {"1": "failure", "2": "success", "3": "success", "last": "success", "middle": "success"}
    order = (tmp_path / "state" / "nodes" / "node-1" / "root" / "shared" / "order").read_text().split()
    assert order == ["1", "2", "middle", "3", "last"]


async def test_events_of_an_end_tell_what_was_used(tmp_path: Path) -> None:
    """By the execution that completed the task; the event of a start has nothing of it."""
    burn = "i=0; while test $i -lt 30000; do i=$((i+1)); done; exit 2"
    await run(tmp_path, {"id": "burns", "tasks": [task("a", burn)]})
    lines = (tmp_path / "state" / "service" / "events.jsonl").read_text().splitlines()
    events = {event["operationName"]: event["properties"] for event in map(json.loads, lines)}
    assert "nodeagent" not in events["TaskStartEvent"]
    used = events["TaskCompleteEvent"]["nodeagent"]["statistics"]
    assert used == events["TaskFailEvent"]["nodeagent"]["statistics"]
    assert used["wallClockSeconds"] >= used["userCpuSeconds"] * 0.5 > 0
    assert used["peakMemoryBytes"] > 2**18
    assert used.keys() == {
        "wallClockSeconds",
        "userCpuSeconds",
        "kernelCpuSeconds",
        "peakMemoryBytes",
        "readBytes",
        "writeBytes",
    }


async def test_a_run_whose_tasks_can_never_run_ends_and_says_so(tmp_path: Path) -> None:
    """Azure would leave them active for ever; a run has nobody who could help them."""
    body = {
        "id": "blocked",
        "usesTaskDependencies": True,
        "tasks": [
            task("a", "exit 1"),
            task("b", "true", dependsOn={"taskIds": ["a"]}),
            task("c", "true", dependsOn={"taskIds": ["b"]}),
            task("d", "sleep 0.1"),
        ],
    }
    status, outcome = await run(tmp_path, body)
    assert status == 1
    assert states(outcome) == {"a": "failure", "b": "active", "c": "active", "d": "success"}
    assert outcome["problem"] == "2 tasks (b, c) can never run: what they wait for failed, or is not there"


async def test_a_failure_ends_or_disables_the_job_as_its_exit_options_say(tmp_path: Path) -> None:
    """`terminate` stops what runs, `disable` lets nothing more start; both end the run."""
    for action, ended in (("terminate", "failure"), ("disable", "active")):
        body = {
            "id": f"acts-{action}",
            "onTaskFailure": "performexitoptionsjobaction",
            "tasks": [
                task("slow", "sleep 600"),
                task(
                    "bad",
                    "sleep 0.3; exit 3",
                    exitConditions={"exitCodeRanges": [{"start": 2, "end": 4, "exitOptions": {"jobAction": action}}]},
                ),
            ],
        }
        directory = tmp_path / action
        directory.mkdir()
        status, outcome = await run(directory, body)
        assert status == 1
        assert states(outcome) == {"bad": "failure", "slow": ended}
        assert (outcome["problem"] is not None) == (action == "disable")


async def test_a_job_manager_ends_its_job(tmp_path: Path) -> None:
    """It has its node for itself first; then the file's task runs, or is left if the manager ends the job."""
    manager = {"id": "manager", "commandLine": shell("test -n $AZ_BATCH_JOB_ID"), "killJobOnCompletion": False}
    body = {"id": "managed", "jobManagerTask": manager, "tasks": [task("a", "true")]}
    status, outcome = await run(tmp_path, body)
    assert (status, states(outcome)) == (0, {"a": "success", "manager": "success"})
