"""Requests taken apart: paths, query names, conditions, paging tokens, `$select`, and bodies with faults."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.model.job import JobCreate, JobPatch
from nodeagent.model.pool import PoolCreate
from nodeagent.model.task import TaskConstraints, TaskCreate
from nodeagent.model.times import etag
from nodeagent.service.errors import BatchError
from nodeagent.service.rest.conditions import parse_condition
from nodeagent.service.rest.error_body import error_body
from nodeagent.service.rest.paging import decode_token, encode_token, next_link
from nodeagent.service.rest.query import Query
from nodeagent.service.rest.router import Router
from nodeagent.service.rest.select import expands_stats, parse_select, select
from nodeagent.service.rest.shapes.entity import without_secrets
from nodeagent.service.rest.validate import json_object, parse, refuse_unsupported
from nodeagent.service.rest.versions import KNOWN_VERSIONS, has_nested_task_counts


def refusal_of(call: Any, *arguments: Any) -> BatchError:  # noqa: ANN401 - any function of the REST layer
    """Return the BatchError that a call raises."""
    with pytest.raises(BatchError) as caught:
        call(*arguments)
    return caught.value


@dataclass(frozen=True)
class Route:
    """A row of a small table."""

    method: str
    path: str


ROUTES = (
    Route("GET", "/jobs"),
    Route("POST", "/jobs"),
    Route("GET", "/jobs/{job_id}"),
    Route("GET", "/jobs/{job_id}/tasks/{task_id}/files"),
    Route("GET", "/jobs/{job_id}/tasks/{task_id}/files/{path...}"),
)


@pytest.mark.parametrize(
    ("raw", "path", "variables"),
    [
        ("/jobs", "/jobs", {}),
        ("//jobs/", "/jobs", {}),
        ("/Jobs/A%3Ajob-1", "/jobs/{job_id}", {"job_id": "A:job-1"}),
        ("/jobs/tasks", "/jobs/{job_id}", {"job_id": "tasks"}),
        ("/jobs/j/tasks/t/files", "/jobs/{job_id}/tasks/{task_id}/files", {"job_id": "j", "task_id": "t"}),
    ],
)
def test_paths_are_matched_as_they_were_sent(raw: str, path: str, variables: dict[str, str]) -> None:
    """Variables are decoded once, words of the API match in any case."""
    found, given_variables = Router(ROUTES).find("GET", raw)
    assert (found.path, given_variables) == (path, variables)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("wd%2Fa%20b.txt", "wd/a b.txt"),
        ("wd/a.txt", "wd/a.txt"),
        ("%2Fstartup%2Fstderr.txt", "/startup/stderr.txt"),
        ("a%252Fb", "a%2Fb"),
        ("..%2F..%2Fetc", "../../etc"),
    ],
)
def test_the_rest_of_a_file_path_is_decoded_once(raw: str, path: str) -> None:
    """`%2F` and `/` mean the same; nothing is normalised away before the handler can refuse it."""
    _, variables = Router(ROUTES).find("GET", f"/jobs/j/tasks/t/files/{raw}")
    assert variables["path"] == path


def test_unknown_paths_are_404_and_unknown_verbs_405() -> None:
    """The two are told apart, and the verbs that exist are named."""
    router = Router(ROUTES)
    assert refusal_of(router.find, "GET", "/nonsense").code == "ResourceNotFound"
    assert refusal_of(router.find, "GET", "/jobs/j/tasks").code == "ResourceNotFound"
    refused = refusal_of(router.find, "DELETE", "/jobs")
    assert (refused.status, refused.code) == (405, "UnsupportedHttpVerb")
    assert dict(refused.values)["AllowedVerbs"] == "GET, POST"


def test_a_table_with_two_equal_rows_is_refused() -> None:
    """A second handler for the same verb and path would never be called."""
    with pytest.raises(ValueError, match="twice"):
        Router([Route("GET", "/jobs/{a}"), Route("GET", "/jobs/{b}")])


def test_query_names_have_no_case() -> None:
    """`timeOut`, `$skipToken` and their kin are spelled in many ways."""
    query = Query("API-Version=2025-06-01&MaxResults=7&$SkipToken=x&timeOut=45&%24filter=a%20eq+1&recursive=True")
    assert query.api_version == "2025-06-01"
    assert query.max_results == 7
    assert query.get("$skiptoken") == "x"
    assert query.get("$filter") == "a eq 1"
    assert query.flag("recursive")
    assert not query.flag("force")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "MissingRequiredQueryParameter"),
        ("api-version=", "MissingRequiredQueryParameter"),
        ("api-version=2099-01-01", "UnsupportedRequestVersion"),
        ("api-version=2025-06-01&colour=red", "UnsupportedQueryParameter"),
    ],
)
def test_wrong_queries_are_refused(text: str, code: str) -> None:
    """The api-version must be there and known; no parameter is ignored in silence."""

    def read() -> str:
        return Query(text).api_version

    refused = refusal_of(read)
    assert (refused.status, refused.code) == (400, code)


@pytest.mark.parametrize("version", sorted(KNOWN_VERSIONS))
def test_every_known_version_is_accepted(version: str) -> None:
    """Also those with a `+` in no place and a dot in many."""
    assert Query(f"api-version={version}").api_version == version
    assert has_nested_task_counts(version) == (version[:7] >= "2020-09")


@pytest.mark.parametrize("text", ["0", "1001", "-1", "x", "1.5", "99999999999999999999", "٣"])
def test_page_sizes_outside_the_limits_are_refused(text: str) -> None:
    """`maxresults` is 1 to 1000."""
    refused = refusal_of(lambda: Query(f"maxresults={text}").max_results)
    assert refused.status == 400
    assert dict(refused.values)["QueryParameterName"] == "maxresults"


@given(st.text(min_size=1))
def test_tokens_survive_what_clients_do_to_links(last: str) -> None:
    """The token of any name is URL-safe, and gives the name back after decoding and encoding of the link."""
    token = encode_token("jobs", last)
    assert not set(token) & set("+%&#=/ ")
    query = Query("api-version=2025-06-01&$filter=id eq 'a%26b'&maxresults=2")
    link = next_link("jobs", "http://h:1/jobs", query, last)
    query = Query(urlsplit(link).query)
    assert decode_token("jobs", query) == last
    assert query.get("$filter") == "id eq 'a&b'"
    assert query.max_results == 2
    assert "+" not in link
    assert parse_qs(urlsplit(link).query)["api-version"] == ["2025-06-01"]


@given(st.text(max_size=20))
def test_a_foreign_token_is_refused(token: str) -> None:
    """Nothing but a token that was given out is read as a place in a list."""
    query = Query(f"$skiptoken={quote(token)}")
    if query.get("$skiptoken") is None:
        assert decode_token("jobs", query) is None
        return
    assert refusal_of(decode_token, "jobs", query).code == "InvalidQueryParameterValue"


def test_a_token_belongs_to_one_kind_of_list_and_is_whole() -> None:
    """One of another list, one that was cut and one that has been changed are refused, each by the parameter's name."""
    token = encode_token("tasks", "task-17")
    assert decode_token("tasks", Query(f"$skiptoken={token}")) == "task-17"
    for kind, text in (("jobs", token), ("tasks", token[:-2]), ("tasks", "B" + token[1:]), ("tasks", "dGFzay0xNw")):
        refused = refusal_of(decode_token, kind, Query(f"$skiptoken={text}"))
        assert dict(refused.values)["QueryParameterName"] == "$skiptoken"


