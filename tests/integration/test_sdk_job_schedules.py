"""The unmodified azure-batch SDK drives job schedules from creation to deletion (spec/rest.md §2.6, §3.13, §11)."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from azure.batch import models
from azure.core import MatchConditions
from azure.core.exceptions import (
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)

from tests.integration.batch_endpoint import POOL, Property, Sdk, completed, eventually, job, refusal, shell, task

pytest_plugins = ["tests.integration.batch_fixtures"]

ACTIVE, COMPLETED = models.BatchJobScheduleState.ACTIVE, models.BatchJobScheduleState.COMPLETED
LATER = datetime(2100, 1, 1, tzinfo=UTC)


def schedule(schedule_id: str, specification: dict[str, Property] | None = None, **timing: Property) -> Property:
    """Return a schedule whose jobs run on the pool of the endpoint."""
    return models.BatchJobScheduleCreateOptions(
        id=schedule_id,
        schedule=models.BatchJobScheduleConfiguration(**timing),
        job_specification=models.BatchJobSpecification(
            pool_info=models.BatchPoolInfo(pool_id=POOL), **specification or {}
        ),
    )


def exists(client: Sdk, schedule_id: str) -> bool:
    """Tell whether there is such a schedule; `job_schedule_exists` raises where there is none."""
    return list(client.list_job_schedules(filter=f"id eq '{schedule_id}'")) != []


@pytest.fixture
def schedule_id(client: Sdk, job_id: str) -> Iterator[str]:
    """Return the id of a schedule that the test makes, and that is gone afterwards."""
    name = f"schedule-of-{job_id}"
    yield name
    if exists(client, name):
        client.begin_delete_job_schedule(name, polling_interval=0).wait(30)


def test_a_schedule_makes_its_job_when_its_time_comes_and_ends_with_it(client: Sdk, schedule_id: str) -> None:
    """A real job with everything: manager, preparation, release, common environment, files, statistics."""
    write = shell("echo prepared > $AZ_BATCH_NODE_SHARED_DIR/data")
    show = shell("cat $AZ_BATCH_NODE_SHARED_DIR/data; echo $AZ_BATCH_JOB_ID $WORD")
    specification: dict[str, Property] = {
        "display_name": "shown",
        "priority": 7,
        "constraints": models.BatchJobConstraints(max_task_retry_count=2, max_wall_clock_time=timedelta(minutes=5)),
        "job_manager_task": models.BatchJobManagerTask(id="manager", command_line=show),
        "job_preparation_task": models.BatchJobPreparationTask(command_line=write),
        "job_release_task": models.BatchJobReleaseTask(command_line=shell("rm $AZ_BATCH_NODE_SHARED_DIR/data")),
        "common_environment_settings": [models.EnvironmentSetting(name="WORD", value="common")],
        "metadata": [models.BatchMetadataItem(name="m", value="of the job")],
    }
    due = datetime.now(UTC) + timedelta(seconds=1)
    client.create_job_schedule(schedule(schedule_id, specification, do_not_run_until=due))
    waiting = client.get_job_schedule(schedule_id)
    assert (waiting.state, waiting.execution_info.next_run_time) == (ACTIVE, due)

    name = f"{schedule_id}:job-1"
    ended = eventually(lambda: client.get_job_schedule(schedule_id), lambda found: found.state == COMPLETED)
    assert ended.execution_info.recent_job.id == name
    assert ended.execution_info.end_time >= due
    assert (ended.execution_info.next_run_time, ended.previous_state) == (None, ACTIVE)
    (one,) = client.list_jobs_from_schedule(schedule_id)
    assert (one.id, one.state.value, one.execution_info.termination_reason) == (name, "completed", "JMComplete")
    assert (one.display_name, one.priority, one.constraints.max_task_retry_count) == ("shown", 7, 2)
    assert [(item.name, item.value) for item in one.metadata] == [("m", "of the job")]
    assert one.creation_time >= due
    assert client.get_job(name).url == one.url == ended.execution_info.recent_job.url

    manager = client.get_task(name, "manager")
    assert manager.node_info.task_root_directory == f"workitems/{schedule_id}/job-1/manager"
    assert b"".join(client.download_task_file(name, "manager", "stdout.txt")) == f"prepared\n{name} common\n".encode()
    (status,) = client.list_job_preparation_and_release_task_status(name)
    assert status.job_release_task_execution_info.exit_code == 0
    stats = client.get_job_schedule(schedule_id, expand=["stats"]).job_schedule_statistics
    assert (stats.succeeded_tasks_count, stats.failed_tasks_count, stats.task_retries_count) == (1, 0, 0)
    assert stats.url == ended.url

    client.begin_delete_job_schedule(schedule_id, polling_interval=0).wait(30)
    assert not exists(client, schedule_id)
    assert isinstance(refusal(lambda: client.get_job(name)), ResourceNotFoundError)


def test_the_verbs_of_a_schedule(client: Sdk, schedule_id: str) -> None:
    """The recorded story of the SDK's own tests; its pool need not exist."""
    specification = models.BatchJobSpecification(pool_info=models.BatchPoolInfo(pool_id="nowhere"))
    hourly = models.BatchJobScheduleConfiguration(
        start_window=timedelta(hours=1), recurrence_interval=timedelta(days=1)
    )
    client.create_job_schedule(
        models.BatchJobScheduleCreateOptions(
            id=schedule_id, display_name="shown", schedule=hourly, job_specification=specification
        )
    )
    assert schedule_id in [found.id for found in client.list_job_schedules()]
    first = client.get_job_schedule(schedule_id)
    assert (first.state, first.display_name, first.previous_state) == (ACTIVE, "shown", None)
    assert first.schedule.start_window == timedelta(hours=1)
    assert first.execution_info.next_run_time == first.creation_time + timedelta(days=1)
    assert client.job_schedule_exists(schedule_id)
    assert [found.id for found in client.list_jobs_from_schedule(schedule_id)] == [f"{schedule_id}:job-1"]

    client.disable_job_schedule(schedule_id)
    assert client.get_job_schedule(schedule_id).state == models.BatchJobScheduleState.DISABLED
    client.enable_job_schedule(schedule_id)
    assert client.get_job_schedule(schedule_id).state == ACTIVE

    specification.priority = 3
    client.replace_job_schedule(schedule_id, models.BatchJobSchedule(schedule=hourly, job_specification=specification))
    metadata = [models.BatchMetadataItem(name="a", value="b")]
    client.update_job_schedule(schedule_id, models.BatchJobScheduleUpdateOptions(metadata=metadata))
    changed = client.get_job_schedule(schedule_id)
    assert (changed.job_specification.priority, changed.display_name) == (3, "shown")
    assert changed.metadata[0].name == "a"
    assert changed.etag != first.etag
    assert client.get_job(f"{schedule_id}:job-1").priority == 0

    client.begin_terminate_job_schedule(schedule_id, polling_interval=0).wait(30)
    assert client.get_job_schedule(schedule_id).state == COMPLETED
    (one,) = client.list_jobs_from_schedule(schedule_id)
    assert one.execution_info.termination_reason == "TerminateJobSchedule"
    assert refusal(lambda: client.enable_job_schedule(schedule_id)).error.code == "JobScheduleCompleted"
    poller = client.begin_delete_job_schedule(schedule_id, polling_interval=0)
    poller.wait(30)
    assert poller.status() == "Succeeded"
    assert isinstance(refusal(lambda: client.job_schedule_exists(schedule_id)), ResourceNotFoundError)


