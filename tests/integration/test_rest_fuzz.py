"""Whatever a client sends, the service answers as its own OpenAPI document says, and never with a 5xx.

Schemathesis makes requests that the document allows and requests that it does not; hypothesis makes filters and paths.
"""

import http.client
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import orjson
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from nodeagent.service.rest.openapi import document
from nodeagent.service.rest.routes import OPERATIONS
from tests.integration.batch_endpoint import NODE, POOL, TOKEN, BatchEndpoint, service_thread

VERSION = "2025-06-01"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
KNOWN = {
    "poolId": "p",
    "nodeId": NODE,
    "jobId": "j",
    "taskId": "t",
    "scheduleId": "s",
    "applicationId": "a",
    "path": "stdout.txt",
}
"""Ids of what is there, by the name of the variable: the pool has no node, because it is resized and deleted."""
READABLE = KNOWN | {"poolId": POOL}
"""The same for calls that change nothing: this pool has the node."""
BOUNDED = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
schema = schemathesis.openapi.from_dict(document(OPERATIONS))


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchEndpoint]:
    """Return a service with one node."""
    with service_thread(tmp_path_factory.mktemp("service"), tmp_path_factory.mktemp("node")) as started:
        yield started


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """Return connections that are kept."""
    with requests.Session() as opened:
        yield opened


@pytest.fixture
def populated(endpoint: BatchEndpoint, session: requests.Session) -> BatchEndpoint:
    """Return the service with a job, a task that waits and a schedule, whatever was deleted before."""
    specification = {"poolInfo": {"poolId": "none"}}
    bodies: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/pools", {"id": "p", "vmSize": "x"}),
        ("/jobs", {"id": "j"} | specification),
        ("/jobs/j/tasks", {"id": "t", "commandLine": "true"}),
        ("/jobschedules", {"id": "s", "schedule": {}, "jobSpecification": specification}),
    )
    for path, body in bodies:
        answer = session.post(f"{endpoint.url}{path}?api-version={VERSION}", json=body, headers=HEADERS)
        assert answer.status_code in (201, 409), answer.text
    return endpoint


@schema.parametrize()
@BOUNDED
def test_every_operation_conforms_to_its_description(
    case: schemathesis.Case[Any], populated: BatchEndpoint, session: requests.Session
) -> None:
    """Status, headers, content type and body; for ids of what is there and for others."""
    known = READABLE if case.method in ("GET", "HEAD") else KNOWN
    for name, value in case.path_parameters.items():
        if len(str(value)) % 2:
            case.path_parameters[name] = known.get(name, value)
    case.call_and_validate(base_url=populated.url, session=session, headers=HEADERS, checks=CHECKS, timeout=20)


def test_the_document_is_served_to_everyone(endpoint: BatchEndpoint, session: requests.Session) -> None:
    """It is the one that is tested here."""
    answer = session.get(f"{endpoint.url}/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == orjson.loads(orjson.dumps(document(OPERATIONS)))
    uuid.UUID(answer.headers["request-id"])


WORDS = st.sampled_from(
    [
        *("id", "state", "creationTime", "lastModified", "executionInfo/exitCode", "executionInfo/endTime", "colour"),
        *("eq", "ne", "gt", "le", "and", "or", "not", "(", ")", ",", "startswith(", "startswith(id,'t')"),
        *(
            "'active'",
            "'it''s'",
            "'",
            "0",
            "-1",
            "99999999999999999999",
            "1e9",
            "true",
            "null",
            "'%'",
            "\x00",
            "\ud7ff",
        ),
        *(
            "DateTime'2026-01-31T23:59:59Z'",
            "datetime'0001-01-01T00:00:00+14:00'",
            "DateTime'9999-12-31T23:59:59-14:00'",
        ),
    ]
)
LISTS = (
    "/pools",
    "/nodecounts",
    "/jobs",
    "/jobs/j/tasks",
    f"/pools/{POOL}/nodes",
    "/jobschedules",
    "/jobschedules/s/jobs",
)


@settings(BOUNDED, max_examples=300)
@given(
    path=st.sampled_from(LISTS),
    text=st.lists(WORDS, max_size=12).map(" ".join) | st.text(max_size=60, alphabet=st.characters(codec="utf-8")),
)
@example(path="/jobs", text="(" * 20_000)
@example(path="/jobs", text="id eq 'a' or " * 2_000 + "id eq 'b'")
@example(path="/jobs/j/tasks", text="executionInfo/exitCode eq " + "9" * 30)
def test_any_filter_is_answered_or_refused(
    path: str, text: str, populated: BatchEndpoint, session: requests.Session
) -> None:
    """A page, or 400 that names the parameter."""
    query = f"api-version={VERSION}&$filter={quote(text, safe='')}"
    answer = session.get(f"{populated.url}{path}?{query}", headers=HEADERS, timeout=20)
    if answer.status_code != 200:
        assert answer.status_code == 400, answer.text
        if answer.headers["content-type"].startswith("application/json"):
            assert answer.json()["values"][0] == {"key": "QueryParameterName", "value": "$filter"}


@settings(BOUNDED, max_examples=300)
@given(
    method=st.sampled_from(["GET", "PUT", "DELETE", "PATCH", "POST", "OPTIONS", "TRACE"]),
    target=st.lists(
        st.sampled_from(
            ["/", "jobs", "tasks", "pools", "files", "%", "%2", "%zz", "%2F", "%00", "%ff", "..", "a:b", "?"]
        )
        | st.sampled_from(
            ["api-version", "=", "&", VERSION, "maxresults", "99999999999", "$select", "+", "$skiptoken"]
        ),
        max_size=14,
    ).map(lambda parts: "/" + "".join(parts)),
)
def test_any_request_line_gets_an_answer_of_batch(method: str, target: str, endpoint: BatchEndpoint) -> None:
    """Below 500, and a refusal is Batch's body, whatever the percent signs stand for."""
    address = urlsplit(endpoint.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=20)
    try:
        connection.request(method, target, headers=HEADERS)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    assert answer.status < 500, content
    if answer.status >= 400:
        assert set(orjson.loads(content)) >= {"code", "message"}
        uuid.UUID(answer.getheader("request-id"))
