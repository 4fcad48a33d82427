"""What is foreseen of the SAS in a task's URLs: times, permissions, form; and that nothing of a SAS is repeated."""

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from azure.storage.blob import (
    AccountSasPermissions,
    BlobSasPermissions,
    ContainerSasPermissions,
    ResourceTypes,
    generate_account_sas,
    generate_blob_sas,
    generate_container_sas,
)
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.model.job import JobCreate
from nodeagent.model.task import TaskCreate
from nodeagent.model.times import UNLIMITED
from nodeagent.rules.sas import SasWarning, job_warnings, task_warnings, told, warnings

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
KEY = b64encode(b"the key of a test's account").decode()
HOST = "https://account.blob.core.windows.net"
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def container(permissions: str, expires: timedelta = 8 * DAY, start: timedelta | None = None) -> str:
    """Return a container's URL with the SAS that Microsoft's own package makes."""
    sas = generate_container_sas(
        "account",
        "c",
        account_key=KEY,
        permission=ContainerSasPermissions.from_string(permissions),
        expiry=NOW + expires,
        start=None if start is None else NOW + start,
    )
    return f"{HOST}/c?{sas}"


def blob(permissions: str, expires: timedelta = 8 * DAY) -> str:
    """Return the same of one blob."""
    sas = generate_blob_sas(
        "account",
        "c",
        "b",
        account_key=KEY,
        permission=BlobSasPermissions.from_string(permissions),
        expiry=NOW + expires,
    )
    return f"{HOST}/c/b?{sas}"


def account(permissions: str, types: str) -> str:
    """Return a container's URL with a SAS of the whole account."""
    sas = generate_account_sas(
        "account",
        KEY,
        resource_types=ResourceTypes(object="o" in types, container="c" in types, service="s" in types),
        permission=AccountSasPermissions(read="r" in permissions, list="l" in permissions, write="w" in permissions),
        expiry=NOW + 8 * DAY,
    )
    return f"{HOST}/c?{sas}"


def http(url: str) -> TaskCreate:
    """Return a task with one file by its URL."""
    return TaskCreate.model_validate(
        {"id": "t", "commandLine": "x", "resourceFiles": [{"httpUrl": url, "filePath": "f"}]}
    )


def listing(url: str) -> TaskCreate:
    """Return a task with the files of a container."""
    return TaskCreate.model_validate({"id": "t", "commandLine": "x", "resourceFiles": [{"storageContainerUrl": url}]})


def output(url: str) -> TaskCreate:
    """Return a task with output files."""
    file = {"filePattern": "*", "destination": {"container": {"containerUrl": url}}}
    return TaskCreate.model_validate({"id": "t", "commandLine": "x", "outputFiles": [file]})


def codes(found: tuple[SasWarning, ...]) -> list[str]:
    """Return the codes of warnings."""
    return [item.code for item in found]


@pytest.mark.parametrize(
    ("task", "limit", "expected"),
    [
        (http(f"{HOST}/c/b"), HOUR, []),
        (http("http://h/x?sv=1.0&sp=/triggers/manual/run&sig=abc"), HOUR, []),
        (http("http://h/x?version=3&sig=abc"), HOUR, []),
        (http("http://h/x?page=2"), HOUR, []),
        (http(blob("r")), HOUR, []),
        (http(blob("r")), UNLIMITED, []),
        (http(blob("r", -HOUR)), HOUR, ["SasExpired"]),
        (http(blob("r", timedelta(0))), HOUR, ["SasExpired"]),
        (http(blob("r", 2 * HOUR)), 2 * HOUR, []),
        (http(blob("r", 2 * HOUR)), 3 * HOUR, ["SasExpiresBeforeEnd"]),
        (http(blob("r", 2 * HOUR)), UNLIMITED, []),
        (http(blob("r", HOUR / 2)), UNLIMITED, ["SasExpiresBeforeEnd"]),
        (output(container("w", 2 * HOUR)), UNLIMITED, ["SasExpiresBeforeEnd"]),
        (output(container("w", 25 * HOUR)), UNLIMITED, []),
        (http(blob("w")), HOUR, ["SasLacksPermission"]),
        (http(container("r")), HOUR, []),
        (listing(container("rl")), HOUR, []),
        (listing(container("r")), HOUR, ["SasLacksPermission"]),
        (listing(container("l")), HOUR, ["SasLacksPermission"]),
        (listing(container("rl", start=HOUR)), HOUR, ["SasNotYetValid"]),
        (listing(container("rl", start=-HOUR)), HOUR, []),
        (listing(blob("r")), HOUR, ["SasLacksPermission"]),
        (output(container("w")), HOUR, []),
        (output(container("c")), HOUR, []),
        (output(container("rl")), HOUR, ["SasLacksPermission"]),
        (output(blob("w")), HOUR, ["SasLacksPermission"]),
        (listing(account("rl", "co")), HOUR, []),
        (listing(account("rl", "o")), HOUR, ["SasLacksPermission"]),
        (listing(account("rl", "sc")), HOUR, ["SasLacksPermission"]),
        (output(account("w", "o")), HOUR, []),
        (output(container("r", -HOUR)), HOUR, ["SasExpired", "SasLacksPermission"]),
    ],
)
def test_what_is_warned_of(task: TaskCreate, limit: timedelta, expected: list[str]) -> None:
    """Each kind of SAS, against each need; the URLs are made by the storage SDK."""
    assert codes(warnings(task, NOW, limit)) == expected


