"""SharedKey as real clients sign it, bearer tokens, and the clock."""

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import quote, urlsplit

import pytest
from azure.batch._patch import BatchSharedKeyAuthPolicy
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.pipeline import PipelineContext, PipelineRequest
from azure.core.pipeline.transport import HttpRequest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.service.errors import BatchError
from nodeagent.service.rest.auth import Authenticator
from nodeagent.service.rest.authorization import Caller
from nodeagent.service.rest.sharedkey import SignedRequest, is_signed, signature

ACCOUNT = "Local"
KEY = base64.b64encode(b"a key that is not a secret").decode()
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def authenticator(bearer: str | None = None) -> Authenticator:
    """Make an authenticator whose clock stands still."""
    return Authenticator(ACCOUNT, KEY, lambda: NOW, bearer)


def sdk_signed(method: str, url: str, headers: dict[str, str]) -> HttpRequest:
    """Let the SDK's own policy sign a request."""
    request = HttpRequest(method, url, headers={"ocp-date": format_datetime(NOW, usegmt=True)} | headers)
    policy = BatchSharedKeyAuthPolicy(AzureNamedKeyCredential(ACCOUNT, KEY))
    policy.on_request(PipelineRequest(request, PipelineContext(None)))
    return request


def checked(service: Authenticator, method: str, target: str, headers: dict[str, str]) -> Caller:
    """Ask an authenticator that waits for nobody."""
    return asyncio.run(service.check(method, target, headers))


def check(request: HttpRequest) -> None:
    """Verify a request of the SDK as the service would see it."""
    parts = urlsplit(request.url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    checked(authenticator(), request.method, target, {name.lower(): value for name, value in request.headers.items()})


SEGMENTS = st.text(min_size=1, max_size=8).map(lambda text: quote(text, safe=""))
NAMES = st.sampled_from(["api-version", "timeOut", "$filter", "$select", "maxresults", "$skiptoken", "Zeta"])
VALUES = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12)


@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]),
    segments=st.lists(SEGMENTS, min_size=1, max_size=4),
    query=st.dictionaries(NAMES, VALUES, max_size=4),
    match=st.sampled_from([None, '"0x8DBAE9D3C8B5A1F"', "*"]),
    length=st.sampled_from([None, "17"]),
)
def test_every_signature_of_the_sdk_is_accepted(
    method: str, segments: list[str], query: dict[str, str], match: str | None, length: str | None
) -> None:
    """Any verb, path, query and header that the SDK signs verifies, and not with another verb."""
    text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
    headers = {"Content-Type": "application/json; odata=minimalmetadata"} if length else {}
    headers |= {"If-Match": match} if match else {}
    headers |= {"Content-Length": length} if length else {}
    request = sdk_signed(method, f"http://127.0.0.1:1/{'/'.join(segments)}?{text}", headers)
    check(request)
    request.method = "PUT" if method != "PUT" else "POST"
    with pytest.raises(BatchError, match="AuthenticationFailed"):
        check(request)


def sign(text: str) -> str:
    """Sign a canonical string that a test has written out by hand."""
    return signature(text, base64.b64decode(KEY))


