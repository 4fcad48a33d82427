"""The status list of preparation and release over HTTP, from every kind of entry (seed 000).

| sentence of the seed | test |
| --- | --- |
| the elements, and their notes "present only if" | `test_each_field_is_there_exactly_when_it_applies` |
| "includes nodes which have since been removed from the pool" | the same (none of these nodes is there any more) |
| table of properties; "any AND-ed or OR-ed combination" | `test_filters_let_through_what_a_reader_would` |
| the table's operations are all that there are | `test_what_the_list_does_not_know_is_refused` |
| `$skiptoken`, `maxresults`, `odata.nextLink` | `test_pages_follow_each_other_whatever_happens_meanwhile` |
| `$select` | `test_nested_properties_can_be_selected` |
| the sample of 2016-02-01.3.0 | `test_old_clients_get_the_list_of_seed_000` |
| "HTTP status code 409 with an error code of JobPreparationTaskNotSpecified" | `test_sdk_jobs.py` |
"""

import base64
import itertools
import operator
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
import pytest
from pydantic import SecretStr
from yarl import URL

from nodeagent.model.enums import ExecutionResult
from nodeagent.model.protocol import Outcome
from nodeagent.model.times import format_time, utc_now
from nodeagent.rules.failures import exit_code_failure, failure_of
from nodeagent.service.app import Service
from nodeagent.service.lifecycle import jobs
from nodeagent.service.settings import ServiceSettings
from nodeagent.service.store import job_nodes
from nodeagent.service.store.database import Transaction
from tests.unit.service_world import PREPARATION, RELEASE, job_spec

TODAY = "2025-06-01"
OLD = "2016-02-01.3.0"
KEY = base64.b64encode(b"the key of a test's account").decode()
BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)

Entry = dict[str, Any]


def at(minutes: int) -> datetime:
    """Return a time of the story."""
    return BEGAN + timedelta(minutes=minutes)


@dataclass(frozen=True)
class End:
    """How an execution ended."""

    minutes: int
    exit_code: int | None = 0

    @property
    def outcome(self) -> Outcome:
        """What a node reports of it."""
        failure = None
        if self.exit_code is None:
            failure = failure_of("BlobNotFound", ("FilePath", "data"))
        elif self.exit_code:
            failure = exit_code_failure(self.exit_code)
        return Outcome(
            result=ExecutionResult.SUCCESS if failure is None else ExecutionResult.FAILURE,
            end_time=at(self.minutes),
            exit_code=self.exit_code,
            failure_info=failure,
        )


@dataclass(frozen=True)
class Story:
    """What happened on one node: minutes and ends; None for what did not."""

    number: int
    node_id: str
    pool_id: str
    prep_start: int
    prep_end: End | None = None
    retries: int = 0
    last_retry: int | None = None
    release_start: int | None = None
    release_end: End | None = None

    def write(self, tx: Transaction, job_num: int) -> None:
        """Store it."""
        row = job_nodes.ensure(tx, job_num, self.number, self.node_id, self.pool_id)
        told: dict[str, Any] = {
            "start_time": at(self.prep_start),
            "root_directory": "workitems/j/job-1/jobpreparation",
            "retry_count": self.retries,
            "last_retry_time": None if self.last_retry is None else at(self.last_retry),
        }
        job_nodes.preparation_running(tx, row, **told)
        if self.prep_end is not None:
            job_nodes.preparation_completed(tx, row, self.prep_end.outcome, **told)
        directory = "workitems/j/job-1/jobrelease"
        if self.release_start is not None:
            job_nodes.release_running(tx, row, start_time=at(self.release_start), root_directory=directory)
            if self.release_end is not None:
                outcome = self.release_end.outcome
                job_nodes.release_completed(
                    tx, row, outcome, start_time=at(self.release_start), root_directory=directory
                )


STORIES = (
    Story(1, "a", "local", 0),
    Story(2, "b", "local", 5, End(7)),
    Story(3, "c", "local", 5, End(8), release_start=60),
    Story(4, "D", "local", 6, End(9), release_start=60, release_end=End(61)),
    Story(5, "e", "local", 12, End(13, 3), retries=2, last_retry=11),
    Story(6, "f", "local", 6, End(6, None), release_start=61, release_end=End(62, 1)),
    Story(7, "g", "Other", 7, End(9, -9), release_start=62, release_end=End(63, 0)),
    Story(8, "b", "local", 30, End(31), release_start=63, release_end=End(65, None)),
)
"""Node b was removed, and another one was given its id."""


