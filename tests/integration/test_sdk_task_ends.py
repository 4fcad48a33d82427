"""What the ends of tasks do, through the unmodified SDK: dependencies, exit conditions, terminations, statistics."""

from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from azure.batch import models

from tests.integration.batch_endpoint import POOL, Sdk, completed, eventually, job, refusal, task

pytest_plugins = ["tests.integration.batch_fixtures"]

ACTIVE = models.BatchTaskState.ACTIVE
RUNNING = models.BatchTaskState.RUNNING
SATISFY = models.ExitOptions(dependency_action=models.DependencyAction.SATISFY)
BLOCK = models.ExitOptions(dependency_action=models.DependencyAction.BLOCK)


def after(*ids: str, spans: tuple[tuple[int, int], ...] = ()) -> models.BatchTaskDependencies:
    """Return dependencies on ids and on ranges."""
    ranges = [models.BatchTaskIdRange(start=start, end=end) for start, end in spans]
    return models.BatchTaskDependencies(task_ids=list(ids), task_id_ranges=ranges)


def acts(action: models.BatchJobActionKind) -> models.ExitOptions:
    """Return exit options with a job action."""
    return models.ExitOptions(job_action=action)


def on_codes(**options: models.ExitOptions) -> models.ExitConditions:
    """Return exit conditions; `c3` is the exit code 3, other names are those of the classes of ends."""
    codes = [
        models.ExitCodeMapping(code=int(name[1:]), exit_options=item)
        for name, item in options.items()
        if name[0] == "c"
    ]
    others: dict[str, Any] = {name: item for name, item in options.items() if name[0] != "c"}
    return models.ExitConditions(exit_codes=codes or None, **others)


def state_of(client: Sdk, job_id: str, task_id: str) -> object:
    """Return the state of a task."""
    return client.get_task(job_id, task_id).state


def test_dependents_start_in_their_turn_and_blocked_ones_never(client: Sdk, job_id: str) -> None:
    """By id and range, after successes and failures that satisfy; what is blocked stays active, the job too."""
    client.create_job(job(job_id, uses_task_dependencies=True))
    client.create_tasks(
        job_id,
        [
            task("last", depends_on=after("B", spans=((1, 2),))),
            task("b", "exit 4", exit_conditions=on_codes(c4=SATISFY), depends_on=after("02")),
            task("1"),
            task("02", depends_on=after("1")),
            task("blocks", exit_conditions=on_codes(c0=BLOCK)),
            task("blocked", depends_on=after("blocks", "1")),
        ],
    )
    last = completed(client, job_id, "last")
    assert last.depends_on.task_id_ranges[0].end == 2
    starts = [client.get_task(job_id, name).execution_info.start_time for name in ("1", "02", "b", "last")]
    assert starts == sorted(starts)
    completed(client, job_id, "blocks")
    assert state_of(client, job_id, "blocked") == ACTIVE
    client.update_job(job_id, models.BatchJobUpdateOptions(all_tasks_complete_mode="terminatejob"))
    assert client.get_job(job_id).state == models.BatchJobState.ACTIVE
    client.delete_task(job_id, "blocked")
    ended = eventually(lambda: client.get_job(job_id), lambda found: found.state == models.BatchJobState.COMPLETED)
    assert ended.execution_info.termination_reason == "AllTasksComplete"


def test_a_program_that_is_not_there_is_a_pre_processing_error(client: Sdk, job_id: str) -> None:
    """Its options apply, not the default ones, which cover every other failure."""
    client.create_job(job(job_id, uses_task_dependencies=True))
    conditions = on_codes(pre_processing_error=SATISFY, default=BLOCK)
    client.create_task(
        job_id, models.BatchTaskCreateOptions(id="a", command_line="/no/such", exit_conditions=conditions)
    )
    client.create_task(job_id, task("b", "exit 1", exit_conditions=conditions))
    client.create_task(job_id, task("after-a", depends_on=after("a")))
    client.create_task(job_id, task("after-b", depends_on=after("b")))
    info = completed(client, job_id, "a").execution_info
    assert (info.exit_code, info.failure_info.code) == (None, "CommandProgramNotFound")
    completed(client, job_id, "b")
    completed(client, job_id, "after-a")
    assert state_of(client, job_id, "after-b") == ACTIVE


