"""Job preparation with the SDK against `nodeagent up`: real processes, real reboots (seed 001).

What the service decides in each case is in tests/unit/test_service_preparation.py; here is what comes of it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.batch import models

from tests.integration.batch_endpoint import Property, completed, eventually, job, shell, task
from tests.integration.node_commands import CommandedNode, commanded_node


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandedNode]:
    """Return a local stack; tests keep apart by the ids of their jobs."""
    with commanded_node(tmp_path_factory.mktemp("state") / "up") as found:
        yield found


def preparation(script: str, **more: Property) -> models.BatchJobPreparationTask:
    """Return a job preparation task that runs a script."""
    return models.BatchJobPreparationTask(command_line=shell(script), **more)


def lines(path: Path) -> list[str]:
    """Return the lines that tasks have written into a file so far."""
    return path.read_text().split() if path.exists() else []


def test_tasks_do_not_wait_if_they_need_not(up: CommandedNode, tmp_path: Path) -> None:
    """With waitForSuccess false a task begins and ends while it runs; another one comes although it has failed."""
    go = tmp_path / "go"
    script = f"until [ -e {go} ]; do sleep 0.05; done; exit 4"
    up.client.create_job(job("beside", job_preparation_task=preparation(script, wait_for_success=False)))
    up.client.create_task("beside", task("early", "echo $AZ_BATCH_JOB_PREP_WORKING_DIR"))
    assert completed(up.client, "beside", "early").execution_info.exit_code == 0
    assert up.preparation("beside").state.value == "running"
    told = b"".join(up.client.download_task_file("beside", "early", "stdout.txt")).decode()
    assert told.strip().endswith("workitems/beside/job-1/jobpreparation/wd")
    go.touch()
    eventually(lambda: up.preparation("beside").state.value, lambda state: state == "completed")
    assert up.preparation("beside").exit_code == 4
    up.client.create_task("beside", task("late"))
    assert completed(up.client, "beside", "late").execution_info.exit_code == 0


def test_a_preparation_is_retried_while_its_tasks_wait(up: CommandedNode, tmp_path: Path) -> None:
    """Two failures and a success: the third try counts, and the time of the last retry is when that one started."""
    tries, go = tmp_path / "tries", tmp_path / "go"
    script = f"echo x >> {tries}; until [ -e {go} ]; do sleep 0.05; done; [ $(wc -l < {tries}) = 3 ]"
    constraints = models.BatchTaskConstraints(max_task_retry_count=2)
    up.client.create_job(job("retried", job_preparation_task=preparation(script, constraints=constraints)))
    up.client.create_task("retried", task("t"))
    eventually(lambda: lines(tries), bool)
    waiting = up.client.get_task("retried", "t")
    assert (waiting.state.value, waiting.previous_state.value) == ("preparing", "active")
    counted = up.client.get_job_task_counts("retried").task_counts
    assert (counted.active, counted.running) == (0, 1)
    go.touch()
    ended = completed(up.client, "retried", "t")
    assert ended.previous_state.value == "running"
    info = up.preparation("retried")
    assert (info.exit_code, info.result.value, info.retry_count) == (0, "success", 2)
    assert info.last_retry_time == info.start_time
    assert info.start_time <= info.end_time <= ended.execution_info.start_time


def test_a_node_that_cannot_be_prepared_is_lost_to_the_job_until_it_is_reimaged(
    up: CommandedNode, tmp_path: Path
) -> None:
    """A reboot is not enough, though it would work by now; other jobs run there; a reimage brings it back."""
    tries, broken = tmp_path / "tries", tmp_path / "broken"
    broken.touch()
    script = f"echo x >> {tries}; [ ! -e {broken} ]"
    up.client.create_job(job("broken", job_preparation_task=preparation(script)))
    up.client.create_job(job("fine"))
    up.client.create_task("broken", task("t"))
    eventually(lambda: up.preparation("broken"), lambda info: info is not None and info.state.value == "completed")
    waiting = eventually(lambda: up.client.get_task("broken", "t"), lambda found: found.state.value == "active")
    assert waiting.previous_state.value == "preparing"
    broken.unlink()
    up.reboot()
    up.client.create_task("fine", task("t"))
    assert completed(up.client, "fine", "t").execution_info.exit_code == 0
    assert up.client.get_task("broken", "t").state.value == "active"
    assert lines(tries) == ["x"]
    up.reimage()
    ended = completed(up.client, "broken", "t")
    assert (ended.execution_info.exit_code, ended.execution_info.retry_count) == (0, 0)
    assert lines(tries) == ["x", "x"]


def test_what_a_preparation_has_started_is_there_for_every_task(up: CommandedNode, tmp_path: Path) -> None:
    """A local service serves the tasks of the job; a reboot ends it, and the preparation that runs again restarts it.

    A job that does not want that again is not prepared again.
    """
    again, once = tmp_path / "again", tmp_path / "once"
    service = f"echo x >> {again}; sleep 654 & echo $! > $AZ_BATCH_NODE_SHARED_DIR/service"
    alive = "kill -0 $(cat $AZ_BATCH_NODE_SHARED_DIR/service)"
    up.client.create_job(job("again", job_preparation_task=preparation(service)))
    up.client.create_job(
        job(
            "once",
            job_preparation_task=preparation(f"echo x >> {once}", rerun_on_node_reboot_after_success=False),
        )
    )
    for number in range(3):
        if number == 2:
            up.reboot()
        for job_id, script in (("again", alive), ("once", "true")):
            up.client.create_task(job_id, task(f"t{number}", script))
            assert completed(up.client, job_id, f"t{number}").execution_info.exit_code == 0
    assert (lines(again), lines(once)) == (["x", "x"], ["x"])
    first = int(up.file("shared/service"))
    assert Path(f"/proc/{first}").exists()
    up.client.begin_terminate_job(
        "again", models._models.BatchJobTerminateOptions(termination_reason="done"), polling_interval=0
    ).wait(30)
    eventually(lambda: Path(f"/proc/{first}").exists(), lambda exists: not exists)


def test_a_reboot_during_the_preparation(up: CommandedNode, tmp_path: Path) -> None:
    """It runs again, after the start task, as a recovery and no retry, though rerun after success is not wanted."""
    log, go = tmp_path / "log", tmp_path / "go"
    up.give_start_task(f"sleep 0.5; echo start >> {log}")
    script = f"echo prepare >> {log}; until [ -e {go} ]; do sleep 0.05; done"
    wanted = preparation(script, rerun_on_node_reboot_after_success=False)
    up.client.create_job(job("cut", job_preparation_task=wanted))
    up.client.create_task("cut", task("t", f"echo task >> {log}"))
    eventually(lambda: lines(log), bool)
    before = eventually(lambda: up.preparation("cut"), bool)
    up.reboot()
    eventually(lambda: lines(log).count("prepare"), lambda count: count == 2)
    go.touch()
    ended = completed(up.client, "cut", "t")
    assert lines(log) == ["prepare", "start", "prepare", "task"]
    info = up.preparation("cut")
    assert (info.exit_code, info.retry_count, info.last_retry_time) == (0, 0, None)
    assert info.start_time > before.start_time
    assert (ended.execution_info.retry_count, ended.execution_info.exit_code) == (0, 0)
