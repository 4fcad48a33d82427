"""A service without authentication, and the lines of `--trace-http`."""

import base64
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from nodeagent.local.client import BatchClient
from nodeagent.service.app import Service
from nodeagent.service.rest.trace import shown_target
from nodeagent.service.settings import ServiceSettings
from tests.integration.command_line import nodeagent

ACCOUNT = "devaccount"
KEY = base64.b64encode(b"the key of a test's account").decode()
QUERY = "api-version=2025-06-01"


@asynccontextmanager
async def _service(folder: Path, **more: object) -> AsyncIterator[Service]:
    settings = {"port": 0, "key": SecretStr(KEY), "state_dir": folder / "service", **more}
    async with Service(ServiceSettings.model_validate(settings)) as service:
        yield service


async def _get(url: str, **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with aiohttp.ClientSession() as session, session.get(url, headers=sent) as answer:
        body = await answer.json(content_type=None)
        return answer.status, body, {name.lower(): value for name, value in answer.headers.items()}


async def test_without_authentication_everybody_on_this_machine_may(tmp_path: Path) -> None:
    """No header, any header: the account's rights."""
    async with _service(tmp_path, no_auth=True) as service:
        for headers in ({}, {"authorization": "SharedKey x:y"}, {"authorization": "Bearer z"}, {"authorization": "?"}):
            assert (await _get(f"{service.url}/jobs?{QUERY}", **headers))[0] == 200, headers
        assert (await _get(f"http://localhost:{service.port}/jobs?{QUERY}"))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec_fetch_site": "cross-site"},
        {"host": "evil.example"},  # a name of the attacker's that leads to 127.0.0.1
        {"host": "evil.example:8190"},
        {"host": "127.0.0.1.evil.example"},
    ],
)
async def test_a_web_page_may_not(tmp_path: Path, headers: dict[str, str]) -> None:
    """A browser on this machine would send its requests here, and they would run commands."""
    async with _service(tmp_path, no_auth=True) as service:
        status, body, _ = await _get(f"{service.url}/jobs?{QUERY}", **headers)
        assert (status, body["code"]) == (403, "AuthenticationFailed")


async def test_nodes_still_show_their_key(tmp_path: Path) -> None:
    """Clients are asked for nothing, agents are."""
    async with (
        _service(tmp_path, no_auth=True) as service,
        aiohttp.ClientSession() as session,
        session.post(f"{service.url}/nodeapi/v1/heartbeat", json={}) as answer,
    ):
        assert (answer.status, (await answer.json())["code"]) == (403, "NodeKeyRefused")


async def test_no_authentication_is_refused_where_others_could_call(tmp_path: Path) -> None:
    """One line, status 2, and nothing listens."""
    state = tmp_path / "state"
    status, _, err = await nodeagent(
        "service", "--no-auth", "--host=0.0.0.0", "--port=0", f"--key={KEY}", f"--state-dir={state}"
    )
    assert (status, err.strip()) == (
        2,
        "nodeagent: service: no_auth is only possible if host is loopback: anybody could run commands",
    )
    assert not state.exists()


async def test_a_certificate_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    """Status 2 with the names of the settings."""
    (tmp_path / "a.pem").write_text("no certificate")
    files = [f"--tls-certificate={tmp_path}/a.pem", f"--tls-key={tmp_path}/a.pem"]
    status, _, err = await nodeagent("service", "--port=0", f"--key={KEY}", f"--state-dir={tmp_path}/state", *files)
    told = err.strip().splitlines()[-1]
    assert status == 2
    assert told.startswith("nodeagent: service.tls_certificate and service.tls_key: ")


async def test_a_file_that_holds_no_authority_is_one_line(tmp_path: Path) -> None:
    """Also for the commands that ask a service."""
    (tmp_path / "ca.pem").write_text("no certificate")
    status, _, err = await nodeagent("events", "--endpoint=https://127.0.0.1:1", f"--ca-file={tmp_path}/ca.pem")
    assert (status, err.strip()) == (
        2,
        f"nodeagent: {tmp_path}/ca.pem cannot be used: it holds no certificate (PEM)",
    )


