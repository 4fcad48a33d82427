"""Every row of the table of real clients (spec/rest.md §6.2), signed here by a signer of a few lines of its own."""

import asyncio
import base64
import hashlib
import hmac
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest

from nodeagent.service.errors import BatchError
from nodeagent.service.rest.auth import Authenticator

ACCOUNT = "MyBatch"
KEY = base64.b64encode(b"a key that is not a secret").decode()
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
DATE = "Wed, 04 Mar 2026 05:06:07 GMT"
JSON = "application/json; odata=minimalmetadata"

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Client:
    """What a client sends and signs; each field is one row of the table."""

    empty_length: Callable[[str], tuple[str | None, str]]
    """Of a request without body: the Content-Length that is sent, and the one that is signed."""
    lower_names: bool = False
    keeps_blank: bool = True
    date_header: str = "ocp-date"
    type_of_get: str | None = None
    lower_account: bool = False
    order: Callable[[str], str] = str


WRITES = ("POST", "PUT", "PATCH", "DELETE")
LETTERS = str.lower
"""How localeCompare orders: `Zone` behind `api-version`."""

CLIENTS = {
    "docs": Client(lambda _: (None, ""), lower_names=True),
    "docs, old": Client(lambda _: (None, "0"), lower_names=True),
    "py": Client(lambda method: ("0", "0") if method in WRITES else (None, ""), keeps_blank=False),
    "js 10": Client(lambda method: ("0", "0") if method == "POST" else (None, ""), type_of_get=JSON),
    "js 10, proxied": Client(lambda _: ("0", ""), type_of_get=JSON),
    "js 13": Client(lambda method: (None, "0") if method == "POST" else (None, ""), order=LETTERS),
    "java": Client(
        lambda _: ("0", "0"), lower_names=True, date_header="date", type_of_get="application/json", lower_account=True
    ),
    "batch explorer": Client(
        lambda method: (None, "") if method in ("GET", "DELETE", "HEAD") else ("0", "0"),
        type_of_get="application/json; charset=UTF-8",
    ),
}


@dataclass(frozen=True)
class Sent:
    """A request as it goes over the wire."""

    method: str
    path: str
    query: Pairs
    headers: dict[str, str]

    @property
    def target(self) -> str:
        """The target of the request line."""
        return f"{self.path}?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in self.query)


def signed(client: Client, method: str, path: str, query: Pairs, body: int, more: dict[str, str]) -> Sent:
    """Return a request as a client sends it: with `body` bytes, and with further headers."""
    sent_length, length = (str(body), str(body)) if body else client.empty_length(method)
    kind = JSON if body else client.type_of_get if method in ("GET", "HEAD") else None
    given = {client.date_header: DATE, "content-length": sent_length, "content-type": kind, **more}
    headers = {name: value for name, value in given.items() if value is not None}
    named = {**headers, "content-length": length}
    plain = "content-encoding content-language content-length content-md5 content-type date if-modified-since if-match"
    lines = [method, *(named.get(name, "") for name in f"{plain} if-none-match if-unmodified-since range".split())]
    lines += [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("ocp-")]
    account = ACCOUNT.lower() if client.lower_account else ACCOUNT
    kept = [(name.lower() if client.lower_names else name, value) for name, value in query]
    kept = [pair for pair in kept if pair[1] or client.keeps_blank]
    lines.append(f"/{account}{path}")
    lines += [f"{name}:{value}" for name, value in sorted(kept, key=lambda pair: client.order(pair[0]))]
    digest = hmac.new(base64.b64decode(KEY), "\n".join(lines).encode(), hashlib.sha256).digest()
    headers["authorization"] = f"SharedKey {account}:{base64.b64encode(digest).decode()}"
    return Sent(method, path, query, headers)


def accepted(sent: Sent, now: datetime = NOW) -> bool:
    """Tell whether the service takes a request; a refusal must be the one for a wrong signature or date."""
    service = Authenticator(ACCOUNT, KEY, lambda: now)
    try:
        return asyncio.run(service.check(sent.method, sent.target, sent.headers)).kind == "sharedKey"
    except BatchError as error:
        if (error.status, error.code) != (403, "AuthenticationFailed"):
            raise
        return False


