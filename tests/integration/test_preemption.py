"""`allowTaskPreemption` on the real stack: a job of higher priority takes slots, and gives them back."""

from functools import partial
from operator import eq
from pathlib import Path

from azure.batch import BatchClient, models

from tests.integration.batch_endpoint import Sdk, completed, eventually, job, local_stack, task

SLOTS = 4


def test_an_urgent_job_takes_slots_and_gives_them_back(tmp_path: Path) -> None:
    """Two of four tasks make way, the youngest; they run again from their beginning, and no counter shows it."""
    gate, started = tmp_path / "gate", tmp_path / "started"
    started.mkdir()
    hold = f"touch {started}/$AZ_BATCH_TASK_ID.$$; until [ -e {gate} ]; do sleep 0.05; done"
    client: Sdk
    with local_stack(tmp_path / "up") as endpoint, BatchClient(endpoint.url, endpoint.credential()) as client:
        client.create_job(job("low", allow_task_preemption=True, priority=-10))
        for number in range(SLOTS):
            client.create_task("low", task(f"t{number}", hold))
            eventually(lambda: len(list(started.iterdir())), partial(eq, number + 1))
        client.create_job(job("high", priority=5))
        client.create_tasks("high", [task(f"now{number}", "true") for number in range(2)])
        for number in range(2):
            assert completed(client, "high", f"now{number}").execution_info.exit_code == 0
        again = eventually(
            lambda: sorted(path.name for path in started.iterdir()), lambda found: len(found) == SLOTS + 2
        )
        assert [name.split(".")[0] for name in again] == ["t0", "t1", "t2", "t2", "t3", "t3"]
        node = client.get_node(endpoint.pool_id, endpoint.node_id)
        assert node.running_task_slots_count <= SLOTS
        gate.touch()
        for number in range(SLOTS):
            ended = completed(client, "low", f"t{number}").execution_info
            assert (ended.result.value, ended.exit_code, ended.requeue_count, ended.retry_count) == ("success", 0, 0, 0)
        counts = client.get_job_task_counts("low").task_counts
        assert (counts.succeeded, counts.failed) == (SLOTS, 0)
        changed = client.get_job("low")
        assert changed.allow_task_preemption
        client.update_job("low", models.BatchJobUpdateOptions(allow_task_preemption=False))
        assert client.get_job("low").allow_task_preemption is False
