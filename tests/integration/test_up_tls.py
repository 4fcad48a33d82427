"""`nodeagent up --tls`: agents, the unmodified SDK and bearer tokens over HTTPS with an authority made here."""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from azure.batch import BatchClient, models
from azure.core.credentials import AccessToken, AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError, ServiceRequestError
from click.testing import CliRunner

from nodeagent.cli.main import cli
from tests.integration.batch_endpoint import Sdk, completed, job, refusal, task

TOKEN = "a-token-of-nobody-but-the-test"
SECONDS = 60


class FixedToken:
    """A TokenCredential of the SDK: with it the SDK refuses plain HTTP."""

    def __init__(self, token: str) -> None:
        self._token = token

    def get_token(self, *scopes: str, **_: object) -> AccessToken:
        """Return the token, whatever it is for."""
        assert scopes == ("https://batch.core.windows.net//.default",)
        return AccessToken(self._token, int(time.time()) + 3600)


@contextmanager
def upped(state: Path, *options: str, **environment: str) -> Iterator[dict[str, Any]]:
    """Run `nodeagent up` and give what it says when it is ready."""
    command = [sys.executable, "-m", "nodeagent", "up", "--port=0", "--slots=2", "--json", f"--state-dir={state}"]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, f"it ended with {process.wait(SECONDS)}"
            yield json.loads(line)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=SECONDS)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Return what `up --tls` says of itself."""
    state = tmp_path_factory.mktemp("tls") / "state"
    with upped(state, "--tls", NODEAGENT_SERVICE_BEARER_TOKEN=TOKEN) as found:
        yield found


def _client(facts: dict[str, Any], credential: Sdk = None, ca: str | None = None) -> Sdk:
    key = AzureNamedKeyCredential(facts["account"], facts["key"])
    return BatchClient(facts["endpoint"], credential or key, connection_verify=ca or facts["ca"])


@pytest.mark.parametrize("credential", [None, FixedToken(TOKEN)], ids=["shared key", "bearer"])
def test_the_sdk_runs_a_task_over_https(facts: dict[str, Any], credential: Sdk) -> None:
    """Node and client trust the printed authority; a job runs to its end and its file comes back."""
    assert facts["endpoint"].startswith("https://127.0.0.1:")
    name = "tls-bearer" if credential else "tls-key"
    with _client(facts, credential) as client:
        client.create_job(job(name))
        client.create_task(name, task("t", "echo over tls $AZ_BATCH_ACCOUNT_URL"))
        assert completed(client, name, "t").execution_info.exit_code == 0
        text = b"".join(client.download_task_file(name, "t", "stdout.txt")).decode()
        assert text == f"over tls {facts['endpoint']}/\n"
        assert client.get_job(name).url == f"{facts['endpoint']}/jobs/{name}"


def test_a_wrong_token_is_refused_as_batch_does(facts: dict[str, Any]) -> None:
    """403 AuthenticationFailed, and the token is in no part of the answer."""
    with _client(facts, FixedToken("another-token")) as client:
        error = refusal(lambda: client.get_job("none"))
    assert (error.status_code, error.error.code) == (403, "AuthenticationFailed")
    assert "another-token" not in error.response.text()


def test_who_does_not_know_the_authority_does_not_connect(facts: dict[str, Any]) -> None:
    """The system's authorities have not signed it."""
    system = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    with _client(facts, ca=system) as client, pytest.raises(ServiceRequestError, match="certificate verify failed"):
        list(client.list_jobs(logging_enable=False, retry_total=0))


def test_our_own_commands_trust_a_given_authority(facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--ca-file` and the variable of requests both do; without them the certificate is refused, with one line."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    arguments = ["events", "--endpoint", facts["endpoint"], "--account", facts["account"], "--key", facts["key"]]
    assert CliRunner().invoke(cli, [*arguments, "--ca-file", facts["ca"]]).exit_code == 0
    told = CliRunner(env={"REQUESTS_CA_BUNDLE": facts["ca"]}).invoke(cli, arguments)
    assert (told.exit_code, json.loads(told.output.splitlines()[0])["seq"]) == (0, 1)
    refused = CliRunner().invoke(cli, arguments)
    assert "certificate verify failed" in str(refused.exception).lower()


def test_keys_are_private_and_a_restart_keeps_the_authority(tmp_path: Path) -> None:
    """Clients that trust it need not be told again, and other users cannot read a key."""
    seen = set()
    for _ in range(2):
        with upped(tmp_path / "state", "--tls") as found:
            folder = Path(found["ca"]).parent
            seen.add(Path(found["ca"]).read_bytes())
            modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
            assert modes == {"authority.pem": 0o600, "server.pem": 0o600, "ca.pem": modes["ca.pem"]}
            assert b"PRIVATE" not in Path(found["ca"]).read_bytes()
            with _client(found) as client:
                assert [node.state for node in client.list_nodes(found["pool"])] == [models.BatchNodeState.IDLE]
    assert len(seen) == 1


def test_without_tls_there_is_no_authority_and_the_sdk_keeps_its_token(tmp_path: Path) -> None:
    """The SDK's own rule is why TLS is there: no bearer token over plain HTTP."""
    with upped(tmp_path / "state", "--ephemeral", NODEAGENT_SERVICE_BEARER_TOKEN=TOKEN) as found:
        assert found["ca"] is None
        with (
            BatchClient(found["endpoint"], FixedToken(TOKEN)) as client,
            pytest.raises((ServiceRequestError, HttpResponseError), match="TLS protected"),
        ):
            client.get_job("none")
