"""The unmodified @azure/batch of npm under Node.js (api-version 2022-10-01.16.0)."""

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
    command = ("node", CLIENTS / "js.cjs", installed("js"))
    return lambda name: dict(told(*command, name, stack.pool_id, variables=environment(stack)))


def test_a_job_from_creation_to_deletion(story: Story) -> None:
    """Pool, node, job with preparation and release, tasks one by one and as a collection, lists, files, statuses."""
    assert story("job") == {
        "pool": ["local", "active", "steady"],
        "node": ["idle", "enabled"],
        "statusesBefore": 0,
        "added": [["success"], 100],
        "counts": [101, 0],
        "listed": 100,
        "selected": {"id": "many000", "state": "completed"},
        "task": ["completed", 0, "success"],
        "files": ["stderr.txt", "stdout.txt", "wd/out.txt"],
        "stdout": "shared\n",
        "wd": "out\n",
        "range": "are",
        "properties": [7, "False"],  # as it is sent; this client takes the header for text
        "onTheNode": "shared\n",
        "reason": "enough",
        "status": ["success", 0, "completed", 0],
        "jobs": ["js-job"],
    }


def test_refusals_are_the_errors_of_azure(story: Story) -> None:
    """Each is a RestError with the status of Batch, and its code and text in the parsed body."""
    seen = story("refusals")
    assert seen.pop("again") == [["here", "clienterror", "TaskExists"], ["new", "success", None]]
    # this client gives no body of a stream that is refused
    assert seen.pop("file")[0] == 404
    assert {name: error[1] for name, error in seen.items()} == {name: name for name in seen}
    assert {name: error[0] for name, error in seen.items()} == {
        "JobExists": 409,
        "TaskExists": 409,
        "JobNotFound": 404,
        "TaskNotFound": 404,
        "PoolNotFound": 404,
        "NodeNotFound": 404,
        "TaskSucceeded": 409,
        "TaskCompleted": 409,
        "ConditionNotMet": 412,
        "InvalidQueryParameterValue": 400,
        "JobPreparationTaskNotSpecified": 409,
        "InvalidPropertyValue": 400,
        "AuthenticationFailed": 403,
        "RequestBodyTooLarge": 413,
        "JobCompleted": 409,
    }
    assert seen["TaskExists"][2] == "The specified task already exists."


def test_changes_of_jobs_and_tasks(story: Story) -> None:
    """Patch and update, disable and enable, reactivate, limit, terminate and delete."""
    assert story("changes") == {
        "patched": [9, 2],
        "updated": [0, 0],
        "updatedAgain": [412, "ConditionNotMet"],
        "whileDisabled": "active",
        "failed": [3, "failure", "usererror", "FailureExitCode"],
        "reactivated": "active",
        "limit": "PT1H5S",
        "terminated": "TaskEnded",
        "subtasks": [],
        "tasksLeft": 0,
    }


def test_a_job_schedule_from_creation_to_deletion(story: Story) -> None:
    """Its first job is there at once and ends with its manager; the colon of its id goes through paths."""
    assert story("schedule") == {
        "exists": [True, False],
        "jobs": ["js-schedule:job-1"],
        "ended": "JMComplete",
        "stdout": "managed\n",
        "states": ["disabled", "active"],
        "deleted": [404, "JobScheduleNotFound"],
    }
