"""What the agent does for every call and every status of docs/node-protocol.md, over real HTTP."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from nodeagent.agent.daemon import run_agent
from nodeagent.agent.testing import ScriptedService, agent_settings, task
from nodeagent.model.protocol import AttemptKind, Outcome, Report, StopAttempt, StopReason, Transition
from nodeagent.runtime.fake import FakeRuntime, World

Start = Callable[..., Coroutine[Any, Any, asyncio.Task[int]]]


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    """A scripted service."""
    async with ScriptedService() as running:
        yield running


@pytest.fixture
async def world() -> World:
    """Tasks that do what the test says."""
    return World()


@pytest.fixture
async def start(service: ScriptedService, world: World, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts an agent over the world's tasks; whatever is left is stopped afterwards."""
    stop = asyncio.Event()
    agents: list[asyncio.Task[int]] = []

    async def begin(**settings: object) -> asyncio.Task[int]:
        given = agent_settings(tmp_path, service.url, boundary="process_group", **settings)
        agent = asyncio.create_task(run_agent(given, stop, runtime=FakeRuntime(world)))
        agents.append(agent)
        return agent

    yield begin
    stop.set()
    await asyncio.gather(*agents)


async def status_of(agent: asyncio.Task[int]) -> int:
    """Wait for an agent that ends by itself."""
    async with asyncio.timeout(20):
        return await agent


def outcome_of(report: Report) -> Outcome:
    """The outcome of a completed attempt."""
    assert report.outcome is not None, report
    return report.outcome


def _last_beat(service: ScriptedService) -> tuple[str, ...]:
    return service.heartbeats[-1].live_attempts if service.heartbeats else ()


async def test_an_introduction_tells_what_the_node_is(service: ScriptedService, start: Start, tmp_path: Path) -> None:
    """Every field of `register` is the truth."""
    await start(slots=3, pool="mine")
    register = await service.registered()

    assert (register.node_id, register.pool_id, register.slots, register.epoch) == ("node-1", "mine", 3, 1)
    assert register.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()  # noqa: ASYNC240 - proc
    assert register.root_directory == str(tmp_path / "root")
    assert register.cores == os.cpu_count()
    assert register.ip_address == "127.0.0.1"
    assert register.file_server.url.startswith("http://127.0.0.1:")
    assert (register.cursor, register.live_attempts) == (0, ())


@pytest.mark.parametrize("name", ["register", "assignments", "reports", "heartbeat"])
async def test_a_call_whose_answer_is_lost_takes_effect_once(
    name: str, service: ScriptedService, start: Start, world: World
) -> None:
    """The call is made again, and the service sees the repetition as one."""
    service.drop_answers(name, 2)
    await start()
    await service.registered()
    service.send(task("a1", "anything"))
    await world.launched("a1")
    await world.exit("a1", 3)

    assert outcome_of(await service.terminal("a1")).exit_code == 3
    assert world.launches == ["a1"]
    assert [report.seq for report in service.reports_of("a1")] == [1, 2]


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "Busy"), (429, "TooMany"), (408, "Slow")])
async def test_errors_that_pass_are_waited_for(
    status: int, code: str, service: ScriptedService, start: Start, world: World
) -> None:
    """5xx, 408 and 429 mean: the same call again."""
    for name in ("register", "assignments", "reports", "heartbeat"):
        service.refuse(name, status, code, times=2)
    await start()
    service.send(task("a1", "anything"))
    await world.launched("a1")
    await world.exit("a1", 0)

    assert outcome_of(await service.terminal("a1")).exit_code == 0


async def test_a_pool_that_is_made_later_is_waited_for(service: ScriptedService, start: Start) -> None:
    """404 PoolNotFound is no reason to give up."""
    service.refuse("register", 404, "PoolNotFound", times=3)
    await start()

    await service.registered()


async def test_tasks_do_not_notice_that_the_service_is_down(
    service: ScriptedService, start: Start, world: World
) -> None:
    """They end, and their ends are told when it is back."""
    await start()
    service.send(task("a1", "anything"), task("a2", "anything"))
    await world.launched("a2")
    await service.stop()
    await world.exit("a1", 1)
    await world.exit("a2", 2)
    await service.start()

    assert [outcome_of(await service.terminal(name)).exit_code for name in ("a1", "a2")] == [1, 2]


async def test_a_service_that_forgot_the_node_is_registered_with_again(
    service: ScriptedService, start: Start, world: World
) -> None:
    """409 NodeNotRegistered, with the attempts that live; nothing is launched twice."""
    await start()
    service.send(task("a1", "anything"))
    await world.launched("a1")
    await service.running("a1")
    service.forget_node()

    register = await service.registered(2)

    assert register.live_attempts == ("a1",)
    assert register.cursor == 1
    await world.exit("a1", 0)
    await service.terminal("a1")
    assert world.launches == ["a1"]


