"""What the service keeps of tasks' files: ends of logs, retention times on their way to nodes, no needless secrets."""

import base64
import sqlite3
from pathlib import Path

import pytest

from nodeagent.model.enums import TaskState
from nodeagent.model.pool import PoolCreate
from nodeagent.model.protocol import ChangeRetention, KeptLog, Outcome, RemoveFiles, StopReason, Transition
from nodeagent.model.task import TaskConstraints, TaskCreate
from nodeagent.model.times import parse_duration
from nodeagent.rules.failures import exit_code_failure
from nodeagent.rules.pool_secrets import without_secrets
from nodeagent.service.lifecycle import jobs, pools, tasks
from nodeagent.service.store import migrations, task_logs
from nodeagent.service.store.task_logs import LogRow
from tests.unit.service_world import START, FakeNode, Running, World

pytest_plugins = ["tests.unit.service_fixtures"]


def kept(name: str, text: str, size: int | None = None) -> KeptLog:
    """Return a log as an agent sends it."""
    return KeptLog.model_validate(
        {
            "name": name,
            "size": len(text) if size is None else size,
            "modified": START,
            "tail": base64.b64encode(text.encode()),
        }
    )


def end(node: FakeNode, attempt: Running, *logs: KeptLog, exit_code: int = 0) -> None:
    """Let a task run and end, with logs."""
    if not attempt.running:
        node.run(attempt)
    failure = exit_code_failure(exit_code) if exit_code else None
    outcome = Outcome.model_validate(
        {
            "result": "failure" if failure else "success",
            "end_time": START,
            "exit_code": exit_code,
            "failure_info": failure,
        }
    )
    node.report(attempt, Transition.COMPLETED, outcome=outcome, logs=logs)


def first(node: FakeNode) -> Running:
    """Fetch what is there; return the attempt of a task."""
    node.fetch()
    return next(iter(node.live.values()))


def logs_of(world: World, task_id: str) -> list[LogRow]:
    """Return what is kept of a task."""
    num = world.task(task_id).num
    return world.store.do(lambda tx: task_logs.of_task(tx, num))


def count(world: World) -> int:
    """Return how many logs are stored."""
    row = world.store.do(lambda tx: tx.one("SELECT count(*) FROM task_logs"))
    assert row is not None
    return int(row[0])


def retrying(world: World, task_id: str) -> None:
    """Add a task that is tried three times."""
    spec = TaskCreate(id=task_id, command_line="x", constraints=TaskConstraints(max_task_retry_count=2))
    world.store.do(lambda tx: tasks.add_task(tx, "job", spec, world.store.now))


def test_the_logs_of_the_newest_attempt_are_kept(world: World) -> None:
    """Each end replaces what was kept of the one before; while a later attempt runs there is nothing to show."""
    (node,) = world.nodes
    world.create_job()
    retrying(world, "t")
    end(node, first(node), kept("stdout.txt", "one"), kept("stderr.txt", "bad"), exit_code=1)
    assert world.task("t").state is TaskState.ACTIVE
    attempt = first(node)
    node.run(attempt)
    assert logs_of(world, "t") == [], "what stands in the directory now is another attempt's"
    end(node, attempt, kept("stdout.txt", "two", size=100))
    (log,) = logs_of(world, "t")
    assert (log.name, log.size, log.tail, log.whole) == ("stdout.txt", 100, b"two", False)
    assert log.content == b"[nodeagent: the first 97 bytes are not kept]\ntwo"
    assert count(world) == 1, "nothing is left of the earlier attempt"


def test_an_attempt_that_wrote_nothing_shows_nothing(world: World) -> None:
    """What an earlier one wrote is not taken for its output."""
    (node,) = world.nodes
    world.create_job()
    retrying(world, "t")
    end(node, first(node), kept("stdout.txt", "one"), exit_code=1)
    end(node, first(node))
    assert world.task("t").state is TaskState.COMPLETED
    assert (logs_of(world, "t"), count(world)) == ([], 0)


def test_a_report_that_comes_twice_or_too_late_changes_no_log(world: World) -> None:
    """Logs are stored with the terminal report, once; those of an attempt that was given up are not taken."""
    (node,) = world.nodes
    world.create_job()
    world.add_task("t")
    attempt = first(node)
    end(node, attempt, kept("stdout.txt", "true"))
    (_, report) = node.ended[attempt.assignment.attempt_id]
    assert node.send(report.model_copy(update={"logs": (kept("stdout.txt", "false"),)})) == "already"
    assert [log.content for log in logs_of(world, "t")] == [b"true"]


def test_logs_outlive_the_node_and_go_with_the_task_and_the_job(world: World) -> None:
    """A task that was ended by its user has logs too; deleting removes them."""
    (node,) = world.nodes
    world.create_job()
    world.add_task("a")
    world.add_task("b")
    node.fetch()
    for attempt in list(node.live.values()):
        node.run(attempt)
    world.verb(tasks.terminate_task, "job", "a")
    node.fetch()
    for attempt in list(node.live.values()):
        end(node, attempt, kept("stdout.txt", attempt.assignment.task_id))
    assert [log.content for log in logs_of(world, "a")] == [b"a"]
    world.verb(tasks.delete_task, "job", "a")
    assert count(world) == 1
    num = world.job().num
    world.verb(jobs.delete_job, "job")
    world.store.do(lambda tx: jobs.purge(tx, num))
    assert count(world) == 0