@pytest.mark.parametrize(
    "query",
    [
        "sv=2020-01-01&se=2027-01-01&sp=r&sr=b",
        "sv=2020-01-01&se=2027-01-01&sp=r&sr=b&sig=",
        "sv=2020-01-01&se=2027-01-01&sp=r&sr=b&sig=c2hvcnQ%3D",
        "sv=2020-01-01&se=tomorrow&sp=r&sr=b&sig=" + quote(b64encode(bytes(32))),
        "sv=2020-01-01&se=2027-02-30&sp=r&sr=b&sig=" + quote(b64encode(bytes(32))),
        "sv=2020-01-01&se=9999-12-31T23:59:59-12:00&sp=r&sr=b&sig=" + quote(b64encode(bytes(32))),
        "sv=2020-01-01&st=soon&se=2027-01-01&sp=r&sr=b&sig=" + quote(b64encode(bytes(32))),
        "sv=2020-01-01&sp=r&sr=b&sig=" + quote(b64encode(bytes(32))),
        "sv=2020-01-01&se=2027-01-01&sr=b&sig=" + quote(b64encode(bytes(32))),
        "sv=2020-01-01&se=2027-01-01&sp=r&sr=b&sig=" + quote(quote(b64encode(bytes([255]) * 32))),
    ],
)
def test_what_no_storage_would_take(query: str) -> None:
    """No signature, a cut or twice encoded one, times that are none, what is missing."""
    assert codes(warnings(http(f"{HOST}/c/b?{query}"), NOW, HOUR)) == ["SasMalformed"]


@pytest.mark.parametrize(
    "expiry", ["2026-05-01T11:00:00Z", "2026-05-01T11:00Z", "2026-05-01", "2026-05-01T12:30+02:00"]
)
def test_every_form_of_time_is_read(expiry: str) -> None:
    """Storage takes a day, minutes, seconds and an offset."""
    url = f"{HOST}/c/b?sv=1&se={quote(expiry)}&sp=r&sr=b&sig={quote(b64encode(bytes(32)))}"
    assert codes(warnings(http(url), NOW, HOUR)) == ["SasExpired"]


def test_a_stored_policy_says_what_the_url_does_not() -> None:
    """With `si` the times and permissions are not to be seen, so nothing is said of them."""
    url = f"{HOST}/c?sv=2020-01-01&si=mine&sr=c&sig={quote(b64encode(bytes(32)))}"
    assert warnings(listing(url), NOW, HOUR) == ()


def test_a_plus_that_was_not_encoded_is_no_fault() -> None:
    """Some programs write the signature's base64 as it is."""
    signature = b64encode(bytes([251, 239, 190] * 10 + [251, 239])).decode()
    url = f"{HOST}/c/b?sv=1&se=2027-01-01&sp=r&sr=b&sig={signature}"
    assert "+" in url
    assert warnings(http(url), NOW, HOUR) == ()


