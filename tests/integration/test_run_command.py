"""`nodeagent run` as a person uses it: the real command, real agents, real tasks."""

import asyncio
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from aiohttp import web

from tests.integration.command_line import (
    ended,
    job_text,
    kill_processes_of,
    line_with,
    nodeagent,
    processes_of,
    shell,
    started,
    until,
    until_gone,
)

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Give the state folder of the run; the command makes it."""
    yield tmp_path / "state"
    kill_processes_of(tmp_path)


def job_file(tmp_path: Path, body: dict[str, object]) -> Path:
    """Write a job file and return its path."""
    path = tmp_path / "job.json"
    path.write_text(json.dumps(body))
    return path


async def test_the_example_ends_with_a_report(folder: Path) -> None:
    """The demo prepares, runs 24 tasks of which one fails once, and its release writes a page that is named."""
    job = EXAMPLES / "stdlib-report" / "job.json"
    status, out, err = await nodeagent("run", job, "--json", "--slots=2", f"--state-dir={folder}")
    assert status == 0, err
    outcome = json.loads(out)
    assert [task["result"] for task in outcome["tasks"]] == ["success"] * 24
    assert {task["id"]: task["retryCount"] for task in outcome["tasks"] if task["retryCount"]} == {"shard-07": 1}
    assert [row["exitCode"] for row in (*outcome["preparation"], *outcome["release"])] == [0, 0]
    report = Path(outcome["nodes"]["node-1"]) / "shared" / "stdlib-report" / "report.html"
    assert report.as_uri() in outcome["release"][0]["stdoutTail"]
    page = report.read_text()
    assert page.count("<svg") == 7
    assert "shard 7 failed here and was retried" in page
    assert "shard-07: retry 1 on node-1" in err
    await until_gone(folder)


async def test_the_yaml_example_prints_a_table(folder: Path) -> None:
    """Piped output is plain lines and a table; the release's output and the files' place are told."""
    status, out, err = await nodeagent("run", EXAMPLES / "word-count" / "job.yaml", f"--state-dir={folder}")
    assert (status, err) == (0, "")
    assert "\x1b" not in out
    row = next(line for line in out.splitlines() if line.startswith("gnu "))
    assert row.split()[:4] == ["gnu", "success", "0", "0"]
    assert row.endswith("workitems/word-count/job-1/gnu")
    assert "GPL-3" in out
    assert out.endswith(f"files of node-1: {folder}/nodes/node-1/root\n")


async def test_failures_are_told_with_their_last_words(tmp_path: Path, folder: Path) -> None:
    """A failed task is exit status 1, with failureInfo and the last lines of stderr; others are not disturbed."""
    script = "echo first >&2; echo last words >&2; exit 7"
    body = job_text("fails", [("good", "true"), ("bad", script)])
    status, out, err = await nodeagent("run", job_file(tmp_path, body), f"--state-dir={folder}")
    assert status == 1, err
    assert "bad failed: FailureExitCode" in out
    assert "    last words" in out
    assert "job fails: 1 of 2 tasks succeeded" in out


async def test_tasks_find_the_folder_of_the_job_file(tmp_path: Path, folder: Path) -> None:
    """NODEAGENT_JOB_DIR leads to files beside the job file."""
    (tmp_path / "beside.txt").write_text("found me")
    body = job_text("beside", [("t", 'cat "$NODEAGENT_JOB_DIR/beside.txt"')])
    status, _, err = await nodeagent("run", job_file(tmp_path, body), f"--state-dir={folder}")
    assert status == 0, err
    assert (folder / "nodes/node-1/root/workitems/beside/job-1/t/stdout.txt").read_text() == "found me"


async def test_a_preparation_that_fails_everywhere_ends_the_run(tmp_path: Path, folder: Path) -> None:
    """Tasks that no node may run are not waited for: the run says why, and its status is 1."""
    preparation = {"commandLine": shell("echo no input >&2; exit 9")}
    body = job_text("unprepared", [("t", "true")], jobPreparationTask=preparation)
    status, out, err = await nodeagent("run", job_file(tmp_path, body), f"--state-dir={folder}")
    assert status == 1, err
    assert "problem: the job preparation task failed on every node" in out
    assert "    no input" in out
    await until_gone(folder)


async def test_a_terminal_shows_live_progress(tmp_path: Path, folder: Path) -> None:
    """On a terminal a line is drawn over and over: counts, slots, preparation; retries and failures stay above it."""
    once = "[ -e $AZ_BATCH_NODE_SHARED_DIR/again ] || { touch $AZ_BATCH_NODE_SHARED_DIR/again; exit 1; }; sleep 0.5"
    body = job_text(
        "shown",
        [("t", once)],
        constraints={"maxTaskRetryCount": 1},
        jobPreparationTask={"commandLine": shell("sleep 0.5")},
    )
    ours, theirs = os.openpty()
    path = job_file(tmp_path, body)
    try:
        async with started("run", path, "--slots=2", f"--state-dir={folder}", stdout=theirs) as process:
            os.close(theirs)
            shown = await asyncio.to_thread(_all_of, ours)
            async with asyncio.timeout(30):
                status = await process.wait()
    finally:
        os.close(ours)
    assert status == 0, shown
    assert "\x1b[" in shown
    for part in ("prep 0/1", "prep 1/1", "running 1", "slots 1/2", "t: retry 1 on node-1", "retried 1", "1/1"):
        assert part in shown, part


def _all_of(terminal: int) -> str:
    """Read what is written to a terminal until nobody has it open any more."""
    data = b""
    while True:
        try:
            data += os.read(terminal, 65536)
        except OSError:  # EIO: the other side is closed
            return data.decode("utf-8", "replace")


async def test_several_nodes_each_prepare_and_release(tmp_path: Path, folder: Path) -> None:
    """Two nodes of one slot share the tasks, and each runs preparation and release."""
    body = job_text(
        "spread",
        [(f"t{number}", "sleep 0.3") for number in range(6)],
        jobPreparationTask={"commandLine": "true"},
        jobReleaseTask={"commandLine": "true"},
    )
    path = job_file(tmp_path, body)
    status, out, err = await nodeagent("run", path, "--nodes=2", "--slots=1", "--json", f"--state-dir={folder}")
    assert status == 0, err
    outcome = json.loads(out)
    assert {task["nodeId"] for task in outcome["tasks"]} == {"node-1", "node-2"}
    assert [row["nodeId"] for row in outcome["release"]] == ["node-1", "node-2"]


async def test_ephemeral_runs_leave_nothing(tmp_path: Path) -> None:
    """With --ephemeral neither a file nor a process remains."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    path = job_file(tmp_path, job_text("gone", [("t", "sleep 1000 & echo left a child")]))
    status, out, err = await nodeagent("run", path, "--ephemeral", environment={"TMPDIR": str(temporary)})
    assert status == 0, err
    assert "files: removed (--ephemeral)" in out
    assert list(temporary.iterdir()) == []
    await until_gone(temporary)


