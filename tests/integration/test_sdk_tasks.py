"""The unmodified azure-batch SDK with tasks: adding, retries, verbs, files, pools and nodes."""

from datetime import timedelta
from functools import partial

import pytest
from azure.batch import models
from azure.batch.aio import BatchClient as AsyncBatchClient
from azure.core import MatchConditions
from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError

from tests.integration.batch_endpoint import POOL, BatchEndpoint, Sdk, completed, eventually, job, refusal, task

pytest_plugins = ["tests.integration.batch_fixtures"]


def many_files(count: int) -> list[models.ResourceFile]:
    """Return resource files that make a large request, as the SDK's own tests do."""
    return [
        models.ResourceFile(
            http_url=f"https://storage.example/{'container/' * 8}file-{number}", file_path=f"file-{number}"
        )
        for number in range(count)
    ]


def test_a_failing_task_is_retried_and_tells_why_it_failed(client: Sdk, job_id: str) -> None:
    """Retries are counted, the exit code is shown at the end, `details` is a list."""
    client.create_job(job(job_id))
    constraints = models.BatchTaskConstraints(max_task_retry_count=2, retention_time=timedelta(hours=1))
    client.create_task(job_id, task("a", "echo broken >&2; exit 7", constraints=constraints))
    failed = completed(client, job_id, "a")
    info = failed.execution_info
    assert (info.exit_code, info.retry_count, info.requeue_count) == (7, 2, 0)
    assert info.last_retry_time is not None
    assert info.result == models.BatchTaskExecutionResult.FAILURE
    assert info.failure_info.category == models.BatchErrorSourceCategory.USER_ERROR
    assert info.failure_info.code == "FailureExitCode"
    assert {detail.name: detail.value for detail in info.failure_info.details}["ExitCode"] == "7"
    assert failed.constraints.retention_time == timedelta(hours=1)
    assert b"".join(client.download_task_file(job_id, "a", "stderr.txt")) == b"broken\n"
    (found,) = client.list_tasks(job_id, filter="executionInfo/exitCode eq 7 and executionInfo/result eq 'failure'")
    assert found.id == "a"


def test_a_retry_may_succeed(client: Sdk, job_id: str) -> None:
    """The job's retry count is inherited, and a task that succeeds in the end shows no failure."""
    client.create_job(job(job_id, constraints=models.BatchJobConstraints(max_task_retry_count=1)))
    marker = f"$AZ_BATCH_NODE_SHARED_DIR/{job_id}"
    client.create_task(job_id, task("a", f"test -e {marker} || {{ touch {marker}; exit 1; }}"))
    info = completed(client, job_id, "a").execution_info
    assert (info.exit_code, info.retry_count, info.failure_info) == (0, 1, None)
    assert client.get_task(job_id, "a").constraints.max_task_retry_count == 1


def test_a_task_may_prefer_a_node_and_shows_it(client: Sdk, job_id: str, batch_endpoint: BatchEndpoint) -> None:
    """`affinityInfo` comes back as it was sent, and takes the node's own `affinityId`; a wrong one is no bar."""
    client.create_job(job(job_id))
    wanted = client.get_node(POOL, batch_endpoint.node_id).affinity_id
    for task_id, affinity_id in (("there", wanted), ("nowhere", "TVM:nobody")):
        client.create_task(job_id, task(task_id, affinity_info=models.BatchAffinityInfo(affinity_id=affinity_id)))
        ended = completed(client, job_id, task_id)
        assert ended.affinity_info.affinity_id == affinity_id
        assert ended.node_info.affinity_id == wanted
        assert ended.execution_info.result == models.BatchTaskExecutionResult.SUCCESS


def test_adding_the_same_tasks_again_counts_as_success(client: Sdk, job_id: str) -> None:
    """After a lost answer clients repeat themselves: TaskExists is fine for the SDK, and nothing is doubled."""
    client.create_job(job(job_id))
    tasks = [task(f"t{number}") for number in range(5)]
    client.create_tasks(job_id, tasks)
    client.create_tasks(job_id, [*tasks, task("T3")])
    assert len(list(client.list_tasks(job_id))) == 5


def test_a_wrong_task_of_a_collection_is_told_apart(client: Sdk, job_id: str) -> None:
    """The good ones are added, the bad one is named with its fault."""
    client.create_job(job(job_id))
    with pytest.raises(models.CreateTasksError) as caught:
        client.create_tasks(job_id, [task("good"), task("not good"), task("also-good")])
    (failure,) = caught.value.failure_tasks
    assert failure.task_id == "not good"
    assert failure.error.code == "InvalidPropertyValue"
    assert [found.id for found in client.list_tasks(job_id)] == ["also-good", "good"]


def test_a_request_that_is_too_large_is_split_or_refused(client: Sdk, job_id: str) -> None:
    """One task of more than 1 MiB can never be added; many smaller ones get through in halves."""
    client.create_job(job(job_id))
    with pytest.raises(models.CreateTasksError) as caught:
        client.create_tasks(job_id, [task("big", resource_files=many_files(10_000))])
    assert "RequestBodyTooLarge" in str(caught.value)
    settings = [models.EnvironmentSetting(name=f"NAME{number}", value="x" * 100) for number in range(100)]
    added = client.create_tasks(job_id, [task(f"t{number}", environment_settings=settings) for number in range(150)])
    assert len({result.task_id for result in added.result_values}) == 150
    assert len(list(client.list_tasks(job_id, select=["id"]))) == 150


