"""Stories that azure-batch 14.2.0 tells: `py14.py STORY POOL` does one and prints what it saw as one line of JSON.

Runs in the environment that scripts/clients makes; the tests in tests/integration/test_client_py14.py judge. The
endpoint comes as AZURE_BATCH_ENDPOINT, AZURE_BATCH_ACCOUNT and AZURE_BATCH_ACCESS_KEY.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

batch: Any = importlib.import_module("azure.batch")
batch_auth: Any = importlib.import_module("azure.batch.batch_auth")
models: Any = importlib.import_module("azure.batch.models")
custom_errors: Any = importlib.import_module("azure.batch.custom.custom_errors")

SECONDS = 30


def connected(key: str | None = None) -> Any:  # noqa: ANN401 - this client has no types
    """Return a client of the endpoint; `key` instead of the right one."""
    credentials = batch_auth.SharedKeyCredentials(
        os.environ["AZURE_BATCH_ACCOUNT"], key or os.environ["AZURE_BATCH_ACCESS_KEY"]
    )
    client = batch.BatchServiceClient(credentials, batch_url=os.environ["AZURE_BATCH_ENDPOINT"])
    client.config.retry_policy.retries = 0  # a refusal that it repeats is a fault of the service
    return client


def shell(script: str) -> str:
    """Return a command line that runs a script in a shell."""
    return f'/bin/sh -c "{script}"'


def wait(holds: Callable[[], Any]) -> None:
    """Ask until it holds. Raises TimeoutError."""
    ends = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > ends:
            raise TimeoutError
        time.sleep(0.05)


def refused(call: Callable[[], object]) -> list[Any]:
    """Return the status, code and first line of the message of the error that a call raises."""
    try:
        call()
    except models.BatchErrorException as error:
        return [error.response.status_code, error.error.code, error.error.message.value.splitlines()[0]]
    return []


def job_of(job_id: str, pool_id: str, **more: object) -> Any:  # noqa: ANN401 - this client has no types
    """Return a job on a pool."""
    return models.JobAddParameter(id=job_id, pool_info=models.PoolInformation(pool_id=pool_id), **more)


def task_of(task_id: str, script: str = "true", **more: object) -> Any:  # noqa: ANN401 - this client has no types
    """Return a task that runs a script."""
    return models.TaskAddParameter(id=task_id, command_line=shell(script), **more)


def content(stream: Any) -> str:  # noqa: ANN401 - this client has no types
    """Return the text of a file."""
    return b"".join(stream).decode()


def story_job(client: Any, pool_id: str) -> dict[str, Any]:  # noqa: ANN401 - this client has no types
    """A job with preparation and release, from creation to deletion."""
    job_id = "py14-job"
    seen: dict[str, Any] = {}
    pool = client.pool.get(pool_id)
    (node,) = client.compute_node.list(pool_id)
    seen["pool"] = [pool.id, pool.state, pool.allocation_state]
    seen["node"] = [node.state, client.compute_node.get(pool_id, node.id).scheduling_state]
    client.job.add(
        job_of(
            job_id,
            pool_id,
            job_preparation_task=models.JobPreparationTask(
                command_line=shell("echo shared > $AZ_BATCH_NODE_SHARED_DIR/py14")
            ),
            job_release_task=models.JobReleaseTask(command_line=shell("rm $AZ_BATCH_NODE_SHARED_DIR/py14")),
        )
    )
    seen["statuses before"] = list(client.job.list_preparation_and_release_task_status(job_id))
    client.task.add(job_id, task_of("one", "cat $AZ_BATCH_NODE_SHARED_DIR/py14; echo out > out.txt"))
    added = client.task.add_collection(job_id, [task_of(f"many{number:03}") for number in range(150)], threads=2)
    seen["added"] = sorted({str(result.status) for result in added.value}), len(added.value)
    wait(lambda: client.job.get_task_counts(job_id).task_counts.completed == 151)
    counts = client.job.get_task_counts(job_id)
    seen["counts"] = [counts.task_counts.succeeded, counts.task_slot_counts.running]
    options = models.TaskListOptions(filter="startswith(id, 'many')", select="id,state", max_results=60)
    tasks = client.task.list(job_id, options)
    seen["listed"] = len({task.id for task in tasks})
    first = next(client.task.list(job_id, options))
    seen["selected"] = [first.id, first.state, first.command_line]
    task = client.task.get(job_id, "one")
    seen["task"] = [task.state, task.execution_info.exit_code, task.execution_info.result]
    files = client.file.list_from_task(job_id, "one", recursive=True)
    seen["files"] = sorted(file.name for file in files if not file.is_directory)
    seen["stdout"] = content(client.file.get_from_task(job_id, "one", "stdout.txt"))
    seen["wd"] = content(client.file.get_from_task(job_id, "one", "wd/out.txt"))
    part = models.FileGetFromTaskOptions(ocp_range="bytes=2-4")
    seen["range"] = content(client.file.get_from_task(job_id, "one", "stdout.txt", part))
    properties = client.file.get_properties_from_task(job_id, "one", "stdout.txt", raw=True)
    seen["properties"] = [properties.headers["Content-Length"], properties.headers["ocp-batch-file-isdirectory"]]
    path = f"{task.node_info.task_root_directory}/stdout.txt"
    seen["on the node"] = content(client.file.get_from_compute_node(pool_id, node.id, path))
    client.job.terminate(job_id, terminate_reason="enough")
    wait(lambda: client.job.get(job_id).state == models.JobState.completed)
    seen["reason"] = client.job.get(job_id).execution_info.terminate_reason
    (status,) = client.job.list_preparation_and_release_task_status(job_id)
    preparation, release = status.job_preparation_task_execution_info, status.job_release_task_execution_info
    seen["status"] = [preparation.result, preparation.retry_count, release.state, release.exit_code]
    found = client.job.list(models.JobListOptions(filter=f"id eq '{job_id}'", select="id"))
    seen["jobs"] = [job.id for job in found]
    client.job.delete(job_id)
    wait(lambda: refused(lambda: client.job.get(job_id)))
    return seen


def story_refusals(client: Any, pool_id: str) -> dict[str, Any]:  # noqa: ANN401 - this client has no types
    """What the service refuses, as this client shows it."""
    job_id = "py14-refusals"
    client.job.add(job_of(job_id, pool_id))
    client.task.add(job_id, task_of("here"))
    wait(lambda: client.task.get(job_id, "here").state == models.TaskState.completed)
    unmatched = models.JobGetOptions(if_match="0x8000000000000000")
    wrong_filter = models.TaskListOptions(filter="colour eq 'red'")
    seen: dict[str, Any] = {
        "JobExists": refused(lambda: client.job.add(job_of(job_id.upper(), pool_id))),
        "TaskExists": refused(lambda: client.task.add(job_id, task_of("here"))),
        "JobNotFound": refused(lambda: client.job.get("nowhere")),
        "TaskNotFound": refused(lambda: client.task.get(job_id, "nowhere")),
        "PoolNotFound": refused(lambda: client.pool.get("nowhere")),
        "NodeNotFound": refused(lambda: client.compute_node.get(pool_id, "nowhere")),
        "FileNotFound": refused(lambda: client.file.get_from_task(job_id, "here", "nowhere.txt")),
        "TaskSucceeded": refused(lambda: client.task.reactivate(job_id, "here")),
        "TaskCompleted": refused(lambda: client.task.terminate(job_id, "here")),
        "ConditionNotMet": refused(lambda: client.job.get(job_id, unmatched)),
        "InvalidQueryParameterValue": refused(lambda: list(client.task.list(job_id, wrong_filter))),
        "JobPreparationTaskNotSpecified": refused(
            lambda: list(client.job.list_preparation_and_release_task_status(job_id))
        ),
        "InvalidPropertyValue": refused(lambda: client.job.add(job_of("no spaces", pool_id))),
        "AuthenticationFailed": refused(lambda: connected("d3Jvbmc=").job.get(job_id)),
    }
    again = client.task.add_collection(job_id, [task_of("here"), task_of("new")])
    seen["a collection again"] = sorted([result.task_id, str(result.status)] for result in again.value)
    huge = [models.ResourceFile(http_url=f"https://host/{n:04}{'x' * 80}", file_path=f"{n}") for n in range(10000)]
    try:
        client.task.add_collection(job_id, [task_of("huge", resource_files=huge)])
    except custom_errors.CreateTasksErrorException as error:
        seen["too large"] = [one.error.code for one in error.errors]
    client.job.terminate(job_id)
    wait(lambda: client.job.get(job_id).state == models.JobState.completed)
    seen["JobCompleted"] = refused(lambda: client.task.add(job_id, task_of("late")))
    client.job.delete(job_id)
    return seen


def story_changes(client: Any, pool_id: str) -> dict[str, Any]:  # noqa: ANN401 - this client has no types
    """What else is done to jobs, tasks and pools."""
    job_id = "py14-changes"
    seen: dict[str, Any] = {}
    client.job.add(job_of(job_id, pool_id, priority=3, constraints=models.JobConstraints(max_task_retry_count=2)))
    client.job.patch(job_id, models.JobPatchParameter(priority=9))
    job = client.job.get(job_id)
    seen["patched"] = [job.priority, job.constraints.max_task_retry_count]
    pool = models.PoolInformation(pool_id=pool_id)
    current = models.JobUpdateOptions(if_match=job.e_tag)
    client.job.update(job_id, models.JobUpdateParameter(pool_info=pool), current)
    job = client.job.get(job_id)
    seen["updated"] = [job.priority, job.constraints.max_task_retry_count]
    stale = refused(lambda: client.job.update(job_id, models.JobUpdateParameter(pool_info=pool), current))
    seen["updated again"] = stale[:2]
    client.job.disable(job_id, "requeue")
    wait(lambda: client.job.get(job_id).state == models.JobState.disabled)
    client.task.add(job_id, task_of("fails", "exit 3", constraints=models.TaskConstraints(max_task_retry_count=0)))
    seen["while disabled"] = client.task.get(job_id, "fails").state
    client.job.enable(job_id)
    wait(lambda: client.task.get(job_id, "fails").state == models.TaskState.completed)
    task = client.task.get(job_id, "fails")
    seen["failed"] = [task.execution_info.exit_code, task.execution_info.result, task.execution_info.failure_info.code]
    client.job.disable(job_id, "wait")
    client.task.reactivate(job_id, "fails")
    seen["reactivated"] = client.task.get(job_id, "fails").state
    client.task.update(job_id, "fails", models.TaskConstraints(max_wall_clock_time=timedelta(hours=1, seconds=5)))
    seen["limit"] = client.task.get(job_id, "fails").constraints.max_wall_clock_time.total_seconds()
    client.task.terminate(job_id, "fails")
    seen["terminated"] = client.task.get(job_id, "fails").execution_info.failure_info.code
    seen["subtasks"] = client.task.list_subtasks(job_id, "fails").value
    client.task.delete(job_id, "fails")
    seen["tasks left"] = [task.id for task in client.task.list(job_id)]
    client.job.delete(job_id)
    seen["pool"] = pool_of_its_own(client, "py14-pool")
    images = list(client.account.list_supported_images())
    seen["images"] = sorted({image.os_type for image in images} | {image.verification_type for image in images})
    return seen


def story_schedule(client: Any, pool_id: str) -> dict[str, Any]:  # noqa: ANN401 - this client has no types
    """A job schedule that makes one job, whose manager is all its work."""
    schedule_id = "py14-schedule"
    seen: dict[str, Any] = {}
    manager = models.JobManagerTask(id="manager", command_line=shell("echo managed"))
    specification = models.JobSpecification(
        pool_info=models.PoolInformation(pool_id=pool_id), job_manager_task=manager, priority=7
    )
    client.job_schedule.add(
        models.JobScheduleAddParameter(
            id=schedule_id,
            schedule=models.Schedule(recurrence_interval=timedelta(hours=3)),
            job_specification=specification,
        )
    )
    seen["exists"] = [client.job_schedule.exists(schedule_id), client.job_schedule.exists("nowhere")]
    (job,) = client.job.list_from_job_schedule(schedule_id)
    recent = client.job_schedule.get(schedule_id).execution_info.recent_job.id
    seen["job"] = [job.id, job.priority, recent]
    wait(lambda: client.job.get(job.id).state == models.JobState.completed)
    seen["ended"] = client.job.get(job.id).execution_info.terminate_reason
    seen["stdout"] = content(client.file.get_from_task(job.id, "manager", "stdout.txt"))
    client.job_schedule.disable(schedule_id)
    states = [client.job_schedule.get(schedule_id).state]
    client.job_schedule.enable(schedule_id)
    states.append(client.job_schedule.get(schedule_id).state)
    client.job_schedule.terminate(schedule_id)
    wait(lambda: client.job_schedule.get(schedule_id).state == models.JobScheduleState.completed)
    seen["states"] = states
    client.job_schedule.delete(schedule_id)
    wait(lambda: not client.job_schedule.exists(schedule_id))
    seen["deleted"] = refused(lambda: client.job_schedule.get(schedule_id))[:2]
    return seen


def pool_of_its_own(client: Any, pool_id: str) -> list[Any]:  # noqa: ANN401 - this client has no types
    """Make a pool without nodes, change it and remove it; return what is seen on the way."""
    image = models.ImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
    machine = models.VirtualMachineConfiguration(image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04")
    client.pool.add(
        models.PoolAddParameter(
            id=pool_id, vm_size="STANDARD_D2_V2", virtual_machine_configuration=machine, target_dedicated_nodes=0
        )
    )
    seen = [client.pool.exists(pool_id), client.pool.get(pool_id).allocation_state]
    client.pool.patch(pool_id, models.PoolPatchParameter(metadata=[models.MetadataItem(name="a", value="b")]))
    seen.append(client.pool.get(pool_id).metadata[0].value)
    options = models.AccountListPoolNodeCountsOptions(filter=f"poolId eq '{pool_id}'")
    seen.append([counts.dedicated.total for counts in client.account.list_pool_node_counts(options)])
    client.pool.enable_auto_scale(pool_id, auto_scale_formula="$TargetDedicatedNodes = 0;")
    seen.append(client.pool.get(pool_id).enable_auto_scale)
    seen.append(client.pool.evaluate_auto_scale(pool_id, "$TargetDedicatedNodes = 1 + 2;").results)
    seen.append(refused(lambda: client.pool.resize(pool_id, models.PoolResizeParameter(target_dedicated_nodes=1)))[:2])
    client.pool.disable_auto_scale(pool_id)
    seen.append(client.pool.get(pool_id).enable_auto_scale)
    client.pool.delete(pool_id)
    wait(lambda: not client.pool.exists(pool_id))
    return seen


STORIES = {"job": story_job, "refusals": story_refusals, "changes": story_changes, "schedule": story_schedule}

if __name__ == "__main__":
    story = STORIES[sys.argv[1]]
    print(json.dumps(story(connected(), sys.argv[2]), default=str))  # noqa: T201 - the tests read it