def _long_job(release: str, task: str = "touch $AZ_BATCH_NODE_SHARED_DIR/up; exec sleep 1000") -> dict[str, object]:
    return job_text(
        "long",
        [("sleeper", task), ("waiting", "true")],
        jobPreparationTask={"commandLine": shell("sleep 1001 & true")},
        jobReleaseTask={"commandLine": shell(release)},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_one_interrupt_ends_the_job_and_releases_it(tmp_path: Path, folder: Path, number: signal.Signals) -> None:
    """Ctrl-C terminates the job, its release runs, the status is 130, and no process is left, detached ones neither."""
    shared = folder / "nodes/node-1/root/shared"
    path = job_file(tmp_path, _long_job("touch $AZ_BATCH_NODE_SHARED_DIR/released"))
    async with started("run", path, "--slots=1", f"--state-dir={folder}") as process:
        await line_with(process, "sleeper: started")
        await until((shared / "up").exists, "the task runs")
        process.send_signal(number)
        status, out, err = await ended(process)
    assert status == 130, err
    assert (shared / "released").exists()
    assert "interrupted" in out
    assert "sleeper failed: TaskEnded" in out
    await until_gone(folder)


@pytest.mark.parametrize("boundary", ["auto", "process_group"])
async def test_a_second_interrupt_kills_at_once(tmp_path: Path, folder: Path, boundary: str) -> None:
    """Ctrl-C twice waits for nobody: a release that hangs and a task that ignores SIGTERM are killed."""
    shared = folder / "nodes/node-1/root/shared"
    stubborn = 'trap "" TERM; touch $AZ_BATCH_NODE_SHARED_DIR/up; while :; do sleep 1; done'
    path = job_file(tmp_path, _long_job("exec sleep 1002", stubborn))
    environment = {"NODEAGENT_AGENT_BOUNDARY": boundary}
    async with started("run", path, "--slots=1", f"--state-dir={folder}", environment=environment) as process:
        await line_with(process, "sleeper: started")
        await until((shared / "up").exists, "the task runs")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert b"once more kills" in await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        status, _, err = await ended(process, seconds=8)
    assert status == 130, err
    assert "killed" in err
    await until_gone(folder)


async def test_agents_end_with_a_killed_run(tmp_path: Path, folder: Path) -> None:
    """After kill -9 of `run` no agent lives on; tasks do, and `up` on the folder ends them when it is ended."""
    shared = folder / "nodes/node-1/root/shared"
    path = job_file(tmp_path, _long_job("true"))
    async with started("run", path, "--slots=1", f"--state-dir={folder}") as process:
        await until((shared / "up").exists, "the task runs")
        process.kill()
        await ended(process)
    await until(lambda: not any("nodeagent agent" in line for line in processes_of(folder)), "the agent ends")
    assert any("sleep 1000" in line for line in processes_of(folder))
    async with started("up", "--port=0", "--json", "--slots=1", f"--state-dir={folder}") as process:
        await line_with(process, "endpoint")
        process.send_signal(signal.SIGINT)
        status, _, err = await ended(process)
    assert status == 0, err
    await until_gone(folder)


async def test_a_bad_job_file_is_told_by_place_and_remedy(tmp_path: Path, folder: Path) -> None:
    """Status 2, and each line names file, line, column, property and what would be right; nothing is started."""
    path = tmp_path / "job.yaml"
    path.write_text("id: j\ntasks:\n  - id: t\n    comandLine: x\n    commandLine: 'true'\n")
    status, out, err = await nodeagent("run", path, f"--state-dir={folder}")
    assert (status, out) == (2, "")
    assert err == f"{path}:4:5: tasks[0].comandLine: is no property here; did you mean 'commandLine'?\n"
    assert not any(entry.name == "state" for entry in path.parent.iterdir())


async def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    """A state folder below a file is status 7."""
    (tmp_path / "file").touch()
    path = job_file(tmp_path, job_text("j", [("t", "true")]))
    status, _, err = await nodeagent("run", path, f"--state-dir={tmp_path}/file/state")
    assert status == 7
    assert err.count("\n") == 1
    assert f"{tmp_path}/file/state" in err
    assert os.fspath(tmp_path) in err


async def test_a_folder_is_for_one_run(tmp_path: Path, folder: Path) -> None:
    """A second run of the same job on a folder is refused with one line, and the first run's files stay."""
    path = job_file(tmp_path, job_text("once", [("t", "echo first")]))
    assert (await nodeagent("run", path, f"--state-dir={folder}"))[0] == 0
    status, _, err = await nodeagent("run", path, f"--state-dir={folder}")
    assert status == 2
    assert err == f"nodeagent: {folder} holds a run of job 'once' already: name another\n"
    assert (folder / "nodes/node-1/root/workitems/once/job-1/t/stdout.txt").read_text() == "first\n"
    await until_gone(folder)


async def test_loose_lets_unsupported_properties_pass(tmp_path: Path, folder: Path) -> None:
    """Without --loose a property that is not supported is refused by name; with it there is a warning."""
    body = job_text("loose", [("t", "true")])
    body["tasks"][0]["multiInstanceSettings"] = {"coordinationCommandLine": "x"}  # type: ignore[index]
    path = job_file(tmp_path, body)
    status, _, err = await nodeagent("run", path, f"--state-dir={folder}")
    assert status == 2
    assert "tasks[0].multiInstanceSettings: is not supported" in err
    status, _, err = await nodeagent("run", path, "--loose", f"--state-dir={folder}")
    assert status == 0, err
    assert "warning" in err


async def test_what_a_sas_will_do_and_what_is_downloaded_is_told(tmp_path: Path, folder: Path) -> None:
    """The warning comes first, with its line; a long download has a line of its own; the signature is nowhere."""
    signature = "c2lnbmF0dXJlIHRoYXQgbXVzdCBub3QgYmUgc2hvd24="
    told, asked = asyncio.Event(), asyncio.Event()

    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(2 << 20)})
        await response.prepare(request)
        await response.write(bytes(1 << 20))
        asked.set()
        async with asyncio.timeout(30):
            await told.wait()
        await response.write(bytes(1 << 20))
        return response

    app = web.Application()
    app.router.add_get("/data", slowly)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        sas = f"sv=2024-01-01&sr=b&sp=r&se=2024-06-01&sig={quote(signature, safe='')}"
        files = [{"httpUrl": f"http://127.0.0.1:{runner.addresses[0][1]}/data?{sas}", "filePath": "data"}]
        task = {"id": "t", "commandLine": shell("wc -c data"), "resourceFiles": files}
        job = job_file(tmp_path, {"id": "slow", "tasks": [task]})
        async with started("run", job, "--slots=1", f"--state-dir={folder}") as process:
            line = await line_with(process, "t: downloading")
            assert re.search(r"t: downloading [0-9.]+ [KM]iB", line), "what has come is counted while it comes"
            assert asked.is_set()
            told.set()
            status, out, err = await ended(process)
    finally:
        await runner.cleanup()
    assert status == 0, out + err
    message = "tasks[0].resourceFiles[0].httpUrl: the SAS expired at 2024-06-01T00:00:00Z"
    assert err.startswith(f"nodeagent: warning: {job}:1:")
    assert message in err.splitlines()[0]
    logs = [folder / "service.log", folder / "nodes" / "node-1" / "agent.log"]
    for text in (out, err, *(log.read_text() for log in logs)):
        assert signature not in text
        assert quote(signature, safe="") not in text