def test_select_keeps_what_was_asked_for() -> None:
    """Blanks around names are allowed, nested names keep only their part, and `odata.metadata` stays."""
    names = frozenset({"id", "state", "executionInfo"})
    entity = {"odata.metadata": "m", "id": "a", "state": "active", "executionInfo": {"exitCode": 1, "retryCount": 0}}
    chosen = parse_select(Query("$select=id, executionInfo/exitCode"), names)
    assert select(entity, chosen) == {"odata.metadata": "m", "id": "a", "executionInfo": {"exitCode": 1}}
    whole = parse_select(Query("$select=executionInfo/exitCode,executionInfo"), names)
    assert select(entity, whole)["executionInfo"] == entity["executionInfo"]
    assert select(entity, parse_select(Query(""), names)) == entity
    refused = refusal_of(parse_select, Query("$select=id,colour"), names)
    assert "'colour'" in dict(refused.values)["Reason"]


def test_only_stats_can_be_expanded() -> None:
    """`$expand=stats` is accepted, all else refused."""
    assert expands_stats(Query("$expand=stats"))
    assert not expands_stats(Query("$select=id"))
    assert refusal_of(expands_stats, Query("$expand=tasks")).code == "InvalidQueryParameterValue"


MODIFIED = datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC)
TAG = etag(MODIFIED)


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("PATCH", {}, None),
        ("PATCH", {"if-match": TAG}, None),
        ("PATCH", {"if-match": f'"{TAG}"'}, None),
        ("PATCH", {"if-match": f'W/"{TAG}"'}, None),
        ("PATCH", {"if-match": "*"}, None),
        ("PATCH", {"if-match": '"0x8D0"'}, 412),
        ("PATCH", {"if-none-match": TAG}, 412),
        ("GET", {"if-none-match": f'"{TAG}"'}, 304),
        ("GET", {"if-none-match": "*"}, 304),
        ("GET", {"if-none-match": "0x8D0"}, None),
        ("GET", {"if-modified-since": "Fri, 02 Jan 2026 03:04:05 GMT"}, 304),
        ("GET", {"if-modified-since": "Fri, 02 Jan 2026 03:04:04 GMT"}, None),
        ("PUT", {"if-modified-since": "Fri, 02 Jan 2026 03:04:05 GMT"}, 412),
        ("GET", {"if-unmodified-since": "Fri, 02 Jan 2026 03:04:05 GMT"}, None),
        ("HEAD", {"if-unmodified-since": "Fri, 02 Jan 2026 03:04:04 GMT"}, 412),
    ],
)
def test_conditions(method: str, headers: dict[str, str], status: int | None) -> None:
    """ETags compare with or without quotes, dates in whole seconds; reads that need nothing new get 304."""
    condition = parse_condition(method, headers)
    if status is None:
        condition.check(TAG, MODIFIED)
        return
    refused = refusal_of(condition.check, TAG, MODIFIED)
    assert (refused.status, refused.code) == (status, "ConditionNotMet")