@dataclass
class Lists:
    """Reads lists of a job that has all the stories."""

    service: Service
    session: aiohttp.ClientSession

    async def get(self, url: str) -> tuple[int, Entry]:
        """Return status and body of an address."""
        headers = {"Authorization": "Bearer let-me-in"}
        async with self.session.get(URL(url, encoded=True), headers=headers) as response:
            return response.status, orjson.loads(await response.read())

    async def status(self, version: str = TODAY, **options: object) -> tuple[int, Entry]:
        """Return status and body of the list; options without their `$`."""
        query = f"api-version={version}"
        for name, value in options.items():
            query += f"&{'' if name == 'maxresults' else '$'}{name}={quote(str(value))}"
        return await self.get(f"{self.service.url}/jobs/j/jobpreparationandreleasetaskstatus?{query}")

    async def entries(self, version: str = TODAY, **options: object) -> list[Entry]:
        """Return the entries of a page."""
        status, body = await self.status(version, **options)
        assert status == 200, body
        return list(body["value"])


@pytest.fixture
async def lists(tmp_path: Path) -> AsyncIterator[Lists]:
    """Return a service whose job has been on eight nodes that are gone."""
    settings = ServiceSettings(
        port=0, key=SecretStr(KEY), bearer_token=SecretStr("let-me-in"), state_dir=tmp_path, synchronous="normal"
    )

    def write(tx: Transaction) -> None:
        job = jobs.create_job(tx, job_spec("j", job_preparation_task=PREPARATION, job_release_task=RELEASE), utc_now())
        for story in STORIES:
            story.write(tx, job.num)

    async with Service(settings) as service, aiohttp.ClientSession() as session:
        await service.database.write(write)
        yield Lists(service, session)


def expected(story: Story, url: str) -> Entry:
    """Return the entry of a story, field by field as the seed's tables have them."""
    node_url = f"{url}/pools/{story.pool_id}/nodes/{story.node_id}"
    preparation = _execution(node_url, "jobpreparation", story.prep_start, story.prep_end)
    preparation["retryCount"] = story.retries
    if story.last_retry is not None:
        preparation["lastRetryTime"] = format_time(at(story.last_retry))
    entry = {
        "poolId": story.pool_id,
        "nodeId": story.node_id,
        "nodeUrl": node_url,
        "jobPreparationTaskExecutionInfo": preparation,
    }
    if story.release_start is not None:
        release = _execution(node_url, "jobrelease", story.release_start, story.release_end)
        entry["jobReleaseTaskExecutionInfo"] = release
    return entry


def _execution(node_url: str, task_id: str, start: int, end: End | None) -> Entry:
    directory = f"workitems/j/job-1/{task_id}"
    shown: Entry = {
        "startTime": format_time(at(start)),
        "state": "running" if end is None else "completed",
        "taskRootDirectory": directory,
        "taskRootDirectoryUrl": f"{node_url}/files/{directory}",
    }
    if end is not None:
        shown["endTime"] = format_time(at(end.minutes))
        shown["result"] = "success" if end.exit_code == 0 else "failure"
        if end.exit_code is not None:
            shown["exitCode"] = end.exit_code
        failure = end.outcome.failure_info
        if failure is not None:
            shown["failureInfo"] = failure.to_wire()
    return shown