def test_tasks_are_added_to_the_job_of_a_schedule(client: Sdk, schedule_id: str) -> None:
    """Its colon is encoded in paths; the end of the schedule stops what runs."""
    client.create_job_schedule(schedule(schedule_id))
    name = f"{schedule_id}:job-1"
    client.create_tasks(name, [task("quick", "echo $AZ_BATCH_TASK_ID"), task("slow", "sleep 600")])
    completed(client, name, "quick")
    assert b"".join(client.download_task_file(name, "quick", "stdout.txt")) == b"quick\n"
    eventually(lambda: client.get_task(name, "slow").state.value, lambda state: state == "running")
    client.begin_terminate_job_schedule(schedule_id, polling_interval=0).wait(60)
    assert client.get_job_schedule(schedule_id).state == COMPLETED
    assert client.get_task(name, "slow").execution_info.failure_info.code == "TaskEnded"


def test_schedules_are_listed_filtered_and_selected(client: Sdk, schedule_id: str) -> None:
    """All documented properties of `$filter`; pages follow each other."""
    names = [f"{schedule_id}-{letter}" for letter in "abc"]
    for name in names:
        client.create_job_schedule(schedule(name, do_not_run_until=LATER, do_not_run_after=LATER + timedelta(days=1)))
    own = f"startswith(id,'{schedule_id}-')"
    assert [found.id for found in client.list_job_schedules(filter=own, max_results=2)] == names
    (brief, *_) = client.list_job_schedules(filter=own, select=["id", "state"])
    assert brief.as_dict() == {"id": names[0], "state": "active"}
    time = "DateTime'2100-01-01T00:00:00Z'"
    for condition, count in (
        ("state eq 'active'", 3),
        ("state ne 'active'", 0),
        (f"schedule/doNotRunUntil eq {time}", 3),
        (f"schedule/doNotRunAfter le {time}", 0),
        (f"creationTime lt {time} and lastModified lt {time} and stateTransitionTime lt {time}", 3),
        (f"executionInfo/endTime lt {time}", 0),
    ):
        assert len(list(client.list_job_schedules(filter=f"{own} and {condition}"))) == count, condition
    assert list(client.list_jobs_from_schedule(names[0])) == []
    client.create_job_schedule(schedule(schedule_id))
    assert list(client.list_jobs_from_schedule(schedule_id, filter="state eq 'completed'")) == []
    assert len(list(client.list_jobs_from_schedule(schedule_id, filter="state eq 'active'"))) == 1
    wrong = refusal(lambda: list(client.list_jobs_from_schedule(schedule_id, filter="id eq 'x'")))
    assert wrong.error.code == "InvalidQueryParameterValue"
    for name in names:
        client.begin_delete_job_schedule(name, polling_interval=0).wait(30)


