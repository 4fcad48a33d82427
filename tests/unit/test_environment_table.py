"""Every variable of a task, by kind: the table of spec/node.md §2, and nothing beside it."""

from pathlib import Path

import pytest

from nodeagent.model.protocol import Assignment, AttemptKind, PreparationGate, Work, WorkConstraints
from nodeagent.model.task import DEFAULT_RETENTION
from nodeagent.model.values import DEFAULT_USER_IDENTITY, EnvironmentSetting
from nodeagent.rules.environment import NodeFacts, task_environment
from nodeagent.rules.layout import NodeLayout

S, P, U = AttemptKind.START, AttemptKind.JOB_PREPARATION, AttemptKind.USER
J, R = AttemptKind.JOB_MANAGER, AttemptKind.JOB_RELEASE
ALL = frozenset({S, P, U, J, R})

NODE = NodeFacts(
    account_name="acc",
    account_url="https://acc.example/",
    pool_id="Pool",
    node_id="n1",
    layout=NodeLayout(Path("/r")),
    user_name="someone",
    is_dedicated=False,
    reserved_disk_bytes=5,
)

TABLE: dict[str, tuple[frozenset[AttemptKind], str]] = {
    "AZ_BATCH_ACCOUNT_NAME": (ALL, "acc"),
    "AZ_BATCH_ACCOUNT_URL": (ALL, "https://acc.example/"),
    "AZ_BATCH_POOL_ID": (ALL, "Pool"),
    "AZ_BATCH_NODE_ID": (ALL, "n1"),
    "AZ_BATCH_NODE_IS_DEDICATED": (ALL, "false"),
    "AZ_BATCH_NODE_ROOT_DIR": (ALL, "/r"),
    "AZ_BATCH_NODE_SHARED_DIR": (ALL, "/r/shared"),
    "AZ_BATCH_NODE_STARTUP_DIR": (ALL, "/r/startup"),
    "AZ_BATCH_NODE_STARTUP_WORKING_DIR": (ALL, "/r/startup/wd"),
    "AZ_BATCH_NODE_MOUNTS_DIR": (ALL, "/r/fsmounts"),
    "AZ_BATCH_CERTIFICATES_DIR": (ALL, "{task}/certs"),
    "AZ_BATCH_TASK_DIR": (ALL, "{task}"),
    "AZ_BATCH_TASK_WORKING_DIR": (ALL, "{task}/wd"),
    "AZ_BATCH_TASK_USER": (ALL, "someone"),
    "AZ_BATCH_TASK_USER_IDENTITY": (ALL, "PoolNonAdmin"),
    "AZ_BATCH_TASK_RESERVED_EPHEMERAL_DISK_SPACE_BYTES": (ALL, "5"),
    "AZ_BATCH_RESERVED_DISK_SPACE_BYTES": (ALL, "5"),
    "AZ_BATCH_JOB_ID": (ALL - {S}, "j"),
    "AZ_BATCH_TASK_ID": (ALL - {S}, "{id}"),
    "AZ_BATCH_JOB_PREP_DIR": (frozenset({U, J, R}), "/r/workitems/j/job-1/prep"),
    "AZ_BATCH_JOB_PREP_WORKING_DIR": (frozenset({U, J, R}), "/r/workitems/j/job-1/prep/wd"),
    "PATH": (ALL, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/r/shared:{task}/wd"),
    "HOME": (ALL, "{task}/wd"),
    "USER": (ALL, "someone"),
    "LANG": (ALL, "C.UTF-8"),
    "NODEAGENT_ERROR_FILE": (ALL, "{task}/error.txt"),
}

NEVER = (
    "AZ_BATCH_HOST_LIST",  # multi-instance tasks are refused by the service
    "AZ_BATCH_NODE_LIST",
    "AZ_BATCH_MASTER_NODE",
    "AZ_BATCH_IS_CURRENT_NODE_MASTER",
    "AZ_BATCH_TASK_SHARED_DIR",
    "CCP_NODES",
    "AZ_BATCH_AUTHENTICATION_TOKEN",  # retired by Batch
    "AZ_BATCH_SOFTWARE_ENTITLEMENT_TOKEN",  # obsolete
)

IDS = {S: "", P: "prep", U: "t", J: "manager", R: "release"}


def assignment(kind: AttemptKind, settings: dict[str, str] | None = None) -> Assignment:
    """Make an assignment of a job that has a preparation task."""
    gate = PreparationGate(attempt_id="p", task_id="prep", wait_for_success=True)
    return Assignment(
        attempt_id="a",
        attempt_kind=kind,
        job_id="" if kind is S else "j",
        task_id=IDS[kind],
        work=Work(
            command_line="true",
            environment_settings=tuple(EnvironmentSetting(name=n, value=v) for n, v in (settings or {}).items()),
            constraints=WorkConstraints(retention_time=DEFAULT_RETENTION),
            user_identity=DEFAULT_USER_IDENTITY,
        ),
        preparation=None if kind in (S, P) else gate,
    )


@pytest.mark.parametrize("kind", sorted(ALL))
@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_variable_of_every_kind(kind: AttemptKind, name: str) -> None:
    """Set with the right value for the kinds of its row, and absent for all others."""
    kinds, value = TABLE[name]
    directory = "/r/startup" if kind is S else f"/r/workitems/j/job-1/{IDS[kind]}"
    expected = value.format(task=directory, id=IDS[kind]) if kind in kinds else None
    assert task_environment(NODE, assignment(kind)).get(name) == expected


@pytest.mark.parametrize("kind", sorted(ALL))
def test_there_is_no_other_variable(kind: AttemptKind) -> None:
    """What is not in the table is not there, by whatever name."""
    found = task_environment(NODE, assignment(kind)).keys()
    assert found == {name for name, (kinds, _) in TABLE.items() if kind in kinds}
    assert not set(NEVER) & found


@pytest.mark.parametrize("kind", sorted(ALL))
def test_what_a_user_may_set(kind: AttemptKind) -> None:
    """The service's variables cannot be set, also those that this kind does not have; the ambient ones can."""
    mine = dict.fromkeys((*TABLE, *NEVER, "OWN"), "mine")
    found = task_environment(NODE, assignment(kind, mine))
    assert {name for name, value in found.items() if value == "mine"} == {"PATH", "HOME", "USER", "LANG", "OWN"}
