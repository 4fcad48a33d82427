"""The unmodified azure-batch 14.2.0, the generation of clients before today's SDK (api-version 2024-02-01.19.0)."""

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from tests.integration.batch_clients import CLIENTS, environment, installed, told
from tests.integration.batch_endpoint import BatchEndpoint

pytest_plugins = ["tests.integration.client_fixtures"]

Story: TypeAlias = Callable[[str], dict[str, Any]]


@pytest.fixture
def story(stack: BatchEndpoint) -> Story:
    """Return what lets the client tell one of its stories."""
    python = installed("py14")
    return lambda name: dict(told(python, CLIENTS / "py14.py", name, stack.pool_id, variables=environment(stack)))


def test_a_job_from_creation_to_deletion(story: Story) -> None:
    """Pool, node, job with preparation and release, tasks one by one and as a collection, lists, files, statuses."""
    assert story("job") == {
        "pool": ["local", "active", "steady"],
        "node": ["idle", "enabled"],
        "statuses before": [],
        "added": [["TaskAddStatus.success"], 150],
        "counts": [151, 0],
        "listed": 150,
        "selected": ["many000", "completed", None],
        "task": ["completed", 0, "success"],
        "files": ["stderr.txt", "stdout.txt", "wd/out.txt"],
        "stdout": "shared\n",
        "wd": "out\n",
        "range": "are",
        "properties": [7, False],
        "on the node": "shared\n",
        "reason": "enough",
        "status": ["success", 0, "completed", 0],
        "jobs": ["py14-job"],
    }


def test_refusals_are_the_exceptions_of_azure(story: Story) -> None:
    """Each is a BatchErrorException with the status, code and text of Batch."""
    seen = story("refusals")
    assert seen.pop("a collection again") == [["here", "TaskAddStatus.client_error"], ["new", "TaskAddStatus.success"]]
    assert seen.pop("too large") == ["RequestBodyTooLarge"]
    assert {name: error[1] for name, error in seen.items()} == {name: name for name in seen}
    assert {name: error[0] for name, error in seen.items()} == {
        "JobExists": 409,
        "TaskExists": 409,
        "JobNotFound": 404,
        "TaskNotFound": 404,
        "PoolNotFound": 404,
        "NodeNotFound": 404,
        "FileNotFound": 404,
        "TaskSucceeded": 409,
        "TaskCompleted": 409,
        "ConditionNotMet": 412,
        "InvalidQueryParameterValue": 400,
        "JobPreparationTaskNotSpecified": 409,
        "InvalidPropertyValue": 400,
        "AuthenticationFailed": 403,
        "JobCompleted": 409,
    }
    assert seen["TaskExists"][2] == "The specified task already exists."
    assert seen["JobNotFound"][2] == "The specified job does not exist."


def test_changes_of_jobs_tasks_and_pools(story: Story) -> None:
    """Patch and update, disable and enable, reactivate, terminate and delete; a pool that scales, comes and goes."""
    assert story("changes") == {
        "patched": [9, 2],
        "updated": [0, 0],
        "updated again": [412, "ConditionNotMet"],
        "while disabled": "active",
        "failed": [3, "failure", "FailureExitCode"],
        "reactivated": "active",
        "limit": 3605.0,
        "terminated": "TaskEnded",
        "subtasks": [],
        "tasks left": [],
        "pool": [
            True,
            "steady",
            "b",
            [0],
            True,
            "$TargetDedicatedNodes=3;$TargetLowPriorityNodes=0;$NodeDeallocationOption=requeue",
            [409, "OperationInvalidForCurrentState"],
            False,
        ],
        "images": ["linux", "verified"],
    }


def test_a_job_schedule_from_creation_to_deletion(story: Story) -> None:
    """Its first job is there at once and ends with its manager; the schedule is disabled, enabled, ended, deleted."""
    assert story("schedule") == {
        "exists": [True, False],
        "job": ["py14-schedule:job-1", 7, "py14-schedule:job-1"],
        "ended": "JMComplete",
        "stdout": "managed\n",
        "states": ["disabled", "active"],
        "deleted": [404, "JobScheduleNotFound"],
    }