async def test_each_field_is_there_exactly_when_it_applies(lists: Lists) -> None:
    """Running or completed, failed before or after its launch, retried, released or not: the fields of the seed."""
    status, body = await lists.status()
    assert status == 200
    ordered = sorted(STORIES, key=lambda story: (story.node_id.lower(), story.number))
    assert body["odata.metadata"] == f"{lists.service.url}/$metadata#jobpreparationandreleasetaskstatuslist"
    assert body["value"] == [expected(story, lists.service.url) for story in ordered]
    assert "odata.nextLink" not in body


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
}
TIMES = [at(minutes) for minutes in (0, 6, 9, 61, 99)]
_ALL = tuple(OPERATORS)
_OF_EXECUTIONS: dict[str, tuple[tuple[str, ...], list[Any]]] = {
    "state": (("eq",), ["running", "Completed"]),
    "startTime": (_ALL, TIMES),
    "endTime": (_ALL, TIMES),
    "exitCode": (_ALL, [-9, 0, 1, 3]),
    "result": (("eq", "ne"), ["success", "Failure"]),
}
PROPERTIES: dict[str, tuple[tuple[str, ...], list[Any]]] = {
    "poolId": (("eq", "ne"), ["local", "OTHER", "nowhere"]),
    "nodeId": (("eq", "ne"), ["a", "d", "B", "x"]),
    **{f"jobPreparationTaskExecutionInfo/{name}": domain for name, domain in _OF_EXECUTIONS.items()},
    **{f"jobReleaseTaskExecutionInfo/{name}": domain for name, domain in _OF_EXECUTIONS.items()},
}
"""Each filterable property with the operations that Batch documents (the seed's ten, and `result`, which is newer)."""


def value_of(entry: Entry, name: str) -> Any:  # noqa: ANN401 - JSON is anything
    """Return a property of an entry as it compares: text without case, times as times; None if it is absent."""
    value: Any = entry
    for part in name.split("/"):
        value = None if value is None else value.get(part)
    if value is not None and name.endswith("Time"):
        return datetime.fromisoformat(value)
    return value.lower() if isinstance(value, str) else value


def comparisons() -> list[tuple[str, Callable[[Entry], bool]]]:
    """Return every comparison of the table, as text and as what it means to a reader of the list."""
    found: list[tuple[str, Callable[[Entry], bool]]] = []
    for name, (operators, values) in PROPERTIES.items():
        for word, value in itertools.product(operators, values):

            def holds(entry: Entry, name: str = name, word: str = word, value: Any = value) -> bool:  # noqa: ANN401
                has, wants = value_of(entry, name), value.lower() if isinstance(value, str) else value
                return word == "ne" if has is None else OPERATORS[word](has, wants)

            literal = f"'{value}'" if isinstance(value, str) else str(value)
            if isinstance(value, datetime):
                literal = f"DateTime'{format_time(value)}'"
            found.append((f"{name} {word} {literal}", holds))
    return found


async def test_filters_let_through_what_a_reader_would(lists: Lists) -> None:
    """Every property, operation and literal, and chains of them with `and`, `or` and parentheses."""
    everything = await lists.entries()
    simple = comparisons()
    assert len({text.split()[0] for text, _ in simple}) == 12
    for text, holds in simple:
        assert await lists.entries(filter=text) == [entry for entry in everything if holds(entry)], text
    # each comparison once as first, second and third of three, in shapes whose meaning depends on precedence
    others = simple[17:] + simple[:17]
    more = simple[41:] + simple[:41]
    for (one, first), (two, second), (three, third) in zip(simple, others, more, strict=True):
        either = [entry for entry in everything if first(entry) or (second(entry) and third(entry))]
        assert await lists.entries(filter=f"{one} or {two} and {three}") == either, (one, two, three)
        both = [entry for entry in everything if (first(entry) or second(entry)) and third(entry)]
        assert await lists.entries(filter=f"({one} or {two}) and {three}") == both, (one, two, three)


async def test_the_stray_blanks_of_the_seed_are_read(lists: Lists) -> None:
    """The table prints `jobReleaseTaskExecutionInfo /startTime`; some have copied it from there."""
    text = f"jobReleaseTaskExecutionInfo /startTime ge DateTime'{format_time(at(62))}'"
    assert [entry["nodeId"] for entry in await lists.entries(filter=text)] == ["b", "g"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"filter": "nodeUrl eq 'x'"}, "$filter"),
        ({"filter": "jobPreparationTaskExecutionInfo/retryCount eq 1"}, "$filter"),
        ({"filter": "not nodeId eq 'a'"}, "$filter"),
        ({"filter": "jobReleaseTaskExecutionInfo/state gt 'running'"}, "$filter"),
        ({"filter": "jobReleaseTaskExecutionInfo/exitCode eq 'x'"}, "$filter"),
        ({"filter": "(nodeId eq 'a'"}, "$filter"),
        ({"select": "stats"}, "$select"),
        ({"select": "jobPreparationTaskExecutionInfo/colour"}, "$select"),
        ({"select": "jobReleaseTaskExecutionInfo/lastRetryTime"}, "$select"),
        ({"skiptoken": "%"}, "$skiptoken"),
    ],
)
async def test_what_the_list_does_not_know_is_refused(lists: Lists, options: dict[str, str], name: str) -> None:
    """400 with the parameter's name: other properties, operations, `not`, literals of another type."""
    status, body = await lists.status(**options)
    assert (status, body["code"]) == (400, "InvalidQueryParameterValue")
    assert body["values"][0] == {"key": "QueryParameterName", "value": name}