def test_two_conditions_or_a_bad_date_are_refused() -> None:
    """The rules of precedence between conditions are not Batch's: it takes one."""
    both = {"if-match": "*", "if-none-match": "*"}
    assert refusal_of(parse_condition, "GET", both).code == "MultipleConditionHeadersNotSupported"
    for text in (
        "soon",
        "Fri, 02 Jan 99999999999999999999 03:04:05 GMT",
        "Fri, 32 Jan 2026 03:04:05 GMT",
        "2026-01-02",
    ):
        refused = refusal_of(parse_condition, "GET", {"if-modified-since": text})
        assert (refused.status, refused.code) == (400, "InvalidHeaderValue")


DATE_WORDS = st.sampled_from(
    ["Fri,", "02", "Jan", "2026", "0001", "9999", "03:04:05", "24:60:61", "GMT", "+2359", "-9999", ":", "0", "é"]
) | st.text(max_size=4)


@given(st.lists(DATE_WORDS, max_size=7).map(" ".join) | st.text(max_size=40))
def test_any_date_is_a_condition_or_refused(text: str) -> None:
    """Whatever the header says, the answer is a decision or a 400, never a failure of the service."""
    try:
        parse_condition("GET", {"if-modified-since": text}).check(TAG, MODIFIED)
    except BatchError as error:
        assert error.status in (304, 400)  # noqa: PT017 - to be met is right as well


