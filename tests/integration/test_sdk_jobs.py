"""The unmodified azure-batch SDK drives jobs from creation to deletion, preparation and release included."""

from datetime import timedelta

import pytest
from azure.batch import BatchClient, models
from azure.core import MatchConditions
from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError

from tests.integration.batch_endpoint import POOL, BatchEndpoint, Sdk, completed, eventually, job, refusal, shell, task

pytest_plugins = ["tests.integration.batch_fixtures"]

TERMINATE: Sdk = models._models.BatchJobTerminateOptions  # the SDK does not export what its own method wants


def state_of(client: Sdk, job_id: str) -> str:
    """Return the state of a job."""
    return str(client.get_job(job_id).state.value)


def test_a_job_with_preparation_and_release_from_beginning_to_end(client: Sdk, job_id: str) -> None:
    """The story of the first issue: prepare, 250 tasks, read files, see the status, terminate, delete."""
    client.create_job(
        job(
            job_id,
            job_preparation_task=models.BatchJobPreparationTask(
                command_line=shell("echo shared > $AZ_BATCH_NODE_SHARED_DIR/data")
            ),
            job_release_task=models.BatchJobReleaseTask(command_line=shell("rm $AZ_BATCH_NODE_SHARED_DIR/data")),
        )
    )
    created = client.get_job(job_id)
    assert created.state == models.BatchJobState.ACTIVE
    assert created.job_preparation_task.id == "jobpreparation"
    assert created.job_release_task.id == "jobrelease"
    assert list(client.list_job_preparation_and_release_task_status(job_id)) == []

    script = "cat $AZ_BATCH_NODE_SHARED_DIR/data; echo $AZ_BATCH_TASK_ID > out.txt"
    added = client.create_tasks(job_id, [task(f"task{number}", script) for number in range(250)])
    assert {result.status for result in added.result_values} == {models.BatchTaskAddStatus.SUCCESS}
    assert len({result.task_id for result in added.result_values}) == 250

    counts = eventually(lambda: client.get_job_task_counts(job_id).task_counts, lambda found: found.completed == 250)
    assert (counts.succeeded, counts.failed, counts.active, counts.running) == (250, 0, 0, 0)

    pages = [[item.id for item in page] for page in client.list_tasks(job_id, max_results=100).by_page()]
    assert [len(page) for page in pages] == [100, 100, 50]
    ids = [name for page in pages for name in page]
    assert ids == sorted(ids)
    assert len(set(ids)) == 250

    one = client.get_task(job_id, "task7")
    assert one.state == models.BatchTaskState.COMPLETED
    assert one.execution_info.exit_code == 0
    assert one.execution_info.result == models.BatchTaskExecutionResult.SUCCESS
    assert one.execution_info.start_time <= one.execution_info.end_time
    assert one.node_info.task_root_directory == f"workitems/{job_id}/job-1/task7"
    assert b"".join(client.download_task_file(job_id, "task7", "stdout.txt")) == b"shared\n"
    assert b"".join(client.download_task_file(job_id, "task7", "wd/out.txt")) == b"task7\n"

    (status,) = client.list_job_preparation_and_release_task_status(job_id)
    preparation = status.job_preparation_task_execution_info
    assert preparation.state == models.BatchJobPreparationTaskState.COMPLETED
    assert (preparation.exit_code, preparation.retry_count) == (0, 0)
    assert preparation.task_root_directory == f"workitems/{job_id}/job-1/jobpreparation"
    assert preparation.task_root_directory_url.startswith(status.node_url)
    assert status.job_release_task_execution_info is None

    client.begin_terminate_job(job_id, TERMINATE(termination_reason="enough"), polling_interval=0).wait(30)
    ended = client.get_job(job_id)
    assert ended.state == models.BatchJobState.COMPLETED
    assert ended.previous_state == models.BatchJobState.ACTIVE
    assert ended.execution_info.termination_reason == "enough"
    assert ended.execution_info.end_time >= ended.execution_info.start_time
    (status,) = client.list_job_preparation_and_release_task_status(job_id)
    assert status.job_release_task_execution_info.exit_code == 0
    assert status.job_release_task_execution_info.result == models.BatchTaskExecutionResult.SUCCESS

    poller = client.begin_delete_job(job_id, polling_interval=0)
    poller.wait(30)
    assert poller.status() == "Succeeded"
    with pytest.raises(ResourceNotFoundError, match="JobNotFound"):
        client.get_job(job_id)


