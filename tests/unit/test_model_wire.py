"""Models speak camelCase, refuse unknown names, treat null as absent, and read enums in any case."""

import pytest
from pydantic import ValidationError

from nodeagent.model.enums import OnAllTasksComplete
from nodeagent.model.job import JobCreate
from nodeagent.model.protocol import Assignment, AttemptKind, Messages, NumberedMessage, Work, WorkConstraints
from nodeagent.model.task import DEFAULT_RETENTION, TaskCreate
from nodeagent.model.values import DEFAULT_USER_IDENTITY

JOB = {"id": "j", "poolInfo": {"poolId": "p"}}


def test_null_is_absent() -> None:
    """A null property takes its default, at every depth."""
    job = JobCreate.model_validate({**JOB, "priority": None, "constraints": {"maxTaskRetryCount": None}})
    assert job.priority == 0
    assert job.constraints.max_task_retry_count == 0


def test_enums_are_read_in_any_case_and_sent_in_the_sdks() -> None:
    """`TerminateJob` is accepted and shown as `terminatejob`."""
    job = JobCreate.model_validate({**JOB, "onAllTasksComplete": "TerminateJob"})
    assert job.on_all_tasks_complete is OnAllTasksComplete.TERMINATE_JOB
    assert job.to_wire()["onAllTasksComplete"] == "terminatejob"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"id": "with space"}, "id"),
        ({"id": "x" * 65}, "id"),
        ({"priority": 1001}, "priority"),
        ({"maxParallelTasks": 0}, "maxParallelTasks"),
        ({"poolInfo": {}}, "poolInfo"),
        ({"jobReleaseTask": {"commandLine": "x"}}, ""),
        (
            {
                "jobPreparationTask": {"commandLine": "x"},
                "jobReleaseTask": {"commandLine": "x", "maxWallClockTime": "PT16M"},
            },
            "jobReleaseTask.maxWallClockTime",
        ),
        (
            {"jobPreparationTask": {"commandLine": "x", "id": "a"}, "jobManagerTask": {"commandLine": "x", "id": "A"}},
            "",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused_where_it_stands(change: dict[str, object], where: str) -> None:
    """Each broken rule is one error, located by its JSON path."""
    with pytest.raises(ValidationError) as caught:
        JobCreate.model_validate({**JOB, **change})
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [where]


def test_special_tasks_show_their_defaults() -> None:
    """Preparation and release come back with the defaults that Batch fills in."""
    job = JobCreate.model_validate(
        {**JOB, "jobPreparationTask": {"commandLine": "a"}, "jobReleaseTask": {"commandLine": "b"}}
    ).to_wire()
    assert job["jobPreparationTask"]["id"] == "jobpreparation"
    assert job["jobPreparationTask"]["waitForSuccess"] is True
    assert job["jobReleaseTask"] == {
        "id": "jobrelease",
        "commandLine": "b",
        "maxWallClockTime": "PT15M",
        "retentionTime": "P7D",
        "userIdentity": {"autoUser": {"scope": "pool", "elevationLevel": "nonadmin"}},
    }


def test_resource_files_name_one_source() -> None:
    """Two sources, or none, are refused."""
    for sources in ({}, {"httpUrl": "http://a/b", "storageContainerUrl": "http://c"}):
        with pytest.raises(ValidationError):
            TaskCreate.model_validate({"id": "t", "commandLine": "x", "resourceFiles": [{**sources, "filePath": "f"}]})


def test_messages_of_the_node_protocol_survive_the_round_trip() -> None:
    """A message is read back as the kind that was written."""
    assignment = Assignment(
        attempt_id="a1",
        attempt_kind=AttemptKind.USER,
        job_id="j",
        task_id="t",
        work=Work(
            command_line="true",
            constraints=WorkConstraints(retention_time=DEFAULT_RETENTION),
            user_identity=DEFAULT_USER_IDENTITY,
        ),
    )
    messages = Messages(messages=(NumberedMessage(number=7, message=assignment),))
    assert messages == Messages.from_json(messages.to_json())