@pytest.mark.parametrize("action", ["none", "disable", "terminate"])
def test_the_end_of_a_task_does_to_its_job_what_its_exit_options_say(client: Sdk, job_id: str, action: str) -> None:
    """Nothing, no more starts (what runs is requeued), or the end with TaskFailed (what runs is ended)."""
    client.create_job(job(job_id, task_failure_mode="performexitoptionsjobaction"))
    client.create_task(job_id, task("slow", "sleep 600"))
    eventually(lambda: state_of(client, job_id, "slow"), lambda state: state == RUNNING)
    span = models.ExitCodeRangeMapping(start=2, end=5, exit_options=acts(models.BatchJobActionKind(action)))
    client.create_task(job_id, task("bad", "exit 3", exit_conditions=models.ExitConditions(exit_code_ranges=[span])))
    completed(client, job_id, "bad")
    expected = {"none": "active", "disable": "disabled", "terminate": "completed"}[action]
    found = eventually(lambda: client.get_job(job_id), lambda item: item.state == expected)
    slow = client.get_task(job_id, "slow")
    if action == "none":
        assert slow.state == RUNNING
    elif action == "disable":
        assert (slow.state, slow.execution_info.requeue_count) == (ACTIVE, 1)
    else:
        assert found.execution_info.termination_reason == "TaskFailed"
        details = {detail.name: detail.value for detail in slow.execution_info.failure_info.details}
        assert (slow.state, details["AdditionalErrorCode"]) == (models.BatchTaskState.COMPLETED, "JobTerminated")


def test_a_failure_without_exit_conditions_ends_a_job_that_acts_on_failures(client: Sdk, job_id: str) -> None:
    """A success does not."""
    client.create_job(job(job_id, task_failure_mode="performexitoptionsjobaction"))
    client.create_task(job_id, task("good"))
    completed(client, job_id, "good")
    assert client.get_job(job_id).state == models.BatchJobState.ACTIVE
    client.create_task(job_id, task("bad", "exit 1"))
    eventually(lambda: client.get_job(job_id).state, lambda state: state == models.BatchJobState.COMPLETED)


def test_what_a_job_does_not_take_is_refused(client: Sdk, job_id: str) -> None:
    """Dependencies, dependency actions and job actions, each by Batch's code and the property's path."""
    client.create_job(job(job_id))
    wrong = refusal(lambda: client.create_task(job_id, task("a", depends_on=after("b")))).error
    assert wrong.code == "TaskDependenciesNotSpecifiedOnJob"
    for options, name in ((SATISFY, "dependencyAction"), (acts(models.BatchJobActionKind.NONE), "jobAction")):
        wrong_task = task("a", exit_conditions=models.ExitConditions(default=options))
        wrong = refusal(partial(client.create_task, job_id, wrong_task)).model
        named = {item.key: item.value for item in wrong.error_values}
        assert (wrong.code, named["PropertyName"]) == ("InvalidPropertyValue", f"exitConditions.default.{name}")
    backwards = after(spans=((2, 1),))
    wrong = refusal(lambda: client.create_task(job_id, task("a", depends_on=backwards))).error
    assert wrong.code == "InvalidPropertyValue"


def test_terminating_a_task_that_never_ran(client: Sdk, job_id: str) -> None:
    """One that waits in the queue has no start, node or exit code; reactivated, it runs."""
    client.create_job(job(job_id))
    client.begin_disable_job(job_id, models.BatchJobDisableOptions(disable_tasks="wait"), polling_interval=0).wait(30)
    client.create_task(job_id, task("a"))
    client.terminate_task(job_id, "a")
    ended = client.get_task(job_id, "a")
    info = ended.execution_info
    assert (ended.state, ended.node_info) == (models.BatchTaskState.COMPLETED, None)
    assert (info.start_time, info.exit_code, info.result) == (None, None, models.BatchTaskExecutionResult.FAILURE)
    assert (info.failure_info.category, info.failure_info.code) == ("usererror", "TaskEnded")
    assert info.end_time is not None
    client.reactivate_task(job_id, "a")
    client.begin_enable_job(job_id, polling_interval=0).wait(30)
    again = completed(client, job_id, "a").execution_info
    assert (again.exit_code, again.failure_info, again.retry_count) == (0, None, 0)