def test_the_status_list_filters_selects_and_pages(client: Sdk, job_id: str) -> None:
    """Seed 000's list: `$filter` by node and by execution, `$select`, `maxresults`."""
    client.create_job(job(job_id, job_preparation_task=models.BatchJobPreparationTask(command_line=shell("true"))))
    client.create_task(job_id, task("a"))
    completed(client, job_id, "a")
    (found,) = client.list_job_preparation_and_release_task_status(job_id, max_results=1)
    for condition in (
        f"nodeId eq '{found.node_id}'",
        f"poolId eq '{found.pool_id}' and jobPreparationTaskExecutionInfo/state eq 'completed'",
        "jobPreparationTaskExecutionInfo/exitCode eq 0",
        "jobPreparationTaskExecutionInfo /startTime ge DateTime'2015-05-01T10:20:31.0000000Z'",
        "jobReleaseTaskExecutionInfo/exitCode ne 0",
    ):
        assert len(list(client.list_job_preparation_and_release_task_status(job_id, filter=condition))) == 1, condition
    for condition in ("nodeId eq 'other'", "jobReleaseTaskExecutionInfo/state eq 'completed'"):
        assert list(client.list_job_preparation_and_release_task_status(job_id, filter=condition)) == []
    (brief,) = client.list_job_preparation_and_release_task_status(job_id, select=["nodeId", "poolId"])
    assert brief.as_dict() == {"nodeId": found.node_id, "poolId": found.pool_id}


def test_the_status_of_a_job_without_preparation_is_refused(client: Sdk, job_id: str) -> None:
    """Seed 000: 409 JobPreparationTaskNotSpecified."""
    client.create_job(job(job_id))
    refused = refusal(lambda: list(client.list_job_preparation_and_release_task_status(job_id)))
    assert (type(refused), refused.error.code) == (ResourceExistsError, "JobPreparationTaskNotSpecified")


def test_a_preparation_that_fails_keeps_the_tasks_waiting(client: Sdk, job_id: str) -> None:
    """It is retried to its limit; then the node takes no task of the job, which stays active."""
    client.create_job(
        job(
            job_id,
            job_preparation_task=models.BatchJobPreparationTask(
                id="prep",
                command_line=shell("echo no >&2; exit 3"),
                constraints=models.BatchTaskConstraints(max_task_retry_count=1),
            ),
            job_release_task=models.BatchJobReleaseTask(id="release", command_line=shell("true")),
        )
    )
    client.create_task(job_id, task("a"))
    (status,) = eventually(
        lambda: list(
            client.list_job_preparation_and_release_task_status(
                job_id, filter="jobPreparationTaskExecutionInfo/result eq 'failure'"
            )
        ),
        bool,
    )
    preparation = status.job_preparation_task_execution_info
    assert (preparation.exit_code, preparation.retry_count) == (3, 1)
    assert preparation.last_retry_time is not None
    assert preparation.failure_info.code == "FailureExitCode"
    waiting = eventually(
        lambda: client.get_task(job_id, "a"), lambda found: found.state == models.BatchTaskState.ACTIVE
    )
    assert waiting.execution_info.result is None
    assert client.get_job_task_counts(job_id).task_counts.active == 1


@pytest.mark.parametrize(
    ("task_id", "code"),
    [("JobPreparation", "TaskIdSameAsJobPreparationTask"), ("jobrelease", "TaskIdSameAsJobReleaseTask")],
)
def test_the_ids_of_preparation_and_release_are_taken(client: Sdk, job_id: str, task_id: str, code: str) -> None:
    """A task of the same id, in any case, is refused."""
    client.create_job(
        job(
            job_id,
            job_preparation_task=models.BatchJobPreparationTask(command_line=shell("true")),
            job_release_task=models.BatchJobReleaseTask(command_line=shell("true")),
        )
    )
    refused = refusal(lambda: client.create_task(job_id, task(task_id)))
    assert (type(refused), refused.error.code) == (ResourceExistsError, code)