def retention(world: World, text: str) -> None:
    """Give the task another retention time."""
    limits = TaskConstraints(retention_time=parse_duration(text))
    world.store.do(lambda tx: tasks.update_task(tx, "job", "t", limits, world.store.now))


def changes(node: FakeNode) -> list[tuple[str, str]]:
    """Return what the node was told of retention times."""
    node.fetch()
    found = [message for message in node.seen if isinstance(message, ChangeRetention)]
    return [(message.attempt_id, str(message.to_wire()["retentionTime"])) for message in found]


def test_another_retention_time_reaches_the_node(world: World) -> None:
    """Of an attempt that has been assigned, each change once; before that the assignment itself carries it."""
    (node,) = world.nodes
    world.create_job()
    retrying(world, "t")
    attempt_id = first(node).assignment.attempt_id
    retention(world, "P1D")
    assert changes(node) == [(attempt_id, "P1D")]
    retention(world, "P1D")
    world.store.do(lambda tx: tasks.update_task(tx, "job", "t", None, world.store.now))
    assert changes(node) == [(attempt_id, "P1D"), (attempt_id, "P7D")]


def test_nobody_is_told_who_has_no_files(world: World) -> None:
    """A task that waits has no attempt; an attempt that was given back, or whose node was lost, has no files."""
    (node,) = world.nodes
    world.create_job()
    world.drain_node(node)
    world.add_task("t")
    retention(world, "P1D")
    assert changes(node) == []


def test_a_returned_attempt_is_not_told(world: World) -> None:
    """It never ran, so it left nothing."""
    (node,) = world.nodes
    world.create_job()
    world.add_task("t")
    attempt = first(node)
    world.drain_node(node)
    attempt.stop = StopReason.SUPERSEDED
    node.finish(attempt)
    retention(world, "P1D")
    assert changes(node) == []
    assert not any(isinstance(message, RemoveFiles) for message in node.seen)


SECRET_POOL = {
    "id": "secret",
    "vmSize": "v",
    "userAccounts": [
        {
            "name": "ada",
            "password": "hunter2",
            "elevationLevel": "admin",
            "linuxUserConfiguration": {"uid": None, "sshPrivateKey": "-----BEGIN hunter2"},
        },
        {"name": "bob", "password": "hunter2"},
    ],
    "virtualMachineConfiguration": {
        "nodeAgentSkuId": "batch.node.ubuntu 22.04",
        "containerConfiguration": {
            "type": "dockerCompatible",
            "containerRegistries": [{"username": "u", "password": "hunter2", "registryServer": "r"}],
        },
    },
}


def test_passwords_of_a_pool_are_not_stored(world: World) -> None:
    """All else of the accounts and registries is."""
    spec = PoolCreate.model_validate(SECRET_POOL)
    world.verb(pools.create_pool, spec)
    row = world.store.do(lambda tx: tx.one("SELECT spec FROM pools WHERE id = 'secret'"))
    assert row is not None
    assert "hunter2" not in row[0]
    stored = world.store.do(lambda tx: pools.require(tx, "secret")).spec
    assert [account.name for account in stored.user_accounts or ()] == ["ada", "bob"]
    assert (stored.user_accounts or ())[0].elevation_level is (spec.user_accounts or ())[0].elevation_level
    machine = stored.virtual_machine_configuration or {}
    assert machine["containerConfiguration"]["containerRegistries"] == [{"username": "u", "registryServer": "r"}]
    assert machine["nodeAgentSkuId"] == "batch.node.ubuntu 22.04"


def test_passwords_that_were_stored_go_when_the_service_is_upgraded(tmp_path: Path) -> None:
    """The migration leaves what `without_secrets` leaves, and pools without any as they are."""
    connection = sqlite3.connect(tmp_path / "service.db", isolation_level=None)
    specs = [
        PoolCreate.model_validate(SECRET_POOL),
        PoolCreate(id="plain", vm_size="v"),
        PoolCreate(id="machine", vm_size="v", virtual_machine_configuration={"imageReference": {"offer": "o"}}),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:3])
        migrations.migrate(connection)
    for spec in specs:
        values = (spec.id, spec.id, spec.to_json())
        connection.execute(
            "INSERT INTO pools (key, id, spec, vm_size, state, state_time, allocation_state, allocation_state_time,"
            " created, modified) VALUES (?,?,?,'v','active',0,'steady',0,0,0)",
            values,
        )
    migrations.migrate(connection)
    found = [PoolCreate.from_json(text) for (text,) in connection.execute("SELECT spec FROM pools ORDER BY num")]
    connection.close()
    assert found == [without_secrets(spec) for spec in specs]
    assert not any("hunter2" in spec.to_json() for spec in found)