async def test_nested_properties_can_be_selected(lists: Lists) -> None:
    """A whole part, some of a part, and what an entry has not; the metadata stays."""
    select = "nodeId, jobPreparationTaskExecutionInfo/exitCode,jobReleaseTaskExecutionInfo"
    found = await lists.entries(select=select, filter="nodeId eq 'd' or nodeId eq 'a'")
    (full,) = await lists.entries(filter="nodeId eq 'd'")
    assert found == [
        {"nodeId": "a", "jobPreparationTaskExecutionInfo": {}},
        {
            "nodeId": "D",
            "jobPreparationTaskExecutionInfo": {"exitCode": 0},
            "jobReleaseTaskExecutionInfo": full["jobReleaseTaskExecutionInfo"],
        },
    ]


@pytest.mark.parametrize(
    ("version", "path", "token"),
    [
        (TODAY, "jobpreparationandreleasetaskstatus", "$skiptoken="),
        (OLD, "jobpreparationandreleasestatus", "$skipToken="),
    ],
)
async def test_pages_follow_each_other_whatever_happens_meanwhile(
    lists: Lists, version: str, path: str, token: str
) -> None:
    """Links are absolute and keep filter, selection and version; two nodes of one id are two entries."""
    options = {"maxresults": 1, "filter": "poolId eq 'local'", "select": "nodeId"}
    _, body = await lists.status(version, **options)
    found = [entry["nodeId"] for entry in body["value"]]
    late = Story(9, "bb", "local", 1)

    def join(tx: Transaction) -> None:
        late.write(tx, jobs.require(tx, "j").num)

    await lists.service.database.write(join)
    while link := body.get("odata.nextLink"):
        assert link.startswith(f"{lists.service.url}/jobs/j/{path}?api-version={version}&maxresults=1&$filter=")
        assert token in link
        status, body = await lists.get(link)
        assert status == 200
        found += [entry["nodeId"] for entry in body["value"]]
        assert [list(entry) for entry in body["value"]] == [["nodeId"]]
    assert found == ["a", "b", "b", "bb", "c", "D", "e", "f"]


async def test_old_clients_get_the_list_of_seed_000(lists: Lists) -> None:
    """The very fields of its sample, its metadata, and `values` for what is called `details` today."""
    _, body = await lists.status(OLD)
    assert body["odata.metadata"] == f"{lists.service.url}/$metadata#jobpreparationandreleasestatuslist"
    by_node = {entry["nodeId"]: entry for entry in body["value"]}
    sample = {
        "state",
        "startTime",
        "endTime",
        "taskRootDirectory",
        "taskRootDirectoryUrl",
        "exitCode",
        "retryCount",
    }
    complete = by_node["D"]
    assert set(complete) == {
        "poolId",
        "nodeId",
        "nodeUrl",
        "jobPreparationTaskExecutionInfo",
        "jobReleaseTaskExecutionInfo",
    }
    assert set(complete["jobPreparationTaskExecutionInfo"]) == sample
    assert set(complete["jobReleaseTaskExecutionInfo"]) == sample
    assert complete["jobReleaseTaskExecutionInfo"]["retryCount"] == 0
    assert "jobReleaseTaskExecutionInfo" not in by_node["a"]
    failed = by_node["f"]["jobPreparationTaskExecutionInfo"]["failureInfo"]
    assert set(failed) == {"category", "code", "message", "values"}
    assert failed["values"] == [{"name": "FilePath", "value": "data"}]
    assert by_node["e"]["jobPreparationTaskExecutionInfo"]["lastRetryTime"] == format_time(at(11))
    newer = (await lists.entries("2017-05-01.5.0", filter="nodeId eq 'f'"))[0]
    assert newer["jobPreparationTaskExecutionInfo"]["result"] == "failure"
    assert "details" in newer["jobPreparationTaskExecutionInfo"]["failureInfo"]