def test_what_is_refused(client: Sdk, schedule_id: str, job_id: str) -> None:
    """With the exceptions and codes that these calls have at Azure."""
    missing = (
        lambda: client.get_job_schedule("none"),
        lambda: client.disable_job_schedule("none"),
        lambda: list(client.list_jobs_from_schedule("none")),
        lambda: client.begin_terminate_job_schedule("none", polling_interval=0),
    )
    for call in missing:
        refused = refusal(call)
        assert (type(refused), refused.error.code) == (ResourceNotFoundError, "JobScheduleNotFound")
    assert refusal(lambda: client.job_schedule_exists("none")).status_code == 404

    client.create_job_schedule(schedule(schedule_id, do_not_run_until=LATER))
    client.create_job(job(job_id))
    for call, code in (
        (lambda: client.create_job_schedule(schedule(schedule_id.upper())), "JobScheduleExists"),
        (lambda: client.create_job_schedule(schedule(job_id)), "JobWithSameIdExists"),
        (lambda: client.create_job(job(schedule_id)), "JobScheduleWithSameIdExists"),
    ):
        refused = refusal(call)
        assert (type(refused), refused.error.code) == (ResourceExistsError, code)

    release = models.BatchJobReleaseTask(command_line=shell("true"))
    for call, code in (
        (lambda: client.create_job_schedule(schedule("x", start_window=timedelta(seconds=59))), "InvalidPropertyValue"),
        (lambda: client.create_job_schedule(schedule("x", {"job_release_task": release})), "InvalidPropertyValue"),
        (lambda: client.create_job(job("x:job-1")), "InvalidPropertyValue"),
        (lambda: client.create_job_schedule(schedule("a b")), "InvalidPropertyValue"),
        (
            lambda: client.create_job_schedule(schedule("x", {"network_configuration": {"subnetId": "s"}})),
            "UnsupportedProperty",
        ),
    ):
        refused = refusal(call)
        assert (type(refused), refused.status_code, refused.error.code) == (HttpResponseError, 400, code)
    assert not exists(client, "x")


def test_a_condition_guards_a_schedule(client: Sdk, schedule_id: str) -> None:
    """Who has seen an older one changes nothing, with any verb."""
    client.create_job_schedule(schedule(schedule_id, do_not_run_until=LATER))
    seen = client.get_job_schedule(schedule_id)
    update = models.BatchJobScheduleUpdateOptions(metadata=[models.BatchMetadataItem(name="a", value="b")])
    unmodified = {"etag": seen.etag, "match_condition": MatchConditions.IfNotModified}
    client.update_job_schedule(schedule_id, update, **unmodified)
    for call in (
        lambda: client.update_job_schedule(schedule_id, update, **unmodified),
        lambda: client.disable_job_schedule(schedule_id, **unmodified),
        lambda: client.begin_terminate_job_schedule(schedule_id, polling_interval=0, **unmodified),
        lambda: client.begin_delete_job_schedule(schedule_id, polling_interval=0, **unmodified),
    ):
        assert isinstance(refusal(call), ResourceModifiedError)
    assert client.get_job_schedule(schedule_id).state == ACTIVE