async def test_a_gap_is_filled_from_the_outbox(service: ScriptedService, start: Start, world: World) -> None:
    """The service lost the first report: the agent sends all from there on."""
    await start()
    service.send(task("a1", "anything"))
    await service.running("a1")
    await world.launched("a1")
    service.forget_reports("a1")
    await world.exit("a1", 5)

    await service.terminal("a1")

    assert [report.transition for report in service.reports_of("a1")] == [Transition.RUNNING, Transition.COMPLETED]


@pytest.mark.parametrize("how", ["heartbeat", "register"])
async def test_an_attempt_that_the_service_does_not_know_is_stopped_in_silence(
    how: str, service: ScriptedService, start: Start, world: World
) -> None:
    """Whoever says so: the task is stopped, and nothing more is told of it."""
    await start()
    service.send(task("a1", "anything"))
    await service.running("a1")
    await world.launched("a1")
    service.unknown.add("a1")
    if how == "register":
        service.forget_node()

    stop = await world.stopped("a1")
    assert stop.reason == StopReason.SUPERSEDED
    await world.exit("a1", None, signal=15)
    await service.until(lambda: "a1" not in _last_beat(service), "the attempt to be forgotten")
    assert [report.transition for report in service.reports_of("a1")] == [Transition.RUNNING]


async def test_an_end_that_the_service_does_not_want_to_know_is_not_told_again(
    start: Start, world: World, service: ScriptedService
) -> None:
    """`unknown` as the answer to a terminal report settles it: the next registration does not name the attempt."""
    await start()
    service.send(task("a1", "anything"))
    await service.running("a1")
    await world.launched("a1")
    service.unknown.add("a1")
    service.refuse("heartbeat", 503, "Busy", times=1000)
    await world.exit("a1", 0)
    await service.until(lambda: [report.seq for report in service.received] == [1, 2], "the terminal report")
    service.forget_node()
    service.send(task("a2", "anything"))

    register = await service.registered(2)

    assert "a1" not in register.live_attempts
    assert [report.transition for report in service.reports_of("a1")] == [Transition.RUNNING]


async def test_an_attempt_disowned_while_its_preparation_runs_never_begins(
    service: ScriptedService, start: Start, world: World
) -> None:
    """It waits for nothing any more."""
    await start()
    service.send(task("p", "prepare", kind=AttemptKind.JOB_PREPARATION), task("u", "anything", gate="p"))
    await world.launched("p")
    await service.until(lambda: "u" in _last_beat(service), "a heartbeat with the attempt")
    service.unknown.add("u")
    await service.until(lambda: "u" not in _last_beat(service), "the attempt to be forgotten")
    await world.exit("p", 0)
    await service.terminal("p")

    assert world.launches == ["p"]
    assert service.reports_of("u") == []


async def test_too_many_reports_at_once_are_sent_in_halves(
    service: ScriptedService, start: Start, world: World
) -> None:
    """413: the same reports, fewer at a time."""
    await start()
    await service.registered()
    service.refuse("reports", 413, "RequestBodyTooLarge", times=2)
    names = [f"a{number}" for number in range(8)]
    service.send(*(task(name, "anything") for name in names))
    for name in names:
        await world.launched(name)
        await world.exit(name, 0)

    for name in names:
        assert outcome_of(await service.terminal(name)).exit_code == 0


