"""Request bodies: JSON that parsers disagree about, types as JSON has them, limits, and what `--loose` leaves out."""

import re
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.model.job import JobCreate
from nodeagent.model.task import TaskCreate
from nodeagent.service.errors import BatchError
from nodeagent.service.rest.validate import MAX_DEPTH, json_object, parse

JOB: dict[str, Any] = {"id": "j", "poolInfo": {"poolId": "p"}}
TASK: dict[str, Any] = {"id": "t", "commandLine": "true"}


def refused_job(**change: object) -> BatchError:
    """Return why this is no job."""
    with pytest.raises(BatchError) as caught:
        parse(JobCreate, JOB | change)
    return caught.value


def refused_task(**change: object) -> BatchError:
    """Return why this is no task."""
    with pytest.raises(BatchError) as caught:
        parse(TaskCreate, TASK | change)
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999999}',
        b'{"a": 1} {}',
        b"{'a': 1}",
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b'\xff\xfe{\x00"\x00a\x00"\x00',
        b'{"a": 1, "b": 2, "a": 1}',
        b'{"b": [{"c": {"a": 1, "a": 2}}]}',
        b'{"a": 1, "\\u0061": 2}',
        b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}",
    ],
    ids=lambda body: body[:20],
)
def test_bodies_that_are_not_one_clear_json_object(body: bytes) -> None:
    """400 `InvalidRequestBody` with a short reason, whatever their size."""
    with pytest.raises(BatchError) as caught:
        json_object(body)
    assert (caught.value.status, caught.value.code) == (400, "InvalidRequestBody")
    ((name, reason),) = caught.value.values
    assert name == "Reason"
    assert len(reason) < 400


def test_what_a_body_may_have() -> None:
    """One name in several objects, numbers of any size, and nesting to the limit."""
    nested = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    body = json_object(b'{"a": {"x": 1}, "b": {"x": 1e99}, "c": ' + b"9" * 30 + b', "d": ' + nested + b"}")
    assert set(body) == {"a", "b", "c", "d"}


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    """Nothing else is ever raised."""
    with suppress(BatchError):
        assert isinstance(json_object(body), dict)