JOB = {"id": "j", "poolInfo": {"poolId": "p"}}


@pytest.mark.parametrize(
    ("change", "code", "name"),
    [
        ({"id": "a b"}, "InvalidPropertyValue", "id"),
        ({"id": "x" * 65}, "InvalidPropertyValue", "id"),
        ({"id": 5}, "InvalidRequestBody", "id"),
        ({"priority": 1001}, "InvalidPropertyValue", "priority"),
        ({"priority": "high"}, "InvalidRequestBody", "priority"),
        ({"maxParallelTasks": 0}, "InvalidPropertyValue", "maxParallelTasks"),
        ({"poolInfo": {}}, "InvalidPropertyValue", "poolInfo"),
        ({"poolInfo": {"poolId": "p", "autoPoolSpecification": {}}}, "InvalidPropertyValue", "poolInfo"),
        ({"poolInfo": None}, "MissingRequiredProperty", "poolInfo"),
        ({"colour": "red"}, "UnsupportedProperty", "colour"),
        ({"constraints": {"maxWallClockTime": "soon"}}, "InvalidPropertyValue", "constraints.maxWallClockTime"),
        ({"constraints": {"maxTaskRetryCount": -2}}, "InvalidPropertyValue", "constraints.maxTaskRetryCount"),
        ({"jobReleaseTask": {"commandLine": "a"}}, "InvalidPropertyValue", "jobReleaseTask"),
        ({"jobPreparationTask": {}}, "MissingRequiredProperty", "jobPreparationTask.commandLine"),
        (
            {"jobPreparationTask": {"commandLine": "a", "id": "X"}, "jobReleaseTask": {"commandLine": "a", "id": "x"}},
            "InvalidPropertyValue",
            "jobPreparationTask",
        ),
        (
            {
                "jobPreparationTask": {"commandLine": "a"},
                "jobReleaseTask": {"commandLine": "a", "maxWallClockTime": "PT16M"},
            },
            "InvalidPropertyValue",
            "jobReleaseTask.maxWallClockTime",
        ),
        ({"onAllTasksComplete": "explode"}, "InvalidPropertyValue", "onAllTasksComplete"),
        ({"metadata": [{"name": "a"}]}, "MissingRequiredProperty", "metadata[0].value"),
        ({"commonEnvironmentSettings": [{"name": "a=b"}]}, "InvalidPropertyValue", "commonEnvironmentSettings[0].name"),
    ],
)
def test_faults_of_a_job_name_the_property(change: dict[str, Any], code: str, name: str) -> None:
    """Batch's code, and the path of the property in the spelling of the wire."""
    refused = refusal_of(parse, JobCreate, JOB | change)
    assert (refused.status, refused.code) == (400, code)
    assert dict(refused.values)["PropertyName"].endswith(name)


ID_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"


@given(st.text(ID_CHARACTERS, min_size=1, max_size=64) | st.text(ID_CHARACTERS + "\n\x00 .:~/é", max_size=66))
def test_ids_have_one_alphabet_and_a_length(text: str) -> None:
    """1 to 64 letters, digits, hyphens, underscores; kept as given; anything else is refused by name."""
    body = {"id": text, "commandLine": "a"}
    if 1 <= len(text) <= 64 and set(text) <= set(ID_CHARACTERS):
        assert parse(TaskCreate, body).id == text
        return
    refused = refusal_of(parse, TaskCreate, body)
    assert (refused.code, dict(refused.values)["PropertyName"]) == ("InvalidPropertyValue", "id")


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 999_999))
def test_durations_are_normalised_and_mean_the_same(hours: int, minutes: int, seconds: int, micros: int) -> None:
    """However a client writes a duration, the reply has one form of it, which reads back as itself."""
    written = f"PT{hours:02}H{minutes:02}M{seconds:02}.{micros:06}S"
    first = parse(TaskConstraints, {"maxWallClockTime": written})
    shown = first.to_wire()["maxWallClockTime"]
    assert first.max_wall_clock_time == timedelta(hours=hours, minutes=minutes, seconds=seconds, microseconds=micros)
    again = parse(TaskConstraints, {"maxWallClockTime": shown})
    assert again == first
    assert again.to_wire()["maxWallClockTime"] == shown