def test_tasks_for_a_job_that_is_not_there_are_refused(client: Sdk) -> None:
    """The whole request is refused, not each item."""
    refused = refusal(lambda: client.create_task_collection("no-job", models.BatchTaskGroup(task_values=[task("a")])))
    assert (type(refused), refused.error.code) == (ResourceNotFoundError, "JobNotFound")
    assert refusal(lambda: list(client.list_tasks("no-job"))).error.code == "JobNotFound"


def test_terminate_reactivate_update_and_delete(client: Sdk, job_id: str) -> None:
    """The order of the SDK's own test: the answer to a verb is visible in the next read."""
    client.create_job(job(job_id))
    client.create_task(job_id, task("a", "sleep 600"))
    eventually(lambda: client.get_task(job_id, "a"), lambda found: found.state == models.BatchTaskState.RUNNING)
    client.terminate_task(job_id, "a")
    ended = client.get_task(job_id, "a")
    assert ended.state == models.BatchTaskState.COMPLETED
    assert ended.previous_state == models.BatchTaskState.RUNNING
    assert ended.execution_info.failure_info.code == "TaskEnded"
    assert ended.execution_info.end_time is not None
    assert refusal(lambda: client.terminate_task(job_id, "a")).error.code == "TaskCompleted"
    constraints = models.BatchTask(constraints=models.BatchTaskConstraints(max_task_retry_count=5))
    assert refusal(lambda: client.replace_task(job_id, "a", constraints)).error.code == "TaskCompleted"

    client.begin_disable_job(job_id, models.BatchJobDisableOptions(disable_tasks="wait"), polling_interval=0).wait(30)
    client.reactivate_task(job_id, "a")
    again = client.get_task(job_id, "a")
    assert again.state == models.BatchTaskState.ACTIVE
    assert (again.execution_info.exit_code, again.execution_info.end_time) == (None, None)
    assert refusal(lambda: client.reactivate_task(job_id, "a")).error.code == "TaskNotCompleted"
    client.replace_task(job_id, "a", constraints, etag=again.etag, match_condition=MatchConditions.IfNotModified)
    updated = client.get_task(job_id, "a")
    assert updated.constraints.max_task_retry_count == 5
    assert updated.etag != again.etag
    assert list(client.list_subtasks(job_id, "a")) == []
    client.delete_task(job_id, "a")
    assert refusal(lambda: client.get_task(job_id, "a")).error.code == "TaskNotFound"
    counts = client.get_job_task_counts(job_id).task_counts
    assert (counts.active, counts.running, counts.completed) == (0, 0, 0)


def test_a_task_that_succeeded_cannot_be_reactivated(client: Sdk, job_id: str) -> None:
    """Its ETag has not moved with its state either."""
    client.create_job(job(job_id))
    client.create_task(job_id, task("a"))
    etag = client.get_task(job_id, "a").etag
    assert completed(client, job_id, "a").etag == etag
    refused = refusal(lambda: client.reactivate_task(job_id, "a"))
    assert (type(refused), refused.error.code) == (ResourceExistsError, "TaskSucceeded")


def test_files_of_tasks_and_nodes(client: Sdk, job_id: str, batch_endpoint: BatchEndpoint) -> None:
    """List, properties, whole, range, delete; by task and by node."""
    client.create_job(job(job_id))
    client.create_task(job_id, task("a", "printf 0123456789 > 'a b.txt'; mkdir deep; echo x > deep/file"))
    completed(client, job_id, "a")
    top = {file.name: file for file in client.list_task_files(job_id, "a")}
    assert {"stdout.txt", "stderr.txt", "wd"} <= set(top)
    assert top["wd"].is_directory
    assert top["stdout.txt"].properties.content_length == 0
    names = [file.name for file in client.list_task_files(job_id, "a", recursive=True, max_results=2)]
    assert {"wd/a b.txt", "wd/deep", "wd/deep/file"} <= set(names)
    assert len(names) == len(set(names))
    below = client.list_task_files(job_id, "a", recursive=True, filter="startswith(name,'wd/deep')")
    assert [file.name for file in below] == ["wd/deep", "wd/deep/file"]

    properties = client.get_task_file_properties(job_id, "a", "wd/a b.txt")
    assert (properties.content_length, properties.is_directory) == (10, False)
    assert properties.file_mode.startswith("0o100")
    assert client.get_task_file_properties(job_id, "a", "wd").is_directory
    for byte_range, content in (("bytes=2-4", b"234"), ("bytes=7-", b"789"), ("bytes=8-100", b"89")):
        assert b"".join(client.download_task_file(job_id, "a", "wd/a b.txt", ocp_range=byte_range)) == content
    # the SDK reads no body of a refused stream, so there is a status, but no code
    beyond = refusal(lambda: client.download_task_file(job_id, "a", "wd/a b.txt", ocp_range="bytes=10-"))
    assert beyond.status_code == 416

    root = client.get_task(job_id, "a").node_info.task_root_directory
    whole = b"".join(client.download_node_file(POOL, batch_endpoint.node_id, f"{root}/wd/a b.txt"))
    assert whole == b"0123456789"
    assert client.get_node_file_properties(POOL, batch_endpoint.node_id, f"/{root}/stdout.txt").content_length == 0
    assert {file.name for file in client.list_node_files(POOL, batch_endpoint.node_id)} >= {
        "shared",
        "startup",
        "workitems",
    }
    client.delete_task_file(job_id, "a", "wd/a b.txt")
    assert type(refusal(lambda: client.download_task_file(job_id, "a", "wd/a b.txt"))) is ResourceNotFoundError
    for path in ("../../../../etc/passwd", "wd/../../stdout.txt", "wd//deep"):
        refused = refusal(partial(client.download_task_file, job_id, "a", path))
        assert type(refused) is ResourceNotFoundError