def test_errors_reach_the_caller_as_from_azure(client: Sdk, job_id: str) -> None:
    """The SDK's own test of its exception policy: type, code and text."""
    with pytest.raises(ResourceNotFoundError) as missing:
        client.get_pool("there-is-none")
    assert "(PoolNotFound) The specified pool does not exist." in str(missing.value)
    client.create_job(job(job_id))
    with pytest.raises(ResourceExistsError) as twice:
        client.create_job(job(job_id.upper()))
    assert "(JobExists) The specified job already exists." in str(twice.value)
    wrong = refusal(lambda: client.create_job(job("not an id")))
    assert (wrong.status_code, wrong.error.code) == (400, "InvalidPropertyValue")
    details = {detail.code: detail.message for detail in wrong.error.details}
    assert (details["PropertyName"], details["PropertyValue"]) == ("id", "not an id")


def test_put_resets_what_it_leaves_out_and_patch_does_not(client: Sdk, job_id: str) -> None:
    """PATCH replaces the properties it names, whole; PUT also those it does not name."""
    client.create_job(
        job(job_id, priority=5, metadata=[models.BatchMetadataItem(name="a", value="1")], max_parallel_tasks=2)
    )
    client.update_job(
        job_id,
        models.BatchJobUpdateOptions(
            priority=900,
            constraints=models.BatchJobConstraints(max_task_retry_count=3, max_wall_clock_time=timedelta(hours=1)),
        ),
    )
    patched = client.get_job(job_id)
    assert (patched.priority, patched.max_parallel_tasks, patched.constraints.max_task_retry_count) == (900, 2, 3)
    assert patched.metadata[0].value == "1"

    client.replace_job(job_id, models.BatchJob(pool_info=patched.pool_info, priority=500))
    replaced = client.get_job(job_id)
    assert (replaced.priority, replaced.max_parallel_tasks, replaced.constraints.max_task_retry_count) == (500, -1, 0)
    assert replaced.metadata is None
    assert replaced.etag != patched.etag
    assert replaced.last_modified > patched.last_modified

    client.update_job(
        job_id, models.BatchJobUpdateOptions(all_tasks_complete_mode="terminatejob", pool_info=replaced.pool_info)
    )
    assert eventually(lambda: client.get_job(job_id), lambda found: found.state == models.BatchJobState.COMPLETED)
    assert client.get_job(job_id).execution_info.termination_reason == "AllTasksComplete"


def test_conditional_requests(client: Sdk, job_id: str) -> None:
    """An update with an old ETag is refused, one with the present ETag applied; a read of nothing new gets 304."""
    client.create_job(job(job_id))
    old = client.get_job(job_id)
    priority = models.BatchJobUpdateOptions(priority=1)
    client.update_job(job_id, priority, etag=old.etag, match_condition=MatchConditions.IfNotModified)
    with pytest.raises(ResourceModifiedError):
        client.update_job(job_id, priority, etag=old.etag, match_condition=MatchConditions.IfNotModified)
    new = client.get_job(job_id)
    assert new.etag != old.etag
    unchanged = refusal(lambda: client.get_job(job_id, etag=new.etag, match_condition=MatchConditions.IfModified))
    assert unchanged.status_code == 304
    assert client.get_job(job_id, etag=old.etag, match_condition=MatchConditions.IfModified).priority == 1
    assert refusal(lambda: client.get_job(job_id, if_modified_since=new.last_modified)).status_code == 304


def test_disable_requeues_and_enable_goes_on(client: Sdk, job_id: str, batch_endpoint: BatchEndpoint) -> None:
    """A running task goes back into the queue, and runs again when the job is enabled."""
    client.create_job(job(job_id))
    script = "test -e $AZ_BATCH_NODE_SHARED_DIR/$AZ_BATCH_JOB_ID && exit 0;"
    client.create_task(job_id, task("a", f"{script} touch $AZ_BATCH_NODE_SHARED_DIR/$AZ_BATCH_JOB_ID; sleep 600"))
    eventually(lambda: client.get_task(job_id, "a"), lambda found: found.state == models.BatchTaskState.RUNNING)
    eventually(
        lambda: [file.name for file in client.list_node_files(POOL, batch_endpoint.node_id, recursive=True)],
        lambda names: f"shared/{job_id}" in names,
    )
    client.begin_disable_job(job_id, models.BatchJobDisableOptions(disable_tasks="requeue"), polling_interval=0).wait(
        30
    )
    assert state_of(client, job_id) == "disabled"
    waiting = client.get_task(job_id, "a")
    assert waiting.state == models.BatchTaskState.ACTIVE
    assert waiting.execution_info.requeue_count == 1
    client.begin_enable_job(job_id, polling_interval=0).wait(30)
    assert completed(client, job_id, "a").execution_info.exit_code == 0
    assert state_of(client, job_id) == "active"