def test_values_that_may_be_secret_are_not_repeated() -> None:
    """A refused value comes back only if it can be no key, token or password."""
    body = {
        "id": "t",
        "commandLine": "a",
        "resourceFiles": [{"httpUrl": "https://h/c?sig=SECRET", "storageContainerUrl": "https://h/c?sig=SECRET"}],
        "environmentSettings": [{"name": "A", "value": "SECRET\x00"}],
    }
    assert "SECRET" not in str(refusal_of(parse, TaskCreate, body).values)
    del body["resourceFiles"]
    assert "SECRET" not in str(refusal_of(parse, TaskCreate, body).values)
    assert dict(refusal_of(parse, JobCreate, JOB | {"priority": 5000}).values)["PropertyValue"] == "5000"


def test_removed_features_mean_nothing_and_null_is_absent() -> None:
    """Clients of older versions still name them; nulls come from JavaScript."""
    pool: dict[str, Any] = {
        "id": "p",
        "vmSize": "x",
        "certificateReferences": [],
        "resourceTags": {},
        "displayName": None,
    }
    assert parse(PoolCreate, pool).display_name is None
    assert parse(JobPatch, {"priority": None}).model_fields_set == set()


@pytest.mark.parametrize(
    "body", [b"", b"  ", b"{", b"[]", b'"a"', b"\xff", b'{"a":NaN}', b'{"a":"\\ud800"}', b"[" * 5000]
)
def test_bodies_that_are_no_object_are_refused(body: bytes) -> None:
    """Bad JSON, wrong encoding, deep nesting: always 400."""
    refused = refusal_of(json_object, body)
    assert (refused.status, refused.code) == (400, "InvalidRequestBody")


def test_unsupported_properties_are_refused_by_name_unless_loose() -> None:
    """Silence would be a bug; `loose` hands the names back for the log."""
    refused = refusal_of(lambda: refuse_unsupported(["outputFiles"], loose=False))
    assert (refused.code, dict(refused.values)["PropertyName"]) == ("UnsupportedProperty", "outputFiles")
    assert refuse_unsupported(["outputFiles"], loose=True) == ["outputFiles"]
    assert refuse_unsupported([], loose=False) == []


def test_the_error_body_is_the_one_that_clients_parse() -> None:
    """`message` is an object; its text ends with request id and time; `values` are key and value."""
    error = BatchError(404, "PoolNotFound", values=(("Reason", "gone"),))
    body = orjson.loads(orjson.dumps(error_body(error, "http://h/$metadata", "1-2", MODIFIED)))
    assert next(iter(body)) == "odata.metadata"
    assert body["odata.metadata"].endswith("#Microsoft.Azure.Batch.Protocol.Entities.Container.errors/@Element")
    assert body["code"] == "PoolNotFound"
    assert body["message"]["lang"] == "en-US"
    lines = body["message"]["value"].split("\n")
    assert lines == ["The specified pool does not exist.", "RequestId:1-2", "Time:2026-01-02T03:04:05.6000000Z"]
    assert body["values"] == [{"key": "Reason", "value": "gone"}]


def test_passwords_are_never_echoed() -> None:
    """At any depth."""
    assert without_secrets({"a": [{"username": "u", "password": "p"}]}) == {"a": [{"username": "u"}]}
