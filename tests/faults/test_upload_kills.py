"""Kill -9 at each named step of an upload, then a second life: every blob is whole, none is sent twice without need."""

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nodeagent.agent import failpoints
from nodeagent.transfer.output_files import CHANGED
from nodeagent.transfer.upload_plan import FileState
from tests.integration.azurite import Azurite, Container
from tests.integration.output_files import Task, rule
from tests.integration.storage_proxy import Proxy, running_proxy

pytest_plugins = ["tests.integration.storage_fixtures"]

MIB = 1 << 20
POINTS = [name for name in failpoints.NAMES if "_upload_" in name]
LIFE = """
import asyncio, json, sys
from pathlib import Path
from nodeagent.agent import failpoints
from nodeagent.agent.database import Database
from nodeagent.agent.upload_ledger import UploadLedgers
from nodeagent.model.files import OutputFile
from nodeagent.model.protocol import TransferPhase
from nodeagent.transfer.base import Meter, TransferSettings
from nodeagent.transfer.output_files import OutputFiles
from nodeagent.transfer.upload_plan import Uploads

async def main(root, database, rules):
    settings = TransferSettings(transfers=2, range_bytes=1 << 20)
    database = Database(database)
    await database.open()
    rules = tuple(OutputFile.from_json(rule) for rule in rules)
    uploads = Uploads("a1-1", rules, 0, root, root / "wd", {}, None, None)
    async def no_token(identity):
        raise AssertionError
    async with OutputFiles(settings, no_token, hit=failpoints.hit).connected() as output_files:
        ledger = UploadLedgers(database).of("a1-1")
        failure = await output_files.upload(uploads, ledger, Meter("a1", TransferPhase.UPLOADING))
    await database.close()
    print("null" if failure is None else failure.to_json())

root, database, *rules = sys.argv[1:]
asyncio.run(main(Path(root), Path(database), rules))
"""


@pytest.fixture
async def proxy(azurite: Azurite) -> AsyncIterator[Proxy]:
    """A proxy before Azurite, which counts."""
    async with running_proxy(azurite.endpoint) as running:
        yield running


async def live(task: Task, point: str = "") -> tuple[int, str]:
    """Upload in a process of its own, which may be killed at a point; return its exit code and what it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        LIFE,
        str(task.root),
        str(task.root.parent / f"{task.root.name}-agent.db"),
        *(rule.to_json() for rule in task.rules),
        env={**os.environ, failpoints.VARIABLE: point},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, complained = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode in (0, -signal.SIGKILL), complained.decode()
    return process.returncode or 0, said.decode()


@pytest.mark.parametrize("point", POINTS)
async def test_after_a_kill_the_second_life_uploads_the_rest(
    point: str, tmp_path: Path, container: Container, proxy: Proxy
) -> None:
    """What is committed stays as it is, blocks that are there are not sent again, and nothing is looked for anew."""
    task = Task(tmp_path / "task")
    contents = {"large": os.urandom(5 * MIB), "small": b"small", "empty": b""}
    for name, content in contents.items():
        task.file(name, content)
    task.rules = [rule("*", proxy.through(container.url_with_sas("rcw")))]
    assert (await live(task, point))[0] == -signal.SIGKILL
    sent = {asked.query["blockid"] for asked in proxy.asked if asked.kind == "Put Block"}
    task.file("later", "not of the plan")

    assert await live(task) == (0, "null\n")
    assert container.names() == sorted(contents)
    for name, content in contents.items():
        assert hashlib.sha256(container.content(name)).digest() == hashlib.sha256(content).digest(), name
    bodies: dict[tuple[str, str], set[bytes]] = {}
    for asked in proxy.asked:
        if asked.kind in ("Put Blob", "Put Block"):
            bodies.setdefault((asked.path, asked.query.get("blockid", "")), set()).add(asked.body)
    assert all(len(found) == 1 for found in bodies.values()), "something was sent twice with another content"
    assert proxy.count("Put Block") <= 5 + 2, "only what was on its way when the kill came is sent again"
    assert len(sent | {asked.query["blockid"] for asked in proxy.asked if asked.kind == "Put Block"}) == 5
    planned = await task.planned()
    assert planned is not None
    assert [file.state for file in planned] == [FileState.DONE] * 3

    before = len(proxy.asked)
    assert await live(task) == (0, "null\n")
    assert len(proxy.asked) == before, "recovery run twice changes nothing"


@pytest.mark.parametrize("point", ["after_upload_begun", "after_upload_block", "before_upload_commit"])
async def test_what_has_changed_meanwhile_is_not_uploaded_with_another_content(
    point: str, tmp_path: Path, container: Container, proxy: Proxy
) -> None:
    """The file was begun: it fails, by name, and the second life says so each time it is asked."""
    task = Task(tmp_path / "task")
    path = task.file("large", os.urandom(3 * MIB))
    task.rules = [rule("*", proxy.through(container.url_with_sas("rcw")))]
    assert (await live(task, point))[0] == -signal.SIGKILL
    before = len(proxy.asked)
    path.write_bytes(os.urandom(3 * MIB))
    for _ in range(2):
        code, said = await live(task)
        assert code == 0
        assert json.loads(said)["code"] == "FileUploadMiscError"
        assert CHANGED in said
    assert len(proxy.asked) == before
    assert container.names() == []
    assert CHANGED in task.log("fileuploaderr.txt")


async def test_what_was_not_begun_is_uploaded_as_it_is_by_now(
    tmp_path: Path, container: Container, proxy: Proxy
) -> None:
    """No byte of it has gone out: there is nothing that it could contradict."""
    task = Task(tmp_path / "task")
    path = task.file("a", "old")
    task.rules = [rule("*", proxy.through(container.url_with_sas("cw")))]
    assert (await live(task, "after_upload_plan"))[0] == -signal.SIGKILL
    path.write_text("new")
    assert await live(task) == (0, "null\n")
    assert container.content("a") == b"new"


async def test_a_blob_that_was_committed_before_the_kill_is_not_made_another(
    tmp_path: Path, container: Container, proxy: Proxy
) -> None:
    """The ledger does not know that it is there: the same content may go again, another one may not."""
    task = Task(tmp_path / "task")
    path = task.file("a", "old")
    task.rules = [rule("*", proxy.through(container.url_with_sas("cw")))]
    assert (await live(task, "after_upload_commit"))[0] == -signal.SIGKILL
    path.write_text("new")
    _, said = await live(task)
    assert CHANGED in said
    assert container.content("a") == b"old"