def test_a_task_that_has_not_started_has_no_files(client: Sdk, job_id: str) -> None:
    """409 OperationInvalidForCurrentState is what clients take for "not yet"."""
    client.create_job(job(job_id))
    client.begin_disable_job(job_id, models.BatchJobDisableOptions(disable_tasks="wait"), polling_interval=0).wait(30)
    client.create_task(job_id, task("a"))
    refused = refusal(lambda: list(client.list_task_files(job_id, "a")))
    assert (refused.status_code, refused.error.code) == (409, "OperationInvalidForCurrentState")


def test_pools_and_nodes(client: Sdk, job_id: str, batch_endpoint: BatchEndpoint) -> None:
    """A pool of no nodes is steady at once; the node of the local pool tells what it did."""
    name = f"pool-{job_id}"
    client.create_pool(
        models.BatchPoolCreateOptions(
            id=name,
            vm_size="STANDARD_D2_V2",
            virtual_machine_configuration=models.VirtualMachineConfiguration(
                image_reference=models.BatchVmImageReference(publisher="a", offer="b", sku="c"),
                node_agent_sku_id="batch.node.debian 12",
            ),
            metadata=[models.BatchMetadataItem(name="a", value="1")],
        )
    )
    pool = client.get_pool(name)
    assert pool.state == models.BatchPoolState.ACTIVE
    assert pool.allocation_state == models.AllocationState.STEADY
    assert pool.vm_size == "standard_d2_v2"
    assert pool.virtual_machine_configuration.image_reference.version == "latest"
    assert client.pool_exists(name)
    assert refusal(lambda: client.pool_exists("there-is-none")).status_code == 404
    assert name in [found.id for found in client.list_pools(max_results=1)]
    (counts,) = client.list_pool_node_counts(filter=f"poolId eq '{name}'")
    assert (counts.dedicated.total, counts.low_priority.total) == (0, 0)
    assert list(client.list_nodes(name)) == []

    client.create_job(job(job_id))
    client.create_task(job_id, task("a"))
    completed(client, job_id, "a")
    node = eventually(
        lambda: client.get_node(POOL, batch_endpoint.node_id), lambda found: found.state == models.BatchNodeState.IDLE
    )
    assert node.affinity_id == f"TVM:{batch_endpoint.node_id}"
    assert node.total_tasks_run >= 1
    assert node.is_dedicated
    assert node.scheduling_state == models.SchedulingState.ENABLED
    assert (node.recent_tasks[0].job_id, node.recent_tasks[0].task_id) == (job_id, "a")
    assert [found.id for found in client.list_nodes(POOL, filter="state eq 'idle'")] == [batch_endpoint.node_id]
    assert refusal(lambda: client.get_node(POOL, "other")).error.code == "NodeNotFound"
    (counts,) = client.list_pool_node_counts(filter=f"poolId eq '{POOL}'")
    assert (counts.dedicated.idle, counts.dedicated.total) == (1, 1)

    poller = client.begin_delete_pool(name, polling_interval=0)
    poller.wait(30)
    assert poller.status() == "Succeeded"
    assert refusal(lambda: client.get_pool(name)).error.code == "PoolNotFound"


async def test_the_asynchronous_client_works_as_well(batch_endpoint: BatchEndpoint, client: Sdk, job_id: str) -> None:
    """Same calls over aiohttp: create, list in pages, read a file."""
    client.create_job(job(job_id))
    async with AsyncBatchClient(batch_endpoint.url, batch_endpoint.credential()) as asynchronous:
        found: Sdk = asynchronous
        await found.create_tasks(job_id, [task(f"t{number}", "echo hello") for number in range(5)])
        completed(client, job_id, "t4")
        assert [item.id async for item in found.list_tasks(job_id, max_results=2)] == ["t0", "t1", "t2", "t3", "t4"]
        stream = await found.download_task_file(job_id, "t4", "stdout.txt")
        assert b"".join([chunk async for chunk in stream]) == b"hello\n"
