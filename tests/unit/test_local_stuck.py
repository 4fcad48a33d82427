"""Which tasks of a run can never run."""

from typing import Any

from nodeagent.local.stuck import stuck_tasks

DONE: dict[str, Any] = {"state": "completed", "executionInfo": {"result": "success", "exitCode": 0}}
FAILED: dict[str, Any] = {
    "state": "completed",
    "executionInfo": {
        "result": "failure",
        "exitCode": 3,
        "failureInfo": {"category": "usererror", "code": "FailureExitCode", "message": "m"},
    },
}
ACTIVE: dict[str, Any] = {"state": "active", "executionInfo": {}}


def after(*ids: str) -> dict[str, Any]:
    """Return an active task that waits for others."""
    return ACTIVE | {"dependsOn": {"taskIds": list(ids)}}


def test_what_waits_for_a_failure_is_stuck_once_nothing_else_can_run() -> None:
    """As long as anything runs or may start, it could add what others wait for."""
    blocked: list[dict[str, Any]] = [{"id": "A"} | FAILED, {"id": "B"} | after("a"), {"id": "c"} | after("b")]
    assert stuck_tasks(blocked) == ["B", "c"]
    assert stuck_tasks([*blocked, {"id": "d"} | ACTIVE]) == []
    assert stuck_tasks([*blocked, {"id": "d"} | after("a") | {"state": "running"}]) == []
    assert stuck_tasks([{"id": "a"} | DONE, {"id": "b"} | after("a")]) == []


def test_exit_conditions_decide_whom_a_failure_blocks() -> None:
    """As they do in the service."""
    satisfies = {"exitConditions": {"default": {"dependencyAction": "satisfy"}}}
    assert stuck_tasks([{"id": "a"} | FAILED | satisfies, {"id": "b"} | after("a")]) == []
