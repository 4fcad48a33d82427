"""Job release with the SDK against `nodeagent up`: real processes, real reboots (seed 002).

What the service decides in each case is in tests/unit/test_service_release.py; here is what comes of it.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from azure.batch import models

from tests.integration.batch_endpoint import Property, Sdk, completed, eventually, job, refusal, shell, task
from tests.integration.node_commands import CommandedNode, commanded_node

TERMINATE: Sdk = models._models.BatchJobTerminateOptions  # the SDK does not export what its own method wants


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandedNode]:
    """Return a local stack; tests keep apart by the ids of their jobs."""
    with commanded_node(tmp_path_factory.mktemp("state") / "up") as found:
        yield found


def prepared_job(
    job_id: str, release: str, preparation: str = "true", **more: Property
) -> models.BatchJobCreateOptions:
    """Return a job with preparation and release; `more` are properties of the release task."""
    return job(
        job_id,
        job_preparation_task=models.BatchJobPreparationTask(command_line=shell(preparation)),
        job_release_task=models.BatchJobReleaseTask(command_line=shell(release), **more),
    )


def run(up: CommandedNode, options: models.BatchJobCreateOptions) -> str:
    """Make a job, and run one task of it; return its id."""
    up.client.create_job(options)
    up.client.create_task(options.id, task("t"))
    completed(up.client, str(options.id), "t")
    return str(options.id)


def terminate(up: CommandedNode, job_id: str) -> Property:
    """Begin to terminate a job; return the poller."""
    return up.client.begin_terminate_job(job_id, TERMINATE(termination_reason="over"), polling_interval=0.05)


def ended(up: CommandedNode, job_id: str) -> Property:
    """Wait for the end of a job; return its execution information."""
    found = eventually(lambda: up.client.get_job(job_id), lambda one: one.state.value == "completed")
    return found.execution_info


def lines(path: Path) -> list[str]:
    """Return the lines that tasks have written into a file so far."""
    return path.read_text().split() if path.exists() else []


def test_a_release_runs_in_the_background_of_a_full_node(up: CommandedNode, tmp_path: Path) -> None:
    """All slots are taken before, during and after it; it finds what the preparation left; its files can be read."""
    go = tmp_path / "go"
    job_id = run(
        up,
        prepared_job(
            "background", "cat $AZ_BATCH_JOB_PREP_WORKING_DIR/left; echo $AZ_BATCH_TASK_ID >&2", "echo thing > left"
        ),
    )
    up.client.create_job(job("full"))
    names = [f"busy{number}" for number in range(5)]
    up.client.create_tasks("full", [task(name, f"until [ -e {go} ]; do sleep 0.05; done") for name in names])
    eventually(lambda: up.client.get_job_task_counts("full").task_counts.running, lambda count: count == 4)
    terminate(up, job_id).wait(30)
    info = up.release(job_id)
    assert (info.state.value, info.exit_code, info.result.value) == ("completed", 0, "success")
    assert up.file(f"{info.task_root_directory}/stdout.txt") == b"thing\n"
    assert up.file(f"{info.task_root_directory}/stderr.txt") == b"jobrelease\n"
    counted = up.client.get_job_task_counts("full").task_counts
    assert (counted.running, counted.active) == (4, 1)
    node = up.client.get_node(up.endpoint.pool_id, up.endpoint.node_id)
    assert (node.running_tasks_count, node.running_task_slots_count) == (4, 4)
    assert job_id not in {recent.job_id for recent in node.recent_tasks if recent.task_id == "jobrelease"}
    go.touch()
    for name in names:
        completed(up.client, "full", name)


def test_a_release_ends_with_its_own_wall_clock(up: CommandedNode) -> None:
    """It is killed after maxWallClockTime; the job completes although it failed."""
    job_id = run(up, prepared_job("clock", "sleep 600", max_wall_clock_time=timedelta(seconds=1)))
    terminate(up, job_id).wait(30)
    info = up.release(job_id)
    assert (info.state.value, info.result.value) == ("completed", "failure")
    assert info.failure_info.code == "TaskEnded"
    assert timedelta(seconds=0.9) < info.end_time - info.start_time < timedelta(seconds=20)


def test_the_limits_of_a_release_task(up: CommandedNode) -> None:
    """15 minutes and 7 days by default; 15 minutes at most."""
    up.client.create_job(prepared_job("limits", "true"))
    shown = up.client.get_job("limits").job_release_task
    assert (shown.max_wall_clock_time, shown.retention_time) == (timedelta(minutes=15), timedelta(days=7))
    kept = timedelta(days=1)
    up.client.create_job(prepared_job("most", "true", max_wall_clock_time=timedelta(minutes=15), retention_time=kept))
    assert up.client.get_job("most").job_release_task.retention_time == kept
    longer = prepared_job("longer", "true", max_wall_clock_time=timedelta(minutes=15, seconds=1))
    refused = refusal(lambda: up.client.create_job(longer))
    assert (refused.status_code, refused.error.code) == (400, "InvalidPropertyValue")
    named = [item["value"] for item in refused.model["values"] if item["key"] == "PropertyName"]
    assert named == ["jobReleaseTask.maxWallClockTime"]


def test_a_release_that_fails_is_not_retried(up: CommandedNode, tmp_path: Path) -> None:
    """The job completes with it."""
    tries = tmp_path / "tries"
    job_id = run(up, prepared_job("fails", f"echo x >> {tries}; echo why >&2; exit 7"))
    terminate(up, job_id).wait(30)
    info = up.release(job_id)
    assert (info.exit_code, info.failure_info.code) == (7, "FailureExitCode")
    assert lines(tries) == ["x"]


def test_a_reboot_during_the_release_runs_it_again(up: CommandedNode, tmp_path: Path) -> None:
    """The job is terminating until the second execution has ended."""
    tries, go = tmp_path / "tries", tmp_path / "go"
    job_id = run(up, prepared_job("rebooted", f"echo x >> {tries}; until [ -e {go} ]; do sleep 0.05; done"))
    terminate(up, job_id)
    eventually(lambda: lines(tries), bool)
    first = eventually(lambda: up.release(job_id), bool)
    assert (first.state.value, first.end_time) == ("running", None)
    up.reboot()
    eventually(lambda: lines(tries), lambda found: len(found) == 2)
    assert up.client.get_job(job_id).state.value == "terminating"
    go.touch()
    assert ended(up, job_id).termination_reason == "over"
    second = up.release(job_id)
    assert (second.exit_code, second.result.value) == (0, "success")
    assert second.start_time > first.start_time
    assert lines(tries) == ["x", "x"]


def test_a_reimaged_node_is_not_released(up: CommandedNode, tmp_path: Path) -> None:
    """Unless tasks of the job have run on it since."""
    gone, again = tmp_path / "gone", tmp_path / "again"
    for job_id, log in (("gone", gone), ("again", again)):
        run(up, prepared_job(job_id, f"echo x >> {log}"))
    up.reimage()
    up.client.create_task("again", task("after"))
    completed(up.client, "again", "after")
    for job_id in ("gone", "again"):
        terminate(up, job_id).wait(30)
    assert (lines(gone), lines(again)) == ([], ["x"])
    assert up.release("gone") is None
    assert up.preparation("gone").exit_code == 0
    assert up.release("again").exit_code == 0


def test_the_other_ends_of_a_job_release_it_too(up: CommandedNode, tmp_path: Path) -> None:
    """Deletion while it is active, its wall clock, its job manager, its last task, a failed task."""
    log = tmp_path / "log"
    deleted = run(up, prepared_job("deleted", f"echo deleted >> {log}"))
    up.client.begin_delete_job(deleted, polling_interval=0.05).wait(30)
    assert lines(log) == ["deleted"]
    options = prepared_job("expired", f"echo expired >> {log}")
    options.constraints = models.BatchJobConstraints(max_wall_clock_time=timedelta(seconds=2))
    up.client.create_job(options)
    up.client.create_task("expired", task("t", "sleep 600"))
    assert ended(up, "expired").termination_reason == "MaxWallClockTimeExpiry"
    assert up.client.get_task("expired", "t").execution_info.failure_info.code == "TaskEnded"
    options = prepared_job("managed", f"echo managed >> {log}")
    options.job_manager_task = models.BatchJobManagerTask(id="manager", command_line=shell("exit 0"))
    up.client.create_job(options)
    assert ended(up, "managed").termination_reason == "JMComplete"
    options = prepared_job("last", f"echo last >> {log}")
    run(up, options)
    up.client.update_job("last", models.BatchJobUpdateOptions(all_tasks_complete_mode="terminatejob"))
    assert ended(up, "last").termination_reason == "AllTasksComplete"
    options = prepared_job("failed", f"echo failed >> {log}")
    options.task_failure_mode = "performexitoptionsjobaction"
    up.client.create_job(options)
    up.client.create_task("failed", task("t", "exit 1"))
    assert ended(up, "failed").termination_reason == "TaskFailed"
    assert lines(log) == ["deleted", "expired", "managed", "last", "failed"]
