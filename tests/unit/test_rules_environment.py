"""The environment of a task is built from nothing, by the documented precedence."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.model.protocol import Assignment, AttemptKind, PreparationGate, Work, WorkConstraints
from nodeagent.model.task import DEFAULT_RETENTION
from nodeagent.model.values import DEFAULT_USER_IDENTITY, EnvironmentSetting
from nodeagent.rules.environment import EnvironmentLoopError, NodeFacts, expand, merge_settings, task_environment
from nodeagent.rules.layout import NodeLayout, earlier_attempt_directory, job_directory

NODE = NodeFacts(
    account_name="acc",
    account_url="http://127.0.0.1:1/",
    pool_id="Pool",
    node_id="n1",
    layout=NodeLayout(Path("/r/tasks")),
    user_name="someone",
)


def make(kind: AttemptKind, settings: dict[str, str] | None = None, **more: Any) -> Assignment:  # noqa: ANN401
    """Make an assignment of task `t` in job `j`."""
    start = kind is AttemptKind.START
    return Assignment(
        attempt_id="a",
        attempt_kind=kind,
        job_id="" if start else "j",
        task_id="" if start else "t",
        work=Work(
            command_line="true",
            environment_settings=tuple(EnvironmentSetting(name=n, value=v) for n, v in (settings or {}).items()),
            constraints=WorkConstraints(retention_time=DEFAULT_RETENTION),
            user_identity=DEFAULT_USER_IDENTITY,
        ),
        **more,
    )


def test_a_user_task_sees_the_documented_variables() -> None:
    """Every variable of a plain user task, and no other."""
    assert task_environment(NODE, make(AttemptKind.USER)) == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/r/tasks/shared:"
        "/r/tasks/workitems/j/job-1/t/wd",
        "HOME": "/r/tasks/workitems/j/job-1/t/wd",
        "USER": "someone",
        "LANG": "C.UTF-8",
        "AZ_BATCH_ACCOUNT_NAME": "acc",
        "AZ_BATCH_ACCOUNT_URL": "http://127.0.0.1:1/",
        "AZ_BATCH_POOL_ID": "Pool",
        "AZ_BATCH_NODE_ID": "n1",
        "AZ_BATCH_NODE_IS_DEDICATED": "true",
        "AZ_BATCH_NODE_ROOT_DIR": "/r/tasks",
        "AZ_BATCH_NODE_SHARED_DIR": "/r/tasks/shared",
        "AZ_BATCH_NODE_STARTUP_DIR": "/r/tasks/startup",
        "AZ_BATCH_NODE_STARTUP_WORKING_DIR": "/r/tasks/startup/wd",
        "AZ_BATCH_NODE_MOUNTS_DIR": "/r/tasks/fsmounts",
        "AZ_BATCH_CERTIFICATES_DIR": "/r/tasks/workitems/j/job-1/t/certs",
        "AZ_BATCH_TASK_DIR": "/r/tasks/workitems/j/job-1/t",
        "AZ_BATCH_TASK_WORKING_DIR": "/r/tasks/workitems/j/job-1/t/wd",
        "AZ_BATCH_TASK_USER": "someone",
        "AZ_BATCH_TASK_USER_IDENTITY": "PoolNonAdmin",
        "AZ_BATCH_TASK_RESERVED_EPHEMERAL_DISK_SPACE_BYTES": "1000000",
        "AZ_BATCH_RESERVED_DISK_SPACE_BYTES": "1000000",
        "NODEAGENT_ERROR_FILE": "/r/tasks/workitems/j/job-1/t/error.txt",
        "AZ_BATCH_JOB_ID": "j",
        "AZ_BATCH_TASK_ID": "t",
    }


def test_a_start_task_knows_no_job_and_lies_in_startup() -> None:
    """The start task has neither job nor task id, and its directory is `startup`."""
    environment = task_environment(NODE, make(AttemptKind.START))
    assert environment["AZ_BATCH_TASK_WORKING_DIR"] == "/r/tasks/startup/wd"
    assert not {"AZ_BATCH_JOB_ID", "AZ_BATCH_TASK_ID", "AZ_BATCH_JOB_PREP_DIR"} & environment.keys()


def test_tasks_of_a_prepared_job_see_the_preparation_directory() -> None:
    """AZ_BATCH_JOB_PREP_* name the preparation task's directories."""
    gate = PreparationGate(attempt_id="p", task_id="prep", wait_for_success=True)
    environment = task_environment(NODE, make(AttemptKind.USER, preparation=gate))
    assert environment["AZ_BATCH_JOB_PREP_WORKING_DIR"] == "/r/tasks/workitems/j/job-1/prep/wd"


def test_service_variables_win_and_values_are_expanded() -> None:
    """AZ_BATCH_* cannot be overridden, PATH can, and values see the service's variables."""
    environment = task_environment(
        NODE,
        make(
            AttemptKind.USER,
            {"AZ_BATCH_POOL_ID": "mine", "PATH": "$PATH:/opt", "OUT": "${AZ_BATCH_TASK_DIR}/o", "KEEP": "$NOBODY"},
        ),
    )
    assert environment["AZ_BATCH_POOL_ID"] == "Pool"
    assert environment["PATH"].endswith("/wd:/opt")
    assert environment["OUT"] == "/r/tasks/workitems/j/job-1/t/o"
    assert environment["KEEP"] == "$NOBODY"


@pytest.mark.parametrize("custom", [{"A": "$B", "B": "$A"}, {"A": "x$A"}, {"A": "$B", "B": "$C", "C": "$B"}])
def test_circles_are_refused(custom: dict[str, str]) -> None:
    """Settings that refer to themselves are an error that names the circle."""
    with pytest.raises(EnvironmentLoopError, match="circle"):
        expand(custom, {})


@given(st.dictionaries(st.sampled_from("ABCD"), st.text("$ABCDx{}", max_size=6)))
def test_expansion_ends(custom: dict[str, str]) -> None:
    """Whatever the settings, expansion ends with every name, or with the circle's error."""
    try:
        assert expand(custom, {"D": "d"}).keys() == custom.keys()
    except EnvironmentLoopError:
        assert any("$" in value for value in custom.values())


def test_later_settings_win() -> None:
    """The task's own setting replaces the job's of the same name."""
    job = (EnvironmentSetting(name="A", value="1"), EnvironmentSetting(name="B", value="1"))
    merged = merge_settings(job, (EnvironmentSetting(name="A", value="2"),), None)
    assert [(item.name, item.value) for item in merged] == [("A", "2"), ("B", "1")]


def test_directories_of_jobs() -> None:
    """Ordinary jobs lie below `job-1`, jobs of a schedule below their schedule."""
    assert job_directory("j") == "workitems/j/job-1"
    assert job_directory("s:job-3") == "workitems/s/job-3"
    assert earlier_attempt_directory("workitems/j/job-1/t", 2) == "workitems/j/job-1/t~2"
