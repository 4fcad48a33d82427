"""Thousands of tasks with dependencies, and counts that equal a full listing at every standstill (SDK)."""

from collections import Counter

import pytest
from azure.batch import models

from tests.integration.batch_endpoint import Sdk, completed, eventually, job, task

pytest_plugins = ["tests.integration.batch_fixtures"]

NUMBERED = 2000
DISABLE: Sdk = models._models.BatchJobDisableOptions  # the SDK does not export what its own method wants


def counted(client: Sdk, job_id: str) -> tuple[dict[str, int], dict[str, int]]:
    """Return the counters of tasks and of slots as the service tells them."""
    result = client.get_job_task_counts(job_id)
    tasks, slots = result.task_counts.as_dict(), result.task_slot_counts.as_dict()
    return dict(tasks), dict(slots)


def listed(client: Sdk, job_id: str) -> tuple[dict[str, int], dict[str, int]]:
    """Return the counters that a reader of the whole list gets, `preparing` as running."""
    names = ("active", "running", "completed", "succeeded", "failed")
    tasks, slots = Counter(dict.fromkeys(names, 0)), Counter(dict.fromkeys(names, 0))
    for found in client.list_tasks(job_id):
        state = "running" if found.state.value == "preparing" else found.state.value
        shown = [state]
        if state == "completed":
            shown.append("succeeded" if found.execution_info.result.value == "success" else "failed")
        for name in shown:
            tasks[name] += 1
            slots[name] += found.required_slots or 1
    return dict(tasks), dict(slots)


def test_a_task_waits_for_thousands_and_the_counts_are_those_of_the_list(client: Sdk, job_id: str) -> None:
    """Ids and ranges; before anything runs, half way, with failures, and at the end."""
    client.create_job(job(job_id, uses_task_dependencies=True, priority=1))
    client.begin_disable_job(job_id, DISABLE(disable_tasks="requeue"), polling_interval=0).wait(30)
    numbered = [task(str(number), "true", required_slots=1 + (number % 10 == 0)) for number in range(1, NUMBERED + 1)]
    ranges = [models.BatchTaskIdRange(start=1, end=1500), models.BatchTaskIdRange(start=1400, end=NUMBERED)]
    waits = models.BatchTaskDependencies(task_ids=["first", "2"], task_id_ranges=ranges)
    others = [
        task("first"),
        task("fails", "exit 1", required_slots=2),
        task("last", "true", depends_on=waits),
        task("never", "true", depends_on=models.BatchTaskDependencies(task_ids=["fails"])),
    ]
    client.create_tasks(job_id, [*others, *numbered])
    assert counted(client, job_id) == listed(client, job_id)
    assert counted(client, job_id)[0]["active"] == NUMBERED + len(others)
    client.begin_enable_job(job_id, polling_interval=0).wait(30)
    eventually(lambda: counted(client, job_id)[0]["completed"], lambda done: done > NUMBERED / 3, 120)
    client.begin_disable_job(job_id, DISABLE(disable_tasks="wait"), polling_interval=0).wait(30)
    half_way = counted(client, job_id)
    assert half_way == listed(client, job_id)
    assert half_way[0]["running"] == 0
    assert 0 < half_way[0]["active"] < NUMBERED
    client.begin_enable_job(job_id, polling_interval=0).wait(30)
    eventually(lambda: counted(client, job_id)[0]["active"], lambda active: active == 1, 120)
    last = completed(client, job_id, "last")
    ends = [
        found.execution_info.end_time
        for found in client.list_tasks(job_id, filter="state eq 'completed'")
        if found.id not in ("last", "fails")
    ]
    assert len(ends) == NUMBERED + 1
    assert max(ends) <= last.execution_info.start_time
    assert client.get_task(job_id, "never").state.value == "active"
    tasks, slots = counted(client, job_id)
    assert (tasks, slots) == listed(client, job_id)
    assert (tasks["succeeded"], tasks["failed"], tasks["active"]) == (NUMBERED + 2, 1, 1)


@pytest.mark.parametrize("verb", ["terminate", "delete"])
def test_counts_follow_what_users_do_to_tasks(client: Sdk, job_id: str, verb: str) -> None:
    """Tasks that are terminated, reactivated and deleted leave the counters as the list shows them."""
    client.create_job(job(job_id))
    client.create_tasks(job_id, [task(f"t{number}", "sleep 60", required_slots=2) for number in range(5)])
    eventually(lambda: counted(client, job_id)[0]["running"], lambda running: running == 2)
    assert counted(client, job_id) == listed(client, job_id)
    for name in ("t0", "t4"):
        getattr(client, f"{verb}_task")(job_id, name)
    eventually(lambda: counted(client, job_id)[0]["running"], lambda running: running == 2)
    assert counted(client, job_id) == listed(client, job_id)
    if verb == "terminate":
        client.reactivate_task(job_id, "t4")
        assert counted(client, job_id) == listed(client, job_id)
        assert counted(client, job_id)[1] == {"active": 4, "running": 4, "completed": 2, "succeeded": 0, "failed": 2}