def test_the_property_is_named_and_the_remedy_told() -> None:
    """Of every kind of task, with the path from the job where it is the job's."""
    job = JobCreate.model_validate(
        {
            "id": "j",
            "poolInfo": {"poolId": "p"},
            "jobManagerTask": {
                "id": "m",
                "commandLine": "x",
                "resourceFiles": [{"storageContainerUrl": container("r")}],
            },
            "jobPreparationTask": {
                "commandLine": "x",
                "resourceFiles": [{"httpUrl": "http://h/x", "filePath": "a"}, {"httpUrl": blob("w"), "filePath": "b"}],
            },
            "jobReleaseTask": {
                "commandLine": "x",
                "resourceFiles": [{"httpUrl": blob("r", timedelta(minutes=14)), "filePath": "a"}],
            },
        }
    )
    assert [(item.property, item.message) for item in job_warnings(job, NOW)] == [
        ("jobManagerTask.resourceFiles[0].storageContainerUrl", "the SAS does not have the permission 'l'"),
        ("jobPreparationTask.resourceFiles[1].httpUrl", "the SAS does not have the permission 'r'"),
        (
            "jobReleaseTask.resourceFiles[0].httpUrl",
            "the SAS expires at 2026-05-01T12:14:00Z, before maxWallClockTime is over",
        ),
    ]
    (warning,) = task_warnings(output(container("w", 2 * HOUR)), NOW)
    assert warning == SasWarning(
        "SasExpiresBeforeEnd",
        "outputFiles[0].destination.container.containerUrl",
        "the SAS expires at 2026-05-01T14:00:00Z, in less than 24 h, and the task has no time limit",
    )


def test_what_is_shown_of_a_task_follows_the_clock() -> None:
    """What was foreseen stays until it has come true; of a completed task it is what was known at first."""
    task = http(blob("r", 2 * HOUR))
    limit = 3 * HOUR
    assert codes(told(task, NOW, NOW + HOUR, limit, completed=False)) == ["SasExpiresBeforeEnd"]
    assert codes(told(task, NOW, NOW + 2 * HOUR, limit, completed=False)) == ["SasExpired"]
    assert codes(told(task, NOW, NOW + 2 * HOUR, limit, completed=True)) == ["SasExpiresBeforeEnd"]
    # of a task that had time enough, only an expiry is news: it is not the limit that has grown
    fine = http(blob("r", 4 * HOUR))
    assert told(fine, NOW, NOW + 2 * HOUR, limit, completed=False) == ()
    lacking = output(container("r", HOUR))
    assert codes(told(lacking, NOW, NOW + 2 * HOUR, limit, completed=False)) == ["SasExpired", "SasLacksPermission"]


NAMES = st.sampled_from(["sv", "st", "se", "sp", "sr", "srt", "ss", "si", "sig", "SE", "page", "", "%73e"])
VALUES = st.one_of(
    st.sampled_from(["2026-01-01", "9999-99-99", "2026-05-01T12:00:00Z", "r", "rwl", "c", "b", "o", "%", "%ZZ", "+"]),
    st.text(max_size=12).map(quote_plus),
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), st.sampled_from([http, listing, output]))
def test_any_query_is_read_without_harm(parts: list[tuple[str, str]], make: Any) -> None:  # noqa: ANN401
    """Whatever stands there: no exception, known codes only, and what it says of times and letters is all it says."""
    secret = "n0tToBeTold"
    query = "&".join(f"{name}={value}" for name, value in [*parts, ("sig", secret)])
    for item in warnings(make(f"{HOST}/c/x?{query}"), NOW, HOUR):
        assert item.code in {
            "SasExpired",
            "SasNotYetValid",
            "SasExpiresBeforeEnd",
            "SasLacksPermission",
            "SasMalformed",
        }
        assert secret not in item.message


@given(
    st.sets(st.sampled_from("racwdl"), min_size=1),
    st.integers(min_value=-1000, max_value=1000).filter(lambda minutes: minutes != 0),
    st.integers(min_value=1, max_value=1000),
)
def test_a_warning_comes_exactly_when_the_sas_will_fail(letters: set[str], minutes: int, limit: int) -> None:
    """For a container's files and their SAS: permission and time, each told alone or both."""
    url = container("".join(sorted(letters, key="racwdl".index)), timedelta(minutes=minutes))
    found = set(codes(warnings(listing(url), NOW, timedelta(minutes=limit))))
    expected = set()
    if not {"r", "l"} <= letters:
        expected.add("SasLacksPermission")
    if minutes < 0:
        expected.add("SasExpired")
    elif minutes < limit:
        expected.add("SasExpiresBeforeEnd")
    assert found == expected