@pytest.mark.parametrize(
    "change",
    [
        {"priority": "5"},
        {"priority": 5.0},
        {"priority": True},
        {"priority": [5]},
        {"usesTaskDependencies": 1},
        {"usesTaskDependencies": "true"},
        {"allowTaskPreemption": "false"},
        {"displayName": 5},
        {"metadata": {"name": "a", "value": "b"}},
        {"metadata": ["a"]},
        {"poolInfo": "p"},
        {"constraints": {"maxTaskRetryCount": "1"}},
        {"jobPreparationTask": {"commandLine": "x", "waitForSuccess": "true"}},
    ],
)
def test_types_are_those_of_json(change: dict[str, object]) -> None:
    """Text is no number, 5.0 is no whole one, 1 is not true: 400 `InvalidRequestBody`, and the property is named."""
    error = refused_job(**change)
    assert (error.status, error.code) == (400, "InvalidRequestBody")
    assert dict(error.values)["PropertyName"].startswith(next(iter(change)))


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"displayName": "x" * 1025}, "displayName"),
        ({"priority": -1001}, "priority"),
        ({"maxParallelTasks": 0}, "maxParallelTasks"),
        ({"maxParallelTasks": 2**31}, "maxParallelTasks"),
        ({"constraints": {"maxTaskRetryCount": -2}}, "constraints.maxTaskRetryCount"),
        ({"constraints": {"maxTaskRetryCount": 2**63}}, "constraints.maxTaskRetryCount"),
        ({"constraints": {"maxWallClockTime": "-PT1S"}}, "constraints.maxWallClockTime"),
        ({"constraints": {"maxWallClockTime": "a day"}}, "constraints.maxWallClockTime"),
        ({"constraints": {"maxWallClockTime": "P" + "9" * 5000 + "D"}}, "constraints.maxWallClockTime"),
        ({"metadata": [{"name": "", "value": "x"}]}, "metadata[0].name"),
        ({"onAllTasksComplete": "explode"}, "onAllTasksComplete"),
        ({"commonEnvironmentSettings": [{"name": "A=B", "value": "x"}]}, "commonEnvironmentSettings[0].name"),
    ],
)
def test_limits_of_a_job(change: dict[str, object], path: str) -> None:
    """400 `InvalidPropertyValue` for the property (spec/rest.md §7.3)."""
    error = refused_job(**change)
    assert (error.status, error.code, dict(error.values)["PropertyName"]) == (400, "InvalidPropertyValue", path)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"requiredSlots": 0}, "requiredSlots"),
        ({"requiredSlots": 10**20}, "requiredSlots"),
        ({"constraints": {"retentionTime": "-P1D"}}, "constraints.retentionTime"),
        ({"exitConditions": {"exitCodes": [{"code": 2**31, "exitOptions": {}}]}}, "exitConditions.exitCodes[0].code"),
        (
            {"exitConditions": {"exitCodeRanges": [{"start": 2, "end": 1, "exitOptions": {}}]}},
            "exitConditions.exitCodeRanges[0]",
        ),
        ({"dependsOn": {"taskIdRanges": [{"start": -1, "end": 1}]}}, "dependsOn.taskIdRanges[0].start"),
        ({"commandLine": "x" * 32768}, "commandLine"),
        ({"environmentSettings": [{"name": "", "value": "x"}]}, "environmentSettings[0].name"),
        (
            {"multiInstanceSettings": {"coordinationCommandLine": "x"}, "requiredSlots": 2},
            "requiredSlots",
        ),
        (
            {"multiInstanceSettings": {"coordinationCommandLine": "x", "numberOfInstances": 0}},
            "multiInstanceSettings.numberOfInstances",
        ),
    ],
)
def test_limits_of_a_task(change: dict[str, object], path: str) -> None:
    """The same for tasks; a huge number is no exception."""
    error = refused_task(**change)
    assert (error.code, dict(error.values)["PropertyName"]) in {
        ("InvalidPropertyValue", path),
        ("InvalidRequestBody", path),  # beyond 64 bits a number of JSON is no whole one
    }


@given(st.text(max_size=80))
def test_an_id_is_what_batch_allows(text: str) -> None:
    """1 to 64 of its characters, kept as given; everything else is refused as the value of `id`."""
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text):
        assert parse(TaskCreate, TASK | {"id": text}).id == text
    else:
        assert dict(refused_task(id=text).values)["PropertyName"] == "id"


@given(st.from_regex(r"[A-Za-z0-9_-]{1,64}(:job-[0-9]{1,5})?\n?", fullmatch=True))
def test_a_line_feed_after_an_id_does_not_belong_to_it(text: str) -> None:
    """The end of a pattern is the end of the text."""
    if text.endswith("\n"):
        assert refused_job(id=text).code == "InvalidPropertyValue"
    else:
        assert parse(JobCreate, JOB | {"id": text}).id == text


def test_unknown_properties_are_refused_by_name_at_every_depth() -> None:
    """With the path of JSON; the name of a client is not repeated without end."""
    nested = refused_job(jobPreparationTask={"commandLine": "x", "constraints": {"colour": 1}})
    assert (nested.code, nested.values[0]) == (
        "UnsupportedProperty",
        ("PropertyName", "jobPreparationTask.constraints.colour"),
    )
    assert len(refused_job(**{"x" * 100_000: 1}).values[0][1]) <= 256


def test_loose_leaves_out_what_batch_does_not_have() -> None:
    """At every depth; all other rules hold, and the body that was given is as it was."""
    files = [{"httpUrl": "http://h/a", "filePath": "a", "colour": 1}, {"httpUrl": "http://h/b", "filePath": "b"}]
    body = TASK | {"colour": {"red": 1}, "resourceFiles": files}
    task = parse(TaskCreate, body, loose=True)
    assert [item.file_path for item in task.resource_files or ()] == ["a", "b"]
    assert orjson.dumps(body["resourceFiles"][0]) == orjson.dumps(files[0])
    with pytest.raises(BatchError) as caught:
        parse(TaskCreate, body | {"id": "a b"}, loose=True)
    assert dict(caught.value.values)["PropertyName"] == "id"
