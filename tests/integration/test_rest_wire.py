"""What the SDK does not show: exact statuses, headers, bodies, odd clients, and calls that are wrong."""

import asyncio
import base64
import gzip
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from pydantic import SecretStr
from yarl import URL

from nodeagent.model.times import http_date, parse_time, utc_now
from nodeagent.service.app import Service
from nodeagent.service.rest import dispatch
from nodeagent.service.rest.routes import OPERATIONS
from nodeagent.service.rest.sharedkey import SignedRequest, canonical_strings, signature
from nodeagent.service.settings import ServiceSettings
from tests.integration.scripted_node import ScriptedNode

VERSION = "2025-06-01"
KEY = base64.b64encode(b"the key of a test's account").decode()
JSON = "application/json; odata=minimalmetadata"
JOB: dict[str, Any] = {"id": "j", "poolInfo": {"poolId": "local"}}
TASK: dict[str, Any] = {"id": "t", "commandLine": "/bin/true"}


@dataclass
class Answer:
    """An HTTP answer that has been read."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the body."""
        return dict(orjson.loads(self.content))

    @property
    def code(self) -> str:
        """The code of a refusal."""
        return str(self.body["code"])


@dataclass
class Wire:
    """Calls to a service, with nothing between test and HTTP."""

    url: str
    session: aiohttp.ClientSession
    service: Service
    headers: dict[str, str] = field(default_factory=lambda: {"Authorization": "Bearer let-me-in"})

    async def call(
        self, method: str, path: str, body: object = None, *, query: str | None = None, **headers: str
    ) -> Answer:
        """Send a request: the path goes out as it stands, names of headers have hyphens for underscores."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        data = None
        if body is not None:
            data = BytesIO(body if isinstance(body, bytes) else orjson.dumps(body))
            given.setdefault("Content-Type", JSON)
        parameters = f"api-version={VERSION}" + (f"&{query}" if query else "")
        url = URL(f"{self.url}{path}?{parameters}", encoded=True)
        async with self.session.request(method, url, data=data, headers=self.headers | given) as response:
            found = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, found, await response.read())


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """Return a way to call a fresh service that has no nodes."""
    settings = ServiceSettings(
        port=0, key=SecretStr(KEY), bearer_token=SecretStr("let-me-in"), state_dir=tmp_path, synchronous="normal"
    )
    async with Service(settings) as service, aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session:
        yield Wire(service.url, session, service)


async def test_create_answers_with_the_place_and_version_of_the_entity(wire: Wire) -> None:
    """201 without body; Location, DataServiceId, ETag without quotes, Last-Modified."""
    answer = await wire.call("POST", "/jobs", JOB)
    assert (answer.status, answer.content) == (201, b"")
    assert answer.headers["location"] == answer.headers["dataserviceid"] == f"{wire.url}/jobs/j"
    assert answer.headers["content-length"] == "0"
    assert answer.headers["dataserviceversion"] == "3.0"
    uuid.UUID(answer.headers["request-id"])
    got = await wire.call("GET", "/jobs/J")
    assert got.headers["content-type"] == JSON
    assert got.headers["etag"] == answer.headers["etag"] == got.body["eTag"]
    assert len(got.headers["etag"]) == 17
    assert got.headers["etag"].startswith("0x8D")
    assert got.headers["last-modified"] == http_date(parse_time(got.body["lastModified"]))
    assert next(iter(got.body)) == "odata.metadata"
    assert got.body["odata.metadata"] == f"{wire.url}/$metadata#jobs/@Element"
    assert got.body["id"] == "j"
    assert got.body["url"] == f"{wire.url}/jobs/j"
    assert "retry-after" not in got.headers


async def test_the_client_request_id_comes_back_if_it_is_asked_for(wire: Wire) -> None:
    """In the name that py uses and in the one that JavaScript uses; not when `false` is sent."""
    for name in ("client_request_id", "x_ms_client_request_id"):
        headers = {name: "abc", "return_client_request_id": "true"}
        assert (await wire.call("GET", "/jobs", **headers)).headers["client-request-id"] == "abc"
        headers["return_client_request_id"] = "false"
        assert "client-request-id" not in (await wire.call("GET", "/jobs", **headers)).headers


async def test_every_verb_of_a_job_has_its_own_success_status(wire: Wire) -> None:
    """Clients take any other 2xx for a failure."""
    await wire.call("POST", "/jobs", JOB)
    steps: list[tuple[str, str, object, int]] = [
        ("GET", "/jobs/j", None, 200),
        ("PATCH", "/jobs/j", {"priority": 1}, 200),
        ("PUT", "/jobs/j", {"poolInfo": {"poolId": "local"}}, 200),
        ("POST", "/jobs/j/disable", {"disableTasks": "Wait"}, 202),
        ("POST", "/jobs/j/enable", None, 202),
        ("POST", "/jobs/j/tasks", TASK, 201),
        ("POST", "/jobs/j/addtaskcollection", {"value": [TASK | {"id": "u"}]}, 200),
        ("GET", "/jobs/j/tasks/t/subtasksinfo", None, 200),
        ("PUT", "/jobs/j/tasks/t", {"constraints": {}}, 200),
        ("POST", "/jobs/j/tasks/t/terminate", None, 204),
        ("POST", "/jobs/j/tasks/t/reactivate", None, 204),
        ("DELETE", "/jobs/j/tasks/t", None, 200),
        ("GET", "/jobs/j/taskcounts", None, 200),
        ("POST", "/jobs/j/terminate", {}, 202),
        ("DELETE", "/jobs/j", None, 202),
    ]
    etags = []
    for method, path, body, status in steps:
        answer = await wire.call(method, path, body)
        assert answer.status == status, (method, path, answer.content)
        etags.append(answer.headers.get("etag"))
        if method == "DELETE":
            assert set(answer.headers) - {"date", "server", "content-length"} == {"request-id", "dataserviceversion"}
    assert len({tag for tag in etags[:5] if tag}) == 5
    assert (await wire.call("GET", "/jobs/j")).code == "JobNotFound"


async def test_terminate_without_a_body_is_a_users_wish(wire: Wire) -> None:
    """The default reason; the job has no tasks, so it is completed at once."""
    await wire.call("POST", "/jobs", JOB)
    assert (await wire.call("POST", "/jobs/j/terminate")).status == 202
    body = (await wire.call("GET", "/jobs/j")).body
    assert (body["state"], body["executionInfo"]["terminateReason"]) == ("completed", "UserTerminate")
    assert (await wire.call("POST", "/jobs/j/terminate")).code == "JobCompleted"


async def test_refusals_have_batchs_body(wire: Wire) -> None:
    """Message object, request id inside and outside, values as pairs; HEAD has no body at all."""
    answer = await wire.call("GET", "/pools/none")
    assert answer.status == 404
    assert answer.headers["content-type"] == JSON
    assert answer.body["message"]["lang"] == "en-US"
    text, request_id, time = answer.body["message"]["value"].split("\n")
    assert text == "The specified pool does not exist."
    assert request_id == f"RequestId:{answer.headers['request-id']}"
    parse_time(time.removeprefix("Time:"))
    head = await wire.call("HEAD", "/pools/none")
    assert (head.status, head.content) == (404, b"")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nonsense", 404, "ResourceNotFound"),
        ("GET", "/", 404, "ResourceNotFound"),
        ("PUT", "/jobs", 405, "UnsupportedHttpVerb"),
        ("GET", "/jobs/none", 404, "JobNotFound"),
        ("DELETE", "/jobs/none", 404, "JobNotFound"),
        ("GET", "/jobs/none/tasks", 404, "JobNotFound"),
        ("GET", "/jobs/none/taskcounts", 404, "JobNotFound"),
        ("GET", "/jobs/none/jobpreparationandreleasetaskstatus", 404, "JobNotFound"),
        ("GET", "/jobs/none/tasks/t/files/stdout.txt", 404, "JobNotFound"),
        ("GET", "/pools/none/nodes", 404, "PoolNotFound"),
        ("GET", "/pools/none/nodes/n", 404, "PoolNotFound"),
        ("GET", "/pools/none/nodes/n/files", 404, "PoolNotFound"),
        ("GET", "/jobs/%E2%98%83%00", 404, "JobNotFound"),
        ("GET", "/jobs/%ff", 404, "JobNotFound"),
        ("GET", "/jobs/%zz", 404, "JobNotFound"),
    ],
)
async def test_what_is_not_there(wire: Wire, method: str, path: str, status: int, code: str) -> None:
    """Each level of a path has its own code; odd bytes are just ids of nothing."""
    answer = await wire.call(method, path)
    assert (answer.status, answer.code) == (status, code)


async def test_every_operation_of_batch_is_served_or_refused_by_name(wire: Wire) -> None:
    """No operation of the table gives a 5xx, or "not found" for its path; those not built say their name."""
    for operation in OPERATIONS:
        path = operation.path.replace("{path...}", "x")
        for name in ("pool_id", "node_id", "job_id", "task_id", "schedule_id", "application_id", "user_name", "name"):
            path = path.replace(f"{{{name}}}", "x")
        answer = await wire.call(operation.method, path)
        assert answer.status < 500, operation
        if operation.handler is None and operation.method != "HEAD":
            assert (answer.status, answer.code) == (400, "NotImplemented")
            assert operation.name in answer.body["message"]["value"]
        elif operation.method != "HEAD" and answer.status != 200:
            assert answer.code not in ("ResourceNotFound", "NotImplemented"), operation


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "InvalidRequestBody"),
        (b"{", "InvalidRequestBody"),
        (b"[1]", "InvalidRequestBody"),
        ({"id": "j"}, "MissingRequiredProperty"),
        (JOB | {"id": "a b"}, "InvalidPropertyValue"),
        (JOB | {"colour": 1}, "UnsupportedProperty"),
        (JOB | {"usesTaskDependencies": "maybe"}, "InvalidRequestBody"),
        (JOB | {"jobReleaseTask": {"commandLine": "x"}}, "InvalidPropertyValue"),
    ],
)
async def test_bad_bodies(wire: Wire, body: object, code: str) -> None:
    """400, and nothing is created."""
    answer = await wire.call("POST", "/jobs", body)
    assert (answer.status, answer.code) == (400, code)
    assert (await wire.call("GET", "/jobs")).body["value"] == []


async def test_a_body_above_one_mebibyte_is_refused(wire: Wire) -> None:
    """With its length declared or in chunks; exactly one mebibyte is read."""
    await wire.call("POST", "/jobs", JOB)
    limit = 1_048_576

    def padded(size: int) -> bytes:
        body = orjson.dumps(TASK | {"displayName": ""})
        return body + b" " * (size - len(body))

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b" " * 65536

    too_large = await wire.call("POST", "/jobs/j/tasks", padded(limit + 1))
    assert (too_large.status, too_large.code) == (413, "RequestBodyTooLarge")
    assert too_large.body["values"] == [{"key": "MaxLimit", "value": "1048576"}]
    assert too_large.body["message"]["value"].startswith("The request body is too large and exceeds")
    async with wire.session.post(
        f"{wire.url}/jobs/j/tasks?api-version={VERSION}", data=chunks(), headers=wire.headers
    ) as response:
        assert response.status == 413
    assert (await wire.call("POST", "/jobs/j/tasks", padded(limit))).status == 201


async def test_a_body_that_does_not_come_is_not_waited_for(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that stalls gets 408 when the time budget of a call is over."""
    monkeypatch.setattr(dispatch, "_BODY_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.service.port)
    lines = [f"POST /jobs?api-version={VERSION} HTTP/1.1", "Host: h", "Content-Length: 10", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in wire.headers.items()]
    writer.write("\r\n".join([*lines, "", "{"]).encode())
    async with asyncio.timeout(10):
        status = await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert status.startswith(b"HTTP/1.1 408 ")


async def test_a_body_with_a_wrong_encoding_is_refused(wire: Wire) -> None:
    """400 and not 500: no fault of a client may look like one of the service."""
    good = await wire.call("POST", "/jobs", gzip.compress(orjson.dumps(JOB)), Content_Encoding="gzip")
    assert good.status == 201
    bad = await wire.call("POST", "/jobs", b"this is no gzip", Content_Encoding="gzip")
    assert (bad.status, bad.code) == (400, "InvalidRequestBody")
    bomb = await wire.call("POST", "/jobs", gzip.compress(b" " * 30_000_000), Content_Encoding="gzip")
    assert (bomb.status, bomb.code) == (413, "RequestBodyTooLarge")


async def test_a_collection_has_an_outcome_for_each_task(wire: Wire) -> None:
    """Lower-case statuses in the order of the request; the good ones are there, whatever the bad ones are."""
    preparation = {"commandLine": "/bin/true"}
    await wire.call("POST", "/jobs", JOB | {"jobPreparationTask": preparation, "jobReleaseTask": preparation})
    items = [
        TASK | {"id": "a"},
        TASK | {"id": "A"},
        TASK | {"id": "jobPreparation"},
        TASK | {"id": "JOBRELEASE"},
        {"id": "b"},
        TASK | {"id": "c", "resourceFiles": [{"filePath": "x"}]},
        TASK | {"id": "d", "dependsOn": {"taskIds": ["a"]}},
        TASK | {"id": "e"},
        {},
    ]
    answer = await wire.call("POST", "/jobs/j/addtaskcollection", {"value": items})
    assert answer.status == 200
    assert answer.body["odata.metadata"].endswith("#taskaddresult")
    value = answer.body["value"]
    assert [item["taskId"] for item in value] == [str(item.get("id", "")) for item in items]
    assert [item["status"] for item in value] == ["success", *["clienterror"] * 6, "success", "clienterror"]
    assert [item["error"]["code"] for item in value if "error" in item] == [
        "TaskExists",
        "TaskIdSameAsJobPreparationTask",
        "TaskIdSameAsJobReleaseTask",
        "MissingRequiredProperty",
        "InvalidPropertyValue",
        "TaskDependenciesNotSpecifiedOnJob",
        "MissingRequiredProperty",
    ]
    assert set(value[1]["error"]["message"]) == {"lang", "value"}
    assert value[0]["location"] == f"{wire.url}/jobs/j/tasks/a"
    task = (await wire.call("GET", "/jobs/j/tasks/a")).body
    assert (task["eTag"], task["lastModified"]) == (value[0]["eTag"], value[0]["lastModified"])
    again = await wire.call("POST", "/jobs/j/addtaskcollection", {"value": items[:1]})
    assert again.body["value"][0]["error"]["code"] == "TaskExists"


@pytest.mark.parametrize("value", [[], [TASK] * 101, "x", [1]])
async def test_collections_of_the_wrong_size_or_kind_are_refused_whole(wire: Wire, value: object) -> None:
    """1 to 100 tasks."""
    await wire.call("POST", "/jobs", JOB)
    assert (await wire.call("POST", "/jobs/j/addtaskcollection", {"value": value})).status == 400


async def test_a_task_shows_the_defaults_that_batch_fills_in(wire: Wire) -> None:
    """Constraints, of which the retry count is the job's, and the user; no fields of an execution that was not."""
    await wire.call("POST", "/jobs", JOB | {"constraints": {"maxTaskRetryCount": 4}})
    await wire.call("POST", "/jobs/j/tasks", TASK | {"constraints": {"maxWallClockTime": "PT01H30M00S"}})
    task = (await wire.call("GET", "/jobs/j/tasks/t")).body
    assert task["constraints"] == {"maxWallClockTime": "PT1H30M", "retentionTime": "P7D", "maxTaskRetryCount": 4}
    assert task["userIdentity"] == {"autoUser": {"scope": "pool", "elevationLevel": "nonadmin"}}
    assert task["requiredSlots"] == 1
    assert task["executionInfo"] == {"retryCount": 0, "requeueCount": 0}
    assert not {"previousState", "nodeInfo", "stats"} & set(task)
    await wire.call("POST", "/jobs/j/tasks/t/terminate")
    ended = (await wire.call("GET", "/jobs/j/tasks/t")).body
    assert (ended["state"], ended["previousState"]) == ("completed", "active")
    info = ended["executionInfo"]
    assert (info["result"], info["failureInfo"]["category"]) == ("failure", "usererror")
    assert isinstance(info["failureInfo"]["details"], list)
    assert not {"startTime", "exitCode"} & set(info)
    assert ended["eTag"] == task["eTag"]


async def test_pages_follow_each_other_by_absolute_links(wire: Wire) -> None:
    """The link keeps version, filter and selection; what is added or deleted meanwhile does not disturb it."""
    await wire.call("POST", "/jobs", JOB)
    tasks = [TASK | {"id": f"t{number}"} for number in range(7)]
    await wire.call("POST", "/jobs/j/addtaskcollection", {"value": tasks})
    answer = await wire.call("GET", "/jobs/j/tasks", query="maxresults=3&$select=id&$filter=startswith(id,'t')")
    assert answer.body["value"] == [{"id": "t0"}, {"id": "t1"}, {"id": "t2"}]
    assert "etag" not in answer.headers
    link = answer.body["odata.nextLink"]
    assert link.startswith(f"{wire.url}/jobs/j/tasks?api-version={VERSION}&maxresults=3&$filter=startswith")
    await wire.call("DELETE", "/jobs/j/tasks/t2")
    await wire.call("POST", "/jobs/j/tasks", TASK | {"id": "t1b"})
    found = []
    while link:
        async with wire.session.get(URL(link, encoded=True), headers=wire.headers) as response:
            page = orjson.loads(await response.read())
        found += [item["id"] for item in page["value"]]
        link = page.get("odata.nextLink")
    assert found == ["t3", "t4", "t5", "t6"]


@pytest.mark.parametrize(
    "query",
    [
        "maxresults=0",
        "maxresults=1001",
        "maxresults=x",
        "$filter=x",
        "$filter=state%20gt%20'a'",
        "$select=colour",
        "$expand=tasks",
        "$skiptoken=%25",
        "colour=red",
    ],
)
async def test_wrong_options_of_a_list_are_400(wire: Wire, query: str) -> None:
    """With the name and value of the parameter."""
    answer = await wire.call("GET", "/jobs", query=query)
    assert answer.status == 400
    assert answer.body["values"][0]["key"] == "QueryParameterName"


async def test_versions(wire: Wire) -> None:
    """Old ones are accepted, and get flat task counts; none at all and unknown ones are refused."""
    await wire.call("POST", "/jobs", JOB)
    numbers = {"active": 0, "running": 0, "completed": 0, "succeeded": 0, "failed": 0}

    async def counts(query: str) -> Answer:
        url = f"{wire.url}/jobs/j/taskcounts{query}"
        async with wire.session.get(url, headers=wire.headers) as response:
            return Answer(response.status, {}, await response.read())

    new = (await counts("?Api-Version=2022-10-01.16.0")).body
    assert (new["taskCounts"], new["taskSlotCounts"]) == (numbers, numbers)
    old = (await counts("?api-version=2019-08-01.10.0")).body
    assert {name: old[name] for name in numbers} == numbers
    assert (await counts("")).code == "MissingRequiredQueryParameter"
    assert (await counts("?api-version=1999-01-01")).code == "UnsupportedRequestVersion"


async def test_conditions_hold_for_every_verb(wire: Wire) -> None:
    """Bare or quoted ETags; missing resources are 404 before any condition; two conditions are refused."""
    await wire.call("POST", "/jobs", JOB)
    await wire.call("POST", "/jobs/j/tasks", TASK)
    for path in ("/jobs/j", "/jobs/j/tasks/t"):
        tag = (await wire.call("GET", path)).headers["etag"]
        for sent in (tag, f'"{tag}"'):
            unchanged = await wire.call("GET", path, If_None_Match=sent)
            assert (unchanged.status, unchanged.content) == (304, b"")
        assert (await wire.call("DELETE", path, If_Match='"0x8D0"')).status == 412
        refused = await wire.call("POST", f"{path}/terminate", If_None_Match="*")
        assert (refused.status, refused.code) == (412, "ConditionNotMet")
        assert (await wire.call("GET", f"{path}x", If_Match=tag)).status == 404
        both = await wire.call("GET", path, If_Match=tag, If_None_Match="x")
        assert both.code == "MultipleConditionHeadersNotSupported"
    assert (await wire.call("DELETE", "/jobs/j", If_Match="*")).status == 202


async def test_of_concurrent_updates_with_one_etag_one_wins(wire: Wire) -> None:
    """The condition is checked in the transaction of the change."""
    await wire.call("POST", "/jobs", JOB)
    tag = (await wire.call("GET", "/jobs/j")).headers["etag"]
    answers = await asyncio.gather(
        *(wire.call("PATCH", "/jobs/j", {"priority": number}, If_Match=tag) for number in range(8))
    )
    assert sorted(answer.status for answer in answers) == [200] + [412] * 7


async def test_a_signed_request_works_and_an_unsigned_one_does_not(wire: Wire) -> None:
    """403 with the detail, never 401; an account of another name is refused too."""
    wire.headers = {}
    assert (await wire.call("GET", "/jobs")).code == "AuthenticationFailed"
    refused = await wire.call("GET", "/jobs", Authorization="Bearer wrong")
    assert (refused.status, refused.body["values"][0]["key"]) == (403, "AuthenticationErrorDetail")
    date = http_date(utc_now())
    request = SignedRequest("GET", "/jobs", f"api-version={VERSION}", {"ocp-date": date})
    signed = signature(next(canonical_strings(request, "devaccount")), base64.b64decode(KEY))
    good = await wire.call("GET", "/jobs", ocp_date=date, Authorization=f"SharedKey devaccount:{signed}")
    assert good.status == 200
    other = await wire.call("GET", "/pools", ocp_date=date, Authorization=f"SharedKey devaccount:{signed}")
    assert other.status == 403


async def test_the_event_stream_asks_for_the_same_credentials(wire: Wire) -> None:
    """It is no operation of Batch, but not open either."""
    wire.headers = {}
    assert (await wire.call("GET", "/nodeagent/v1/events")).code == "AuthenticationFailed"


async def test_files_over_the_wire(wire: Wire, tmp_path: Path) -> None:
    """Paths as clients send them, headers, ranges with 200, and what cannot be read."""
    await wire.call("POST", "/pools", {"id": "local", "vmSize": "X"})
    await wire.call("POST", "/jobs", JOB)
    async with ScriptedNode(
        wire.url, wire.service.node_key, tmp_path / "node", pool_id="local", node_id="n", slots=1
    ) as node:
        await wire.call("POST", "/jobs/j/tasks", TASK | {"commandLine": "/bin/sh -c 'echo hello; echo 12 > \"a b\"'"})
        async with asyncio.timeout(30):
            while (await wire.call("GET", "/jobs/j/tasks/t")).body["state"] != "completed":  # noqa: ASYNC110 - as clients do
                await asyncio.sleep(0.02)
        assert [message.kind for message in node.messages] == ["assignment"]
        base = "/jobs/j/tasks/t/files"
        for path in ("wd/a%20b", "wd%2Fa%20b", "%2Fwd%2Fa%20b", "/wd/a%20b"):
            answer = await wire.call("GET", f"{base}/{path}")
            assert (answer.status, answer.content) == (200, b"12\n"), path
        assert answer.headers["content-length"] == "3"
        assert answer.headers["ocp-batch-file-isdirectory"] == "False"
        assert answer.headers["ocp-batch-file-mode"].startswith("0o100")
        assert answer.headers["ocp-batch-file-url"].endswith("%2Ffiles%2Fwd%2Fa%2520b")
        assert "etag" not in answer.headers
        part = await wire.call("GET", f"{base}/stdout.txt", ocp_range="bytes=1-3")
        assert (part.status, part.content, part.headers["content-length"]) == (200, b"ell", "3")
        for byte_range, status, code in (
            ("bytes=6-", 416, "InvalidRange"),
            ("bytes=-2", 400, "InvalidHeaderValue"),
            ("lines=1-2", 400, "InvalidHeaderValue"),
        ):
            refused = await wire.call("GET", f"{base}/stdout.txt", ocp_range=byte_range)
            assert (refused.status, refused.code) == (status, code)
        head = await wire.call("HEAD", f"{base}/stdout.txt")
        assert (head.status, head.content, head.headers["content-length"]) == (200, b"", "6")
        directory = await wire.call("HEAD", f"{base}/wd")
        assert (directory.status, directory.headers["ocp-batch-file-isdirectory"]) == (200, "True")
        assert (await wire.call("GET", f"{base}/wd")).status == 409
        assert (await wire.call("GET", f"{base}/..%2F..%2F..%2Fshared")).code == "FileNotFound"
        fresh = await wire.call("GET", f"{base}/stdout.txt", If_Modified_Since=http_date(utc_now()))
        assert fresh.status == 304
        listing = (await wire.call("GET", base, query="recursive=true")).body
        assert [item["name"] for item in listing["value"]] == ["stderr.txt", "stdout.txt", "wd", "wd/a b"]
        assert listing["value"][1]["properties"]["contentLength"] == "6"
        assert "properties" not in listing["value"][2]
        assert listing["value"][3]["url"] == f"{wire.url}{base}/wd/a%20b"
        assert (await wire.call("GET", listing["value"][3]["url"].removeprefix(wire.url))).content == b"12\n"
        node_url = (await wire.call("GET", "/jobs/j/tasks/t")).body["nodeInfo"]["taskRootDirectoryUrl"]
        assert (await wire.call("GET", f"{node_url.removeprefix(wire.url)}/stdout.txt")).content == b"hello\n"
    gone = await wire.call("GET", f"{base}/stdout.txt")
    assert (gone.status, gone.code) == (409, "NodeNotReady")


async def test_a_restarted_service_answers_as_before(tmp_path: Path) -> None:
    """Entities, ETags and counts are those of before; only the address may have changed."""
    settings = ServiceSettings(port=0, key=SecretStr(KEY), bearer_token=SecretStr("let-me-in"), state_dir=tmp_path)
    seen: list[list[dict[str, Any]]] = []
    for life in range(2):
        async with Service(settings) as service, aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session:
            wire = Wire(service.url, session, service)
            if life == 0:
                await wire.call("POST", "/jobs", JOB)
                await wire.call("POST", "/jobs/j/tasks", TASK)
                await wire.call("POST", "/jobs/j/tasks/t/terminate")
            answers = [await wire.call("GET", path) for path in ("/jobs/j", "/jobs/j/tasks/t", "/jobs/j/taskcounts")]
            seen.append([{**answer.body, "url": "", "odata.metadata": ""} for answer in answers])
    assert seen[0] == seen[1]


async def test_loose_accepts_what_is_not_built(tmp_path: Path) -> None:
    """The property is kept and shown, and has no effect."""
    settings = ServiceSettings(
        port=0, key=SecretStr(KEY), bearer_token=SecretStr("let-me-in"), state_dir=tmp_path, loose=True
    )
    async with Service(settings) as service, aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session:
        wire = Wire(service.url, session, service)
        await wire.call("POST", "/jobs", JOB)
        files = [{"httpUrl": "http://h/x", "filePath": "x"}]
        assert (await wire.call("POST", "/jobs/j/tasks", TASK | {"resourceFiles": files})).status == 201
        assert (await wire.call("GET", "/jobs/j/tasks/t")).body["resourceFiles"] == files


async def test_passwords_do_not_come_back(tmp_path: Path) -> None:
    """A registry's user name is echoed, its password is not."""
    settings = ServiceSettings(
        port=0, key=SecretStr(KEY), bearer_token=SecretStr("let-me-in"), state_dir=tmp_path, loose=True
    )
    async with Service(settings) as service, aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session:
        wire = Wire(service.url, session, service)
        await wire.call("POST", "/jobs", JOB)
        registry = {"username": "u", "password": "SECRET", "registryServer": "r"}
        container = {"imageName": "i", "registry": registry}
        await wire.call("POST", "/jobs/j/tasks", TASK | {"containerSettings": container})
        accounts = [{"name": "n", "password": "SECRET"}]
        await wire.call("POST", "/pools", {"id": "p", "vmSize": "x", "userAccounts": accounts})
        for path in ("/jobs/j/tasks/t", "/jobs/j/tasks", "/pools/p", "/pools"):
            answer = await wire.call("GET", path)
            assert answer.status == 200
            assert b"SECRET" not in answer.content
            assert b'"u"' in answer.content or b'"n"' in answer.content