def test_terminating_a_task_that_waits_for_its_nodes_preparation(client: Sdk, job_id: str) -> None:
    """It is complete at once, without a start; the preparation is not disturbed."""
    go = f"$AZ_BATCH_NODE_SHARED_DIR/{job_id}-go"
    prepare = f'/bin/sh -c "while ! test -e {go}; do sleep 0.05; done"'
    client.create_job(job(job_id, job_preparation_task=models.BatchJobPreparationTask(command_line=prepare)))
    client.create_task(job_id, task("a"))
    eventually(lambda: state_of(client, job_id, "a"), lambda state: state == models.BatchTaskState.PREPARING)
    client.terminate_task(job_id, "a")
    ended = client.get_task(job_id, "a")
    assert ended.previous_state == models.BatchTaskState.PREPARING
    assert (ended.execution_info.start_time, ended.execution_info.exit_code) == (None, None)
    assert ended.execution_info.failure_info.code == "TaskEnded"
    client.create_job(job(f"{job_id}-go"))
    client.create_task(f"{job_id}-go", task("go", f"touch {go}"))
    client.create_task(job_id, task("b"))
    assert completed(client, job_id, "b").execution_info.exit_code == 0
    client.begin_delete_job(f"{job_id}-go", polling_interval=0).wait(30)


def test_a_terminated_task_shows_the_exit_code_of_its_process_when_that_is_gone(client: Sdk, job_id: str) -> None:
    """Negative, for the signal; who ended it stays told, and those that wait for it are blocked."""
    client.create_job(job(job_id, uses_task_dependencies=True))
    client.create_task(job_id, task("a", "exec sleep 600"))
    client.create_task(job_id, task("b", depends_on=after("a")))
    eventually(lambda: state_of(client, job_id, "a"), lambda state: state == RUNNING)
    client.terminate_task(job_id, "a")
    ended = eventually(lambda: client.get_task(job_id, "a").execution_info, lambda info: info.exit_code is not None)
    assert ended.exit_code in (-15, -9)
    assert ended.failure_info.code == "TaskEnded"
    assert state_of(client, job_id, "b") == ACTIVE


def test_statistics_are_shown_when_they_are_asked_for(client: Sdk, job_id: str) -> None:
    """Of a task over all its tries, of a job over all its tasks; nothing of them without `$expand=stats`."""
    client.create_job(job(job_id))
    assert client.get_job(job_id, expand=["stats"]).job_statistics is None
    constraints = models.BatchTaskConstraints(max_task_retry_count=1)
    client.create_task(job_id, task("a", "sleep 0.2; exit 1", constraints=constraints))
    client.create_task(job_id, task("b", "i=0; while test $i -lt 30000; do i=$((i+1)); done"))
    failed, other = completed(client, job_id, "a"), completed(client, job_id, "b")
    assert failed.task_statistics is None
    (one, two) = client.list_tasks(job_id, expand=["stats"], select=["id", "stats"])
    assert (one.id, two.id, one.state) == ("a", "b", None)
    stats = client.get_task(job_id, "a", expand=["stats"]).task_statistics
    assert stats.wall_clock_time == one.task_statistics.wall_clock_time
    assert timedelta(seconds=0.4) <= stats.wall_clock_time < timedelta(seconds=20), "both tries count"
    assert stats.url.endswith(f"/jobs/{job_id}/tasks/a")
    assert stats.start_time == failed.creation_time
    assert stats.last_update_time >= failed.execution_info.end_time - timedelta(seconds=5)
    assert timedelta(0) <= stats.wait_time < timedelta(seconds=20)
    assert stats["nodeagent"]["peakMemoryBytes"] > 2**18
    assert two.task_statistics.user_cpu_time > timedelta(0)
    assert other.execution_info.exit_code == 0

    (listed,) = client.list_jobs(filter=f"id eq '{job_id}'", expand=["stats"])
    whole = client.get_job(job_id, expand=["stats"]).job_statistics
    assert listed.job_statistics.wall_clock_time == whole.wall_clock_time
    both = stats.wall_clock_time + two.task_statistics.wall_clock_time
    assert abs(whole.wall_clock_time - both) < timedelta(milliseconds=1)
    assert (whole.succeeded_tasks_count, whole.failed_tasks_count, whole.task_retries_count) == (1, 1, 1)
    assert whole.url.endswith(f"/jobs/{job_id}")
    assert client.get_job(job_id).job_statistics is None


def test_a_job_manager_is_a_task_whose_end_is_its_jobs(client: Sdk, job_id: str) -> None:
    """Listed under its id, in a job on the pool, and what is left when it ends stays active."""
    manager = models.BatchJobManagerTask(id="manager", command_line="/bin/true")
    client.create_job(job(job_id, job_manager_task=manager))
    ended = eventually(lambda: client.get_job(job_id), lambda found: found.state == models.BatchJobState.COMPLETED)
    assert ended.execution_info.termination_reason == "JMComplete"
    assert ended.execution_info.pool_id == POOL
    assert completed(client, job_id, "manager").execution_info.exit_code == 0