@pytest.mark.parametrize(
    "refusal",
    [(409, "Fenced", 9), (403, "NodeKeyRefused", 8), (400, "InvalidRequestBody", 8), (302, "Moved", 8)],
)
@pytest.mark.parametrize("name", ["register", "assignments", "reports", "heartbeat"])
async def test_refusals_end_the_agent_and_leave_its_tasks(
    name: str,
    refusal: tuple[int, str, int],
    service: ScriptedService,
    start: Start,
    world: World,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One clear line and a documented status; what runs goes on, and a later life takes it over."""
    status, code, expected = refusal
    if name == "register":
        service.refuse(name, status, code)
        agent = await start()
    else:
        agent = await start()
        service.send(task("a1", "anything"))
        await service.running("a1")
        service.refuse(name, status, code)
        if name == "reports":
            service.send(task("a2", "anything"))
        elif name == "assignments":
            service.send(task("a3", "anything"))

    assert await status_of(agent) == expected
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nodeagent: ")]
    assert len(lines) == 1
    assert world.attempt("a1").stop is None


async def test_a_zombie_agent_is_fenced_by_the_next_life(
    service: ScriptedService, start: Start, world: World, tmp_path: Path
) -> None:
    """A copy of the node's state with a higher epoch wins; the older agent ends and leaves the tasks alone."""
    first = await start()
    service.send(task("a1", "anything"))
    await world.launched("a1")
    copy = tmp_path / "copy"
    (copy / "state").mkdir(parents=True)
    (copy / "state" / "node.json").write_text(json.dumps({"version": 1, "nodeId": "node-1", "epoch": 7}))
    await start(state_dir=copy / "state", root=copy / "root")

    assert await status_of(first) == 9
    assert service.registers[-1].epoch == 8
    assert world.attempt("a1").stop is None


async def test_a_launch_that_the_node_cannot_make_is_lost_not_failed(
    service: ScriptedService, start: Start, world: World
) -> None:
    """An error of the node is no error of the task: it is requeued, with what is known (spec/node.md §9)."""
    world.refuse("a1", "no process to be had")
    await start()
    service.send(task("a1", "anything"))

    report = await service.terminal("a1")

    assert report.transition is Transition.LOST
    assert "no process to be had" in (report.detail or "")


async def test_a_stop_while_waiting_for_the_preparation_gives_back(
    service: ScriptedService, start: Start, world: World
) -> None:
    """Nothing of the attempt ran, and the service is told so; the preparation goes on."""
    await start()
    service.send(task("p", "prepare", kind=AttemptKind.JOB_PREPARATION), task("u", "anything", gate="p"))
    await world.launched("p")
    service.send(StopAttempt(attempt_id="u", reason=StopReason.USER_TERMINATE))

    report = await service.terminal("u")

    assert (report.transition, report.seq) == (Transition.RETURNED, 1)
    await world.exit("p", 0)
    await service.terminal("p")
    assert world.launches == ["p"]


async def test_stops_of_unknown_and_ended_attempts_change_nothing(
    service: ScriptedService, start: Start, world: World
) -> None:
    """The message is committed and forgotten."""
    await start()
    service.send(task("a1", "anything"))
    await world.launched("a1")
    await world.exit("a1", 0)
    await service.terminal("a1")
    service.send(
        StopAttempt(attempt_id="a1", reason=StopReason.USER_TERMINATE),
        StopAttempt(attempt_id="nobody", reason=StopReason.USER_TERMINATE),
        task("a2", "anything"),
    )
    await world.launched("a2")
    await world.exit("a2", 0)

    assert outcome_of(await service.terminal("a2")).exit_code == 0
    assert len(service.reports_of("a1")) == 2


async def test_heartbeats_tell_what_lives_and_how_the_machine_fares(
    service: ScriptedService, start: Start, world: World
) -> None:
    """Live until the terminal report is acknowledged."""
    await start()
    service.send(task("a1", "anything"))
    await world.launched("a1")
    await service.until(lambda: any("a1" in beat.live_attempts for beat in service.heartbeats), "a heartbeat")
    host = service.heartbeats[-1].host
    assert host is not None
    assert 0 < host.memory_used_bytes < host.memory_total_bytes
    assert 0 < host.disk_free_bytes < host.disk_total_bytes

    await world.exit("a1", 0)
    await service.terminal("a1")
    await service.until(lambda: service.heartbeats[-1].live_attempts == (), "the end of it")


@pytest.mark.parametrize("field", ["attempt_id", "job_id", "task_id"])
async def test_an_id_that_could_be_a_path_is_refused(
    field: str, service: ScriptedService, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that comes over a wire names a path."""
    agent = await start()
    service.send(task("a1", "anything").model_copy(update={field: "../../etc"}))

    assert await status_of(agent) == 8
    assert "cannot be a file name" in capsys.readouterr().err


# What keeps an agent from starting: one clear line, and a documented status.


async def test_a_second_agent_on_one_state_directory_is_refused(
    service: ScriptedService, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first one holds the lock."""
    await start()
    await service.registered()

    assert await status_of(await start()) == 5
    assert f"in use by another agent (pid {os.getpid()})" in capsys.readouterr().err


async def test_state_of_a_newer_version_is_refused(
    service: ScriptedService, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Going on could destroy what the newer version knows."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "node.json").write_text(json.dumps({"version": 99, "nodeId": "node-1", "epoch": 1}))

    assert await status_of(await start()) == 6
    assert "layout 99" in capsys.readouterr().err


async def test_a_root_that_cannot_be_made_is_refused(
    service: ScriptedService, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names the path."""
    (tmp_path / "file").touch()

    assert await status_of(await start(root=tmp_path / "file" / "root")) == 7
    assert str(tmp_path / "file" / "root") in capsys.readouterr().err


async def test_another_nodes_state_is_refused(service: ScriptedService, start: Start, tmp_path: Path) -> None:
    """A state directory belongs to one node id."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "node.json").write_text(json.dumps({"version": 1, "nodeId": "other", "epoch": 1}))

    assert await status_of(await start()) == 2


async def test_a_taken_port_is_refused(
    service: ScriptedService, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file server must have its port."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]

        assert await status_of(await start(file_server_port=port)) == 4
    assert f"127.0.0.1:{port}" in capsys.readouterr().err
