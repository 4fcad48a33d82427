"""Files as the service has to do with them, over real HTTP: progress, auto storage, warnings, logs without a node."""

import asyncio
import base64
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from azure.storage.blob import ContainerClient
from pydantic import SecretStr
from yarl import URL

from nodeagent.model.enums import NodeState
from nodeagent.model.protocol import Assignment, Transition
from nodeagent.model.times import http_date, utc_now
from nodeagent.service.app import Service
from nodeagent.service.lifecycle import nodes
from nodeagent.service.store import nodes as node_rows
from tests.integration import azurite as storage
from tests.integration.azurite import Azurite
from tests.integration.protocol_agent import Agent, running

pytest_plugins = ["tests.integration.storage_fixtures"]

TASK: dict[str, Any] = {"id": "t", "commandLine": "true"}
MOVED = {"phase": "downloading", "filesDone": 1, "filesTotal": 3, "bytesDone": 4096, "bytesTotal": 1 << 30}
SIGNATURE = "c2lnbmF0dXJlIHRoYXQgbXVzdCBub3QgYmUgc2hvd24%3D"


@dataclass
class Answer:
    """An answer that has been read."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of it."""
        return dict(orjson.loads(self.content))


@dataclass
class World:
    """A service with one agent that does what the test wants, and a client of its REST API."""

    service: Service
    session: aiohttp.ClientSession
    agent: Agent

    async def ask(self, method: str, path: str, body: object = None, *, query: str = "", **headers: str) -> Answer:
        """Send a request to the Batch API; the path goes out as it stands."""
        url = URL(f"{self.service.url}{path}?api-version=2025-06-01{query}", encoded=True)
        sent = {"Authorization": "Bearer let-me-in"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        data = None if body is None else orjson.dumps(body)
        if data is not None:
            sent["Content-Type"] = "application/json; odata=minimalmetadata"
        async with self.session.request(method, url, data=data, headers=sent) as answer:
            found = {name.lower(): value for name, value in answer.headers.items()}
            return Answer(answer.status, found, await answer.read())

    async def submit(self, **more: object) -> Answer:
        """Add a job, if it is not there, and a task."""
        await self.ask("POST", "/jobs", {"id": "j", "poolInfo": {"poolId": "pool"}})
        answer = await self.ask("POST", "/jobs/j/tasks", TASK | more)
        assert answer.status == 201, answer.content
        return answer

    async def started(self, **more: object) -> Assignment:
        """Add a task and let the agent say that it runs."""
        await self.submit(**more)
        (assignment,) = await self.agent.assignments()
        await self.agent.send(self.agent.report(assignment.attempt_id, Transition.RUNNING))
        return assignment

    async def shown(self) -> dict[str, Any]:
        """Return what "get a task" shows beyond Batch."""
        one = (await self.ask("GET", "/jobs/j/tasks/t")).body.get("nodeagent", {})
        (listed,) = (await self.ask("GET", "/jobs/j/tasks")).body["value"]
        assert listed.get("nodeagent", {}) == one, "the list shows the same"
        return dict(one)

    async def transfers(self) -> list[dict[str, Any]]:
        """Return the list of what the job's tasks transfer."""
        answer = await self.ask("GET", "/nodeagent/v1/jobs/j/transfers")
        assert answer.status == 200
        return list(answer.body["value"])


@asynccontextmanager
async def a_world(state_dir: Path, **more: object) -> AsyncIterator[World]:
    """Run a service and register an agent."""
    async with (
        running(state_dir, bearer_token=SecretStr("let-me-in"), **more) as service,
        aiohttp.ClientSession() as session,
    ):
        agent = Agent(session, service)
        await agent.register()
        yield World(service, session, agent)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Return a world without auto storage."""
    async with a_world(tmp_path) as found:
        yield found


async def test_progress_is_shown_while_it_lasts(world: World) -> None:
    """In the task, in lists and in the job's own list; the node's empty word ends it."""
    attempt_id = (await world.started()).attempt_id
    assert await world.shown() == {}
    assert await world.transfers() == []
    await world.agent.ok("progress", {"transfers": [{"attemptId": attempt_id, **MOVED}]})
    assert await world.shown() == {"transfer": MOVED}
    assert await world.transfers() == [{"taskId": "t", "nodeId": "node", **MOVED}]
    explained = (await world.ask("GET", "/nodeagent/v1/explain/jobs/j/tasks/t")).body["reasons"]
    assert [reason["code"] for reason in explained] == ["Running", "Transferring"]
    selected = await world.ask("GET", "/jobs/j/tasks/t", query="&$select=id,nodeagent")
    assert {name for name in selected.body if not name.startswith("odata")} == {"id", "nodeagent"}
    await world.agent.ok("progress", {"transfers": []})
    assert await world.shown() == {}
    assert (await world.ask("GET", "/nodeagent/v1/jobs/none/transfers")).body["code"] == "JobNotFound"
    refused = await world.ask("GET", "/nodeagent/v1/jobs/j/transfers", authorization="Bearer wrong")
    assert refused.status == 403


@pytest.mark.parametrize("end", ["report", "register", "lease", "terminate"])
async def test_progress_ends_with_what_it_is_about(world: World, end: str) -> None:
    """A terminal report, a new life of the agent, a lost lease, a user's end: nothing is shown of what is over."""
    attempt_id = (await world.started()).attempt_id
    await world.agent.ok("progress", {"transfers": [{"attemptId": attempt_id, **MOVED}]})
    assert await world.shown() == {"transfer": MOVED}
    match end:
        case "report":
            await world.agent.send(world.agent.end(attempt_id))
        case "register":
            world.agent.epoch = 2
            await world.agent.register(liveAttempts=[attempt_id])
        case "lease":
            node = await world.service.database.read(lambda tx: node_rows.by_id(tx, "node"))
            assert node is not None
            await world.service.database.write(lambda tx: nodes.expire_lease(tx, node, utc_now()))
        case _:
            await world.ask("POST", "/jobs/j/tasks/t/terminate")
    assert await world.shown() == {}
    assert await world.transfers() == []


async def test_only_the_node_itself_tells_of_its_transfers(world: World) -> None:
    """A former life is fenced, a stranger must register, and what is said of attempts that are not there is nothing."""
    await world.started()
    status, body = await world.agent.call("progress", {"transfers": [{"attemptId": "x", "phase": "gardening"}]})
    assert (status, body["code"]) == (400, "InvalidRequestBody")
    world.agent.epoch = 2
    await world.agent.register()
    old = Agent(world.session, world.service)
    status, body = await old.call("progress", {"transfers": []})
    assert (status, body["code"]) == (409, "Fenced")
    stranger = Agent(world.session, world.service, id="stranger")
    status, body = await stranger.call("progress", {"transfers": []})
    assert (status, body["code"]) == (409, "NodeNotRegistered")
    await world.agent.ok("progress", {"transfers": [{"attemptId": "nobody", **MOVED}]})
    assert await world.transfers() == []


async def test_a_sas_that_will_not_hold_is_told(world: World) -> None:
    """A header counts the warnings when the task is added, and the task tells them, without the signature."""
    soon = (utc_now() + timedelta(minutes=30)).strftime("%Y-%m-%dT%H:%M:%SZ")
    url = f"https://account.blob.core.windows.net/c/b?sv=2024-01-01&se={soon}&sp=w&sr=b&sig={SIGNATURE}"
    answer = await world.submit(
        resourceFiles=[{"httpUrl": url, "filePath": "x"}], constraints={"maxWallClockTime": "PT1H"}
    )
    assert answer.headers["nodeagent-warnings"] == "2"
    warnings = (await world.shown())["warnings"]
    assert [(item["code"], item["property"]) for item in warnings] == [
        ("SasExpiresBeforeEnd", "resourceFiles[0].httpUrl"),
        ("SasLacksPermission", "resourceFiles[0].httpUrl"),
    ]
    assert soon in warnings[0]["message"]
    assert SIGNATURE not in str(warnings)
    plain = await world.ask("POST", "/jobs/j/tasks", TASK | {"id": "plain"})
    assert "nodeagent-warnings" not in plain.headers


async def test_a_job_tells_of_its_special_tasks(world: World) -> None:
    """Of preparation and release as if they began now; a job that has ended needs nothing any more."""
    url = f"https://account.blob.core.windows.net/c?sv=2024-01-01&se=2025-01-01&sp=rl&sr=c&sig={SIGNATURE}"
    special = {"commandLine": "x", "resourceFiles": [{"storageContainerUrl": url}]}
    job = {"id": "k", "poolInfo": {"poolId": "pool"}, "jobPreparationTask": special, "jobReleaseTask": special}
    assert (await world.ask("POST", "/jobs", job)).headers["nodeagent-warnings"] == "2"
    (listed,) = (await world.ask("GET", "/jobs")).body["value"]
    shown = (await world.ask("GET", "/jobs/k")).body
    assert listed["nodeagent"] == shown["nodeagent"]
    assert [item["property"] for item in shown["nodeagent"]["warnings"]] == [
        "jobPreparationTask.resourceFiles[0].storageContainerUrl",
        "jobReleaseTask.resourceFiles[0].storageContainerUrl",
    ]
    assert SIGNATURE not in str(shown["nodeagent"])
    await world.ask("POST", "/jobs/k/terminate")
    ended = (await world.ask("GET", "/jobs/k")).body
    assert ended["state"] == "completed"
    assert "nodeagent" not in ended


async def test_auto_storage_that_is_not_there_is_refused_by_its_setting(world: World) -> None:
    """For a task, one of a collection, and the tasks of a job."""
    files = {"resourceFiles": [{"autoStorageContainerName": "input"}]}
    await world.submit(id="other")
    answer = await world.ask("POST", "/jobs/j/tasks", TASK | files)
    assert (answer.status, answer.body["code"]) == (400, "InvalidPropertyValue")
    values = {item["key"]: item["value"] for item in answer.body["values"]}
    assert values["PropertyName"] == "resourceFiles[0].autoStorageContainerName"
    assert "auto_storage_url" in values["Reason"]
    collection = await world.ask("POST", "/jobs/j/addtaskcollection", {"value": [TASK | files, TASK | {"id": "u"}]})
    assert [item["status"] for item in collection.body["value"]] == ["clienterror", "success"]
    job = {"id": "k", "poolInfo": {"poolId": "pool"}, "jobPreparationTask": {"commandLine": "x", **files}}
    refused = await world.ask("POST", "/jobs", job)
    named = {item["key"]: item["value"] for item in refused.body["values"]}["PropertyName"]
    assert named == "jobPreparationTask.resourceFiles[0].autoStorageContainerName"


async def test_auto_storage_becomes_a_url_that_opens_the_container(tmp_path: Path, azurite: Azurite) -> None:
    """The node gets a SAS that lists and reads there and cannot write; neither it nor the key is ever stored."""
    container = azurite.container("auto-input")
    container.put("a/b.txt", b"here")
    key = SecretStr(storage.KEY)
    async with a_world(tmp_path, auto_storage_url=azurite.endpoint, auto_storage_key=key) as world:
        await world.submit(resourceFiles=[{"autoStorageContainerName": "auto-input", "filePath": "in"}])
        (first,) = await world.agent.assignments()
        (file,) = first.work.resource_files
        assert (file.auto_storage_container_name, file.file_path) == (None, "in")
        url = file.storage_container_url or ""
        assert url.startswith(f"{container.url}?")

        def look() -> tuple[list[str], bytes, str]:
            with ContainerClient.from_container_url(url) as client:
                names = [str(name) for name in client.list_blob_names()]
                content = bytes(client.download_blob("a/b.txt").readall())
                with pytest.raises(Exception, match="AuthorizationPermissionMismatch") as refused:
                    client.upload_blob("new", b"")
                return names, content, str(refused.value)

        names, content, _ = await asyncio.to_thread(look)
        assert (names, content) == (["a/b.txt"], b"here")
        # a preparation and a release have files as well
        special = {"commandLine": "x", "resourceFiles": [{"autoStorageContainerName": "auto-input"}]}
        job = {"id": "k", "poolInfo": {"poolId": "pool"}, "jobPreparationTask": special, "jobReleaseTask": special}
        assert (await world.ask("POST", "/jobs", job)).status == 201
        assert (await world.ask("POST", "/jobs/k/tasks", TASK)).status == 201
        found = [item for item in await world.agent.assignments() if item.task_id == "jobpreparation"]
        assert (found[0].work.resource_files[0].storage_container_url or "").startswith(f"{container.url}?")
        shown = (await world.ask("GET", "/jobs/j/tasks/t")).body["resourceFiles"]
        assert shown == [{"autoStorageContainerName": "auto-input", "filePath": "in"}]
    database = sqlite3.connect(tmp_path / "service.db")
    stored = "\n".join(database.iterdump())
    database.close()
    assert "auto-input" in stored
    for secret in ("sig=", storage.KEY):
        assert secret not in stored
        assert secret not in (tmp_path / "events.jsonl").read_text()


def log(name: str, text: bytes, size: int | None = None) -> dict[str, Any]:
    """Return a log as an agent reports it."""
    tail = base64.b64encode(text).decode()
    return {"name": name, "size": len(text) if size is None else size, "modified": utc_now(), "tail": tail}


async def ended(world: World, *logs: dict[str, Any]) -> None:
    """Run a task to its end on a node whose files nobody can ask for: its address answers nothing."""
    attempt_id = (await world.started()).attempt_id
    assert await world.agent.send(world.agent.end(attempt_id, logs=logs)) == ["applied"]


FILES = "/jobs/j/tasks/t/files"


@pytest.mark.parametrize("node", ["silent", "unknown", "gone"])
async def test_logs_are_read_when_the_node_is_not_there(world: World, node: str) -> None:
    """Content, ranges, headers, conditions and the list, whatever has become of the node."""
    await ended(world, log("stdout.txt", b"0123456789"), log("stderr.txt", b"the end", size=1007))
    if node == "unknown":
        row = await world.service.database.read(lambda tx: node_rows.by_id(tx, "node"))
        assert row is not None
        await world.service.database.write(lambda tx: nodes.expire_lease(tx, row, utc_now()))
        shown = (await world.ask("GET", "/pools/pool/nodes/node")).body
        assert shown["state"] == NodeState.UNKNOWN
    if node == "gone":
        assert (await world.ask("DELETE", "/pools/pool")).status == 202
        assert (await world.ask("GET", "/pools/pool/nodes/node")).status == 404
    whole = await world.ask("GET", f"{FILES}/stdout.txt")
    assert (whole.status, whole.content) == (200, b"0123456789")
    assert (whole.headers["nodeagent-kept"], whole.headers["content-type"]) == ("whole", "text/plain")
    assert whole.headers["ocp-batch-file-isdirectory"] == "False"
    part = await world.ask("GET", f"{FILES}/stdout.txt", ocp_range="bytes=2-4")
    assert (part.status, part.content) == (200, b"234")
    assert (await world.ask("GET", f"{FILES}/stdout.txt", ocp_range="bytes=8-")).content == b"89"
    assert (await world.ask("GET", f"{FILES}/stdout.txt", ocp_range="bytes=10-")).status == 416
    tail = await world.ask("GET", f"{FILES}/stderr.txt")
    assert tail.content == b"[nodeagent: the first 1000 bytes are not kept]\nthe end"
    assert tail.headers["nodeagent-kept"] == "tail"
    head = await world.ask("HEAD", f"{FILES}/stderr.txt")
    assert (head.status, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(tail.content)
    later = http_date(utc_now() + timedelta(hours=1))
    assert (await world.ask("GET", f"{FILES}/stdout.txt", if_modified_since=later)).status == 304
    listed = (await world.ask("GET", FILES)).body["value"]
    assert [(item["name"], item["properties"]["contentLength"]) for item in listed] == [
        ("stderr.txt", str(len(tail.content))),
        ("stdout.txt", "10"),
    ]
    assert listed[1]["url"].endswith(f"{FILES}/stdout.txt")
    chosen = await world.ask("GET", FILES, query="&$filter=startswith(name,'stdo')&recursive=true")
    assert [item["name"] for item in chosen.body["value"]] == ["stdout.txt"]
    other = await world.ask("GET", f"{FILES}/wd/data.txt")
    assert other.status == 409
    assert other.body["code"] == ("TaskFilesUnavailable" if node == "gone" else "NodeNotReady")
    assert (await world.ask("DELETE", f"{FILES}/stdout.txt")).status == 409


async def test_without_kept_logs_the_node_is_what_is_told_of(world: World) -> None:
    """A task that wrote nothing has nothing to stand in for its files."""
    await ended(world)
    answer = await world.ask("GET", f"{FILES}/stdout.txt")
    assert (answer.status, answer.body["code"]) == (409, "NodeNotReady")
    assert (await world.ask("GET", FILES)).status == 409