DATE = "Wed, 04 Mar 2026 05:06:07 GMT"
VARIANTS = {
    "empty Content-Length though 0 was sent": (
        "POST\n\n\n\n\n\n\n\n\n\n\n\nocp-date:" + DATE + "\n/Local/jobs\napi-version:1\ntimeOut:30",
        {"content-length": "0"},
    ),
    "lower-case query names and account": (
        "POST\n\n\n0\n\n\n\n\n\n\n\n\nocp-date:" + DATE + "\n/local/jobs\napi-version:1\ntimeout:30",
        {"content-length": "0"},
    ),
    "Content-Length 0 though none was sent": (
        "POST\n\n\n0\n\n\n\n\n\n\n\n\nocp-date:" + DATE + "\n/Local/jobs\napi-version:1\ntimeOut:30",
        {},
    ),
    "Date header left out of the string": (
        "POST\n\n\n\n\n\n\n\n\n\n\n\nocp-date:" + DATE + "\n/Local/jobs\napi-version:1\ntimeOut:30",
        {"date": DATE},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_known_deviations_of_clients_are_accepted(name: str) -> None:
    """Clients differ in Content-Length, case and Date: every row of the table in spec/rest.md §6.2 verifies."""
    text, headers = VARIANTS[name]
    sent = {"ocp-date": DATE, "authorization": f"SharedKey Local:{sign(text)}"} | headers
    checked(authenticator(), "POST", "/jobs?api-version=1&timeOut=30", sent)


def test_java_signs_the_date_header_and_no_ocp_date() -> None:
    """Without `ocp-date` the `Date` header is signed in its place and counts for the clock."""
    text = f"GET\n\n\n\n\napplication/json\n{DATE}\n\n\n\n\n\n/local/jobs\napi-version:1"
    sent = {"date": DATE, "content-type": "application/json", "authorization": f"SharedKey local:{sign(text)}"}
    checked(authenticator(), "GET", "/jobs?api-version=1", sent)


def test_blank_parameters_may_be_signed_or_not() -> None:
    """Py skips parameters without a value, all others sign them."""
    for text in ("\n$filter:\napi-version:1", "\napi-version:1"):
        canonical = f"GET\n\n\n\n\n\n\n\n\n\n\n\nocp-date:{DATE}\n/Local/jobs{text}"
        sent = {"ocp-date": DATE, "authorization": f"SharedKey Local:{sign(canonical)}"}
        checked(authenticator(), "GET", "/jobs?api-version=1&$filter=", sent)


def test_the_encoded_path_is_signed() -> None:
    """`%2F` in a file name stays as it was sent."""
    canonical = f"GET\n\n\n\n\n\n\n\n\n\n\n\nocp-date:{DATE}\n/Local/jobs/j/tasks/t/files/wd%2Fa\napi-version:1"
    sent = {"ocp-date": DATE, "authorization": f"SharedKey Local:{sign(canonical)}"}
    checked(authenticator(), "GET", "/jobs/j/tasks/t/files/wd%2Fa?api-version=1", sent)
    with pytest.raises(BatchError, match="AuthenticationFailed"):
        checked(authenticator(), "GET", "/jobs/j/tasks/t/files/wd/a?api-version=1", sent)


@pytest.mark.parametrize(("minutes", "accepted"), [(-16, False), (-14, True), (14, True), (16, False)])
def test_the_clock_may_differ_by_a_quarter_of_an_hour(minutes: int, accepted: bool) -> None:  # noqa: FBT001 - a table
    """A correct signature with an old or future date is refused with a reason."""
    when = format_datetime(NOW + timedelta(minutes=minutes), usegmt=True)
    request = sdk_signed("GET", "http://h/jobs?api-version=1", {"ocp-date": when})
    if accepted:
        check(request)
        return
    with pytest.raises(BatchError) as caught:
        check(request)
    assert "15 minutes" in dict(caught.value.values)["AuthenticationErrorDetail"]


@pytest.mark.parametrize(
    ("authorization", "status", "code"),
    [
        ("", 403, "AuthenticationFailed"),
        ("Basic abc", 400, "InvalidAuthenticationInfo"),
        ("SharedKey", 400, "InvalidAuthenticationInfo"),
        ("SharedKey Local", 400, "InvalidAuthenticationInfo"),
        ("SharedKey Local:", 400, "InvalidAuthenticationInfo"),
        ("SharedKey other:c2ln", 403, "AuthenticationFailed"),
        ("SharedKey Local:c2ln", 403, "AuthenticationFailed"),
        ("SharedKey Local:\u00e9", 403, "AuthenticationFailed"),
        ("Bearer wrong", 403, "AuthenticationFailed"),
        ("Bearer", 403, "AuthenticationFailed"),
    ],
)
def test_bad_authorization_is_403_or_400_never_401(authorization: str, status: int, code: str) -> None:
    """What cannot be read is 400, what is not allowed is 403."""
    headers = {"ocp-date": DATE} | ({"authorization": authorization} if authorization else {})
    with pytest.raises(BatchError) as caught:
        checked(authenticator("right"), "GET", "/jobs", headers)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert KEY not in str(caught.value.values)
    assert "right" not in str(caught.value.values)


def test_a_configured_token_is_accepted_and_only_then() -> None:
    """Without a configured token no bearer is accepted, not even an empty one."""
    checked(authenticator("right"), "GET", "/jobs", {"authorization": "Bearer right"})
    with pytest.raises(BatchError, match="AuthenticationFailed"):
        checked(authenticator(), "GET", "/jobs", {"authorization": "Bearer right"})


def test_a_date_that_is_none_is_refused() -> None:
    """The date must be there, and be a date."""
    for date in ({}, {"ocp-date": "yesterday"}):
        with pytest.raises(BatchError, match="AuthenticationFailed"):
            checked(authenticator(), "GET", "/jobs", {"authorization": "SharedKey Local:c2ln"} | date)


def test_a_key_that_is_no_base64_is_refused_at_start() -> None:
    """A wrong setting fails when the service starts, not at the first call."""
    with pytest.raises(ValueError, match="base64"):
        Authenticator(ACCOUNT, "not base64!", lambda: NOW)


@given(st.text(max_size=30))
def test_no_text_is_a_signature_by_chance(given_text: str) -> None:
    """Comparing with any text returns false instead of raising."""
    request = SignedRequest("GET", "/jobs", "api-version=1&a+b=c", {"ocp-date": DATE})
    assert not is_signed(request, ACCOUNT, b"key", given_text)