VERSION = ("api-version", "2025-06-01")
REQUESTS: dict[str, tuple[str, str, Pairs, int, dict[str, str]]] = {
    "list": ("GET", "/jobs", (VERSION, ("$filter", "id eq 'a+b é'"), ("timeOut", "30"), ("$select", "")), 0, {}),
    "head": ("HEAD", "/pools/p", (VERSION,), 0, {}),
    "add": ("POST", "/jobs", (VERSION, ("timeOut", "30")), 17, {}),
    "act": ("POST", "/jobs/a%3Ajob-1/terminate", (("timeOut", "30"), VERSION), 0, {"if-match": '"0x8D"'}),
    "act on a condition": ("POST", "/jobs/j/disable", (VERSION,), 20, {"if-none-match": "*"}),
    "put": ("PUT", "/jobs/j/tasks/t", (VERSION,), 5, {"if-unmodified-since": DATE}),
    "patch": ("PATCH", "/pools/p", (VERSION, ("Zone", "1")), 9, {"if-modified-since": DATE}),
    "delete": ("DELETE", "/jobs/j", (VERSION, ("timeOut", "30")), 0, {}),
    "read a part": ("GET", "/jobs/j/tasks/t/files/wd%2Fa%20b", (VERSION,), 0, {"ocp-range": "bytes=0-9"}),
    "read a range": ("GET", "/jobs/j/tasks/t/files/wd/a", (VERSION,), 0, {"range": "bytes=0-9"}),
    "encoded body": ("POST", "/jobs", (VERSION,), 9, {"content-encoding": "gzip", "content-md5": "Q2hlY2s="}),
    "language": ("POST", "/jobs", (VERSION,), 9, {"content-language": "en"}),
}


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_is_understood(client: str, request_name: str) -> None:
    """And in whatever order its headers come."""
    sent = signed(CLIENTS[client], *REQUESTS[request_name])
    assert accepted(sent)
    names = list(sent.headers)
    for seed in range(5):
        random.Random(seed).shuffle(names)  # noqa: S311 - an order, not a secret
        assert accepted(replace(sent, headers={name: sent.headers[name] for name in names}))


@pytest.mark.parametrize("client", CLIENTS)
def test_nothing_that_is_signed_may_change(client: str) -> None:
    """Verb, path, each parameter, each signed header: with any other value the signature is wrong."""
    more = {"if-match": '"0x8D"', "ocp-range": "bytes=0-9", "content-md5": "Q2hlY2s="}
    sent = signed(CLIENTS[client], "POST", "/jobs/j/tasks", (VERSION, ("timeOut", "30")), 17, more)
    assert accepted(sent)
    date = CLIENTS[client].date_header
    changed = [
        replace(sent, method="PUT"),
        replace(sent, path="/jobs/k/tasks"),
        replace(sent, path="/jobs/j/Tasks"),
        replace(sent, query=(VERSION, ("timeOut", "31"))),
        replace(sent, query=(VERSION,)),
        replace(sent, query=(*sent.query, ("maxresults", "1"))),
        replace(sent, headers={**sent.headers, "content-length": "18"}),
        replace(sent, headers={**sent.headers, date: "Wed, 04 Mar 2026 05:06:08 GMT"}),
        replace(sent, headers={**sent.headers, "if-match": "*"}),
        replace(sent, headers={**sent.headers, "ocp-range": "bytes=0-99"}),
        replace(sent, headers={**sent.headers, "ocp-else": "1"}),
        replace(sent, headers={**sent.headers, "content-md5": ""}),
        replace(sent, headers={**sent.headers, "content-type": "text/plain"}),
    ]
    assert [other for other in changed if accepted(other)] == []


@pytest.mark.parametrize("client", ["py", "java"])
@pytest.mark.parametrize(("seconds", "good"), [(-901, False), (-900, True), (900, True), (901, False)])
def test_a_quarter_of_an_hour_is_the_limit(client: str, seconds: int, good: bool) -> None:  # noqa: FBT001 - a table
    """By either header, to the second, whatever the signature says."""
    sent = signed(CLIENTS[client], *REQUESTS["list"])
    assert accepted(sent, NOW + timedelta(seconds=seconds)) is good


def test_the_date_of_the_protocol_wins() -> None:
    """A proxy may set `Date` to anything; who has `ocp-date` means that one."""
    sent = signed(CLIENTS["py"], *REQUESTS["list"])
    assert accepted(replace(sent, headers={**sent.headers, "date": "Tue, 01 Jan 2019 00:00:00 GMT"}))
    stale = signed(CLIENTS["java"], *REQUESTS["list"])
    old = {**stale.headers, "ocp-date": "Tue, 01 Jan 2019 00:00:00 GMT"}
    assert not accepted(replace(stale, headers=old))
