"""`authenticationTokenSettings` on the real stack: a job manager adds tasks to its own job, and nothing else."""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

from azure.batch import BatchClient, models

from tests.integration.batch_endpoint import BatchEndpoint, Sdk, completed, eventually, job, local_stack, refusal

pytest_plugins = ["tests.integration.batch_fixtures"]

VERSION = "api-version=2024-07-01.20.0"
MANAGER = r"""
import json, os, sys, urllib.error, urllib.request

def call(method, path, body=None):
    request = urllib.request.Request(os.environ["AZ_BATCH_ACCOUNT_URL"] + path + "?VERSION", method=method)
    request.add_header("Authorization", "Bearer " + os.environ["AZ_BATCH_AUTHENTICATION_TOKEN"])
    request.add_header("Content-Type", "application/json; odata=minimalmetadata")
    try:
        with urllib.request.urlopen(request, json.dumps(body).encode() if body else None) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()

job = os.environ["AZ_BATCH_JOB_ID"]
told = {"other": call("GET", "jobs/other"), "jobs": call("GET", "jobs"), "pool": call("GET", "pools/local"),
        "events": call("GET", "nodeagent/v1/events"), "own": call("GET", "jobs/" + job.upper())}
tasks = [{"id": "child-%d" % n, "commandLine": "/bin/true"} for n in range(50)]
told["added"] = call("POST", "jobs/" + job + "/addtaskcollection", {"value": tasks})
told["listed"] = call("GET", "jobs/" + job + "/tasks")
print(json.dumps({name: [status, text[:300]] for name, (status, text) in told.items()}))
open(sys.argv[1], "w").write(os.environ["AZ_BATCH_AUTHENTICATION_TOKEN"])
""".replace("VERSION", VERSION)


def http_status(endpoint: BatchEndpoint, token: str, path: str) -> tuple[int, str]:
    """Call the service with a task's token; return the status and the error's code."""
    headers = {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{endpoint.url}/{path}?{VERSION}", headers=headers)  # noqa: S310 - our own URL
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
            return int(answer.status), ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, str(json.loads(error.read())["code"])


def test_a_job_manager_adds_tasks_to_its_own_job(tmp_path: Path) -> None:
    """Its token opens its job, dies with the attempt, and is in no file that anybody writes for people."""
    script = tmp_path / "manager.py"
    script.write_text(MANAGER)
    kept = tmp_path / "token"
    state = tmp_path / "state"
    client: Sdk
    with local_stack(state) as endpoint, BatchClient(endpoint.url, endpoint.credential()) as client:
        client.create_job(job("other"))
        manager = models.BatchJobManagerTask(
            {
                "id": "manager",
                "commandLine": f"{sys.executable} {script} {kept}",
                "killJobOnCompletion": False,
                "runExclusive": False,
                "authenticationTokenSettings": {"access": ["job"]},
            }
        )
        client.create_job(job("managed", job_manager_task=manager))
        ended = completed(client, "managed", "manager")
        told = json.loads(b"".join(client.download_task_file("managed", "manager", "stdout.txt")))
        assert ended.execution_info.exit_code == 0, told
        assert {name: status for name, (status, _) in told.items()} == {
            "other": 403, "jobs": 403, "pool": 403, "events": 403, "own": 200, "added": 200, "listed": 200,
        }  # fmt: skip
        assert "InsufficientAccountPermissions" in told["other"][1]
        eventually(lambda: client.get_job_task_counts("managed").task_counts.succeeded, lambda now: now == 51)
        token = kept.read_text()
        assert http_status(endpoint, token, "jobs/managed") == (403, "AuthenticationFailed")
        assert http_status(endpoint, token[:-1] + "x", "jobs/managed") == (403, "AuthenticationFailed")
        shown = [str(client.get_task("managed", "manager").as_dict()), str(client.get_job("managed").as_dict())]
    assert token.startswith("nat1.")
    assert all(token not in text for text in shown)
    logs = [path for path in state.rglob("*") if path.suffix in (".log", ".jsonl", ".txt", ".json") and path.is_file()]
    assert {path.name for path in logs} >= {"events.jsonl", "stdout.txt"}
    told_of = [path.name for path in logs if path.name != "spec.json" and token in path.read_text(errors="replace")]
    assert told_of == []


def test_a_task_has_no_token_unless_it_asks_for_one(client: Sdk, job_id: str) -> None:
    """And what a token could open beside the job is refused by name."""
    client.create_job(job(job_id))
    client.create_task(job_id, models.BatchTaskCreateOptions(id="plain", command_line="/usr/bin/env"))
    completed(client, job_id, "plain")
    assert b"AZ_BATCH_AUTHENTICATION_TOKEN" not in b"".join(client.download_task_file(job_id, "plain", "stdout.txt"))
    wrong = {"id": "wrong", "commandLine": "x", "authenticationTokenSettings": {"access": ["pool"]}}
    error = refusal(lambda: client.create_task(job_id, models.BatchTaskCreateOptions(wrong)))
    assert error.error.code == "InvalidPropertyValue"
    assert "authenticationTokenSettings.access[0]" in str(error.message)