def test_disable_terminates_or_waits(client: Sdk, job_id: str) -> None:
    """`terminate` ends running tasks as failed, `wait` lets them end."""
    client.create_job(job(job_id))
    client.create_task(job_id, task("killed", "sleep 600"))
    eventually(lambda: client.get_task(job_id, "killed"), lambda found: found.state == models.BatchTaskState.RUNNING)
    client.begin_disable_job(job_id, models.BatchJobDisableOptions(disable_tasks="terminate"), polling_interval=0).wait(
        30
    )
    killed = client.get_task(job_id, "killed")
    assert killed.state == models.BatchTaskState.COMPLETED
    assert killed.execution_info.failure_info.code == "TaskEnded"
    client.begin_enable_job(job_id, polling_interval=0).wait(30)
    client.create_task(job_id, task("awaited", "sleep 0.3"))
    eventually(lambda: client.get_task(job_id, "awaited"), lambda found: found.state != models.BatchTaskState.ACTIVE)
    client.begin_disable_job(job_id, models.BatchJobDisableOptions(disable_tasks="wait"), polling_interval=0).wait(30)
    assert client.get_task(job_id, "awaited").execution_info.exit_code == 0


def test_a_terminated_job_takes_no_more_tasks_and_no_second_end(client: Sdk, job_id: str) -> None:
    """Running tasks are ended, waiting ones stay; afterwards everything but deletion is refused."""
    client.create_job(job(job_id))
    client.create_tasks(job_id, [task(f"t{number}", "sleep 600") for number in range(6)])
    eventually(lambda: client.get_job_task_counts(job_id).task_counts, lambda found: found.running == 4)
    client.begin_terminate_job(job_id, TERMINATE(termination_reason="stop"), polling_interval=0).wait(30)
    ended = client.get_job(job_id)
    assert ended.execution_info.termination_reason == "stop"
    counts = client.get_job_task_counts(job_id).task_counts
    assert (counts.failed, counts.active) == (4, 2)
    for call in (
        lambda: client.create_task(job_id, task("late")),
        lambda: client.begin_terminate_job(job_id, TERMINATE(termination_reason="x"), polling_interval=0),
        lambda: client.update_job(job_id, models.BatchJobUpdateOptions(priority=1)),
        lambda: client.begin_enable_job(job_id, polling_interval=0),
    ):
        assert refusal(call).error.code == "JobCompleted"


def test_jobs_are_listed_filtered_and_selected(client: Sdk, job_id: str) -> None:
    """A prefix finds the jobs, pages follow each other, `$select` leaves the rest out."""
    names = [f"{job_id}-{letter}" for letter in "abc"]
    for name in names:
        client.create_job(job(name))
    prefix = f"startswith(id,'{job_id}-')"
    assert [found.id for found in client.list_jobs(filter=prefix, max_results=2)] == names
    (brief, *_) = client.list_jobs(filter=prefix, select=["id", "state"])
    assert brief.as_dict() == {"id": names[0], "state": "active"}
    assert list(client.list_jobs(filter=f"{prefix} and state eq 'completed'")) == []
    wrong = refusal(lambda: list(client.list_jobs(filter="state is 'active'")))
    assert wrong.error.code == "InvalidQueryParameterValue"
    for name in names:
        client.begin_delete_job(name, polling_interval=0).wait(30)


def test_what_is_not_built_is_refused_by_name(client: Sdk, job_id: str, batch_endpoint: BatchEndpoint) -> None:
    """Neither a property nor an operation is ignored in silence, and no fault makes the SDK retry."""
    auto_pool = models.BatchPoolInfo(
        auto_pool_specification=models.BatchAutoPoolSpecification(pool_lifetime_option="job")
    )
    refused = refusal(lambda: client.create_job(models.BatchJobCreateOptions(id=job_id, pool_info=auto_pool)))
    assert refused.error.code == "UnsupportedProperty"
    assert "autoPoolSpecification" in str([detail.message for detail in refused.error.details])
    operation = refusal(lambda: list(client.list_node_extensions(POOL, batch_endpoint.node_id)))
    assert operation.status_code == 400
    assert "Nodes_ListNodeExtensions is not supported" in str(operation)
    with BatchClient(batch_endpoint.url, batch_endpoint.credential(), api_version="2099-01-01") as newer:
        assert refusal(lambda: newer.get_job(job_id)).error.code == "UnsupportedRequestVersion"