async def test_an_agent_that_cannot_read_its_authority_says_so(tmp_path: Path) -> None:
    """It ends with one line instead of trying for ever."""
    (tmp_path / "key").write_text("k")
    folders = [f"--state-dir={tmp_path}/state", f"--root={tmp_path}/root", f"--node-key-file={tmp_path}/key"]
    authority = f"--service-ca-file={tmp_path}/none.pem"
    status, _, err = await nodeagent("agent", "--service=https://127.0.0.1:1", "--accounts=none", authority, *folders)
    told = err.strip().splitlines()[-1]
    assert (status, told) == (
        7,
        f"nodeagent: service_ca_file {tmp_path}/none.pem cannot be used: No such file or directory",
    )


async def test_every_request_leaves_one_line_without_secrets(tmp_path: Path) -> None:
    """Who, what, how it ended; the id is the one that the caller got; no signature, no token."""
    token = "a-token-of-the-test"
    async with _service(tmp_path, trace_http=True, bearer_token=SecretStr(token)) as service:
        with capture_logs() as logs:
            async with BatchClient(service.url, ACCOUNT, KEY) as client:
                await client.applications()
            jobs = f"{service.url}/jobs?{QUERY}&$select=id&sig=c2VjcmV0&se=2027"
            _, _, opened = await _get(jobs, authorization=f"Bearer {token}")
            _, _, refused = await _get(f"{service.url}/jobs?{QUERY}", authorization="Bearer wrong-token")
            _, _, health = await _get(f"{service.url}/healthz")
            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {service.node_key}"}) as session:
                await (await session.post(f"{service.url}/nodeapi/v1/heartbeat", data=b"{}")).read()
    lines = [line for line in logs if line["event"] == "http"]
    assert [(line["method"], line["path"].partition("?")[0], line["status"], line["caller"]) for line in lines] == [
        ("GET", "/nodeagent/v1/applications", 200, "sharedKey"),
        ("GET", "/jobs", 400, "bearer"),  # which has no parameter of that name
        ("GET", "/jobs", 403, None),
        ("GET", "/healthz", 200, None),
        ("POST", "/nodeapi/v1/heartbeat", 400, "node"),
    ]
    assert [line["request_id"] for line in lines[1:4]] == [
        headers["request-id"] for headers in (opened, refused, health)
    ]
    assert lines[1]["path"] == f"/jobs?{QUERY}&$select=id&sig=***&se=***"
    assert lines[4]["bytes_in"] == 2
    assert lines[1]["bytes_out"] > 10
    assert all(line["ms"] >= 0 and line["remote"] == "127.0.0.1" for line in lines)
    assert not any(secret in str(logs) for secret in (token, "wrong-token", "c2VjcmV0", service.node_key, KEY))


async def test_without_the_setting_there_is_no_line(tmp_path: Path) -> None:
    """And the answer still has its id."""
    async with _service(tmp_path) as service:
        with capture_logs() as logs:
            _, _, headers = await _get(f"{service.url}/healthz")
    assert headers["request-id"]
    assert not [line for line in logs if line["event"] == "http"]


async def test_a_client_that_goes_away_leaves_a_line_too(tmp_path: Path) -> None:
    """The body that was promised never comes: whatever ends the request, it is told."""
    async with _service(tmp_path, no_auth=True, trace_http=True) as service:
        with capture_logs() as logs:
            head = f"POST /jobs?{QUERY} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{{"
            with socket.create_connection(("127.0.0.1", service.port)) as connection:
                connection.sendall(head.encode())
            # the next request is handled after the loop has seen the end of the first
            await _get(f"{service.url}/healthz")
        # leaving the block waits for what is being handled
    assert [line["path"] for line in logs if line["event"] == "http" and line["method"] == "POST"] == [f"/jobs?{QUERY}"]


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/jobs", "/jobs"),
        ("/jobs?", "/jobs?"),
        ("/jobs?api-version=1&%24filter=id%20eq%201", "/jobs?api-version=1&%24filter=id%20eq%201"),
        ("/jobs?token=abc&x&=secret&timeOut=3", "/jobs?token=***&x&=***&timeOut=3"),
        ("/jobs?a=b=c&API-Version=1", "/jobs?a=***&API-Version=1"),
    ],
)
def test_only_known_parameters_are_shown(target: str, shown: str) -> None:
    """By name, whatever the case."""
    assert shown_target(target) == shown
