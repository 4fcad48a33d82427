"""The unmodified Azure CLI, `az batch` (api-version 2024-02-01.19.0).

`az batch account login` asks the management plane of Azure for the account and its key: no service can stand in for
that. The account, key and endpoint are given as options or as variables of the environment instead; then `az` asks
nobody else.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from azure.batch import BatchClient

from tests.integration.batch_clients import environment, installed
from tests.integration.batch_endpoint import BatchEndpoint, Sdk, eventually, shell

pytest_plugins = ["tests.integration.client_fixtures"]


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command printed, and its exit status."""

    status: int
    output: str
    errors: str

    @property
    def value(self) -> Any:  # noqa: ANN401 - JSON is anything
        """The JSON that it printed."""
        assert self.status == 0, self.errors
        return json.loads(self.output) if self.output else None


Az: TypeAlias = Callable[..., Ended]


def run(variables: dict[str, str], *arguments: str | Path) -> Ended:
    """Run `az batch` with arguments."""
    command = [installed("az"), "batch", *arguments, "--output", "json"]
    ended = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60, check=False
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def az(stack: BatchEndpoint, tmp_path: Path) -> Az:
    """Return what runs `az batch`, with a configuration of its own that sends nothing to anybody."""
    quiet = {"AZURE_CONFIG_DIR": str(tmp_path / "az"), "AZURE_CORE_COLLECT_TELEMETRY": "no"}
    return partial(run, environment(stack) | quiet)


@pytest.fixture
def client(stack: BatchEndpoint) -> Iterator[Sdk]:
    """Return today's SDK: it waits faster than a command that takes a second to start."""
    with BatchClient(stack.url, stack.credential()) as found:
        yield found


def written(path: Path, value: object) -> Path:
    """Write JSON to a file; return its path."""
    path.write_text(json.dumps(value))
    return path


def test_a_job_from_creation_to_deletion(az: Az, client: Sdk, stack: BatchEndpoint, tmp_path: Path) -> None:
    """Pool, job with preparation and release, one task and a file of tasks, lists, files, statuses, stop, delete."""
    job_id = "az-job"
    pool = az("pool", "show", "--pool-id", stack.pool_id).value
    assert (pool["id"], pool["state"], pool["allocationState"]) == ("local", "active", "steady")
    body = {
        "id": job_id,
        "poolInfo": {"poolId": stack.pool_id},
        "jobPreparationTask": {"commandLine": shell("echo shared > $AZ_BATCH_NODE_SHARED_DIR/az")},
        "jobReleaseTask": {"commandLine": shell("rm $AZ_BATCH_NODE_SHARED_DIR/az")},
    }
    assert az("job", "create", "--json-file", written(tmp_path / "job.json", body)).status == 0
    script = shell("cat $AZ_BATCH_NODE_SHARED_DIR/az")
    one = az("task", "create", "--job-id", job_id, "--task-id", "one", "--command-line", script).value
    assert (one["id"], one["commandLine"]) == ("one", script)
    many = [{"id": f"many{number}", "commandLine": shell("true")} for number in range(120)]
    added = az("task", "create", "--job-id", job_id, "--json-file", written(tmp_path / "tasks.json", many)).value
    assert {result["status"] for result in added} == {"success"}
    assert len(added) == 120
    eventually(lambda: client.get_job_task_counts(job_id).task_counts.completed, lambda found: found == 121)

    names = ("task counts", "task list", "task show", "files", "part", "statuses")
    target = tmp_path / "part.txt"
    task, part = ("--job-id", job_id, "--task-id", "one"), ("--start-range", "2", "--end-range", "4")
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("job", "task-counts", "show", "--job-id", job_id),
        ("task", "list", "--job-id", job_id, "--filter", "startswith(id, 'many1')", "--select", "id,state"),
        ("task", "show", *task),
        ("task", "file", "list", *task, "--recursive"),
        ("task", "file", "download", *task, "--file-path", "stdout.txt", "--destination", target, *part),
        ("job", "prep-release-status", "list", "--job-id", job_id),
    )
    with ThreadPoolExecutor(2) as threads:
        ended = dict(zip(names, threads.map(lambda command: az(*command), commands), strict=True))
    assert ended["part"].status == 0, ended["part"].errors
    assert target.read_text() == "are"
    counts = ended["task counts"].value
    assert (counts["taskCounts"]["succeeded"], counts["taskSlotCounts"]["completed"]) == (121, 121)
    listed = ended["task list"].value
    assert len(listed) == 31
    assert {name: value for name, value in listed[0].items() if value is not None} == {
        "id": "many1",
        "state": "completed",
    }
    shown = ended["task show"].value
    assert (shown["state"], shown["executionInfo"]["result"]) == ("completed", "success")
    assert {file["name"] for file in ended["files"].value} == {"stdout.txt", "stderr.txt", "wd"}
    (status,) = ended["statuses"].value
    assert status["jobPreparationTaskExecutionInfo"]["exitCode"] == 0

    assert az("job", "stop", "--job-id", job_id, "--terminate-reason", "enough").status == 0
    eventually(lambda: str(client.get_job(job_id).state.value), lambda state: state == "completed")
    (job,) = az("job", "list", "--filter", f"id eq '{job_id}'").value
    assert job["executionInfo"]["terminateReason"] == "enough"
    assert az("job", "delete", "--job-id", job_id, "--yes").status == 0
    eventually(lambda: [found.id for found in client.list_jobs()], lambda ids: job_id not in ids)


def test_refusals_are_told_with_the_code_and_text_of_batch(az: Az, client: Sdk, stack: BatchEndpoint) -> None:
    """What `az` prints for an error of Batch: its code, its text and its values."""
    job_id = "az-refusals"
    job = ("--id", job_id, "--pool-id", stack.pool_id)
    assert az("job", "create", *job).status == 0
    task = ("--job-id", job_id, "--task-id", "one", "--command-line", "true")
    assert az("task", "create", *task).status == 0
    refused: dict[str, tuple[str, ...]] = {
        "JobExists": ("job", "create", *job),
        "TaskExists": ("task", "create", *task),
        "JobNotFound": ("job", "show", "--job-id", "nowhere"),
        "TaskNotFound": ("task", "show", "--job-id", job_id, "--task-id", "nowhere"),
        "JobPreparationTaskNotSpecified": ("job", "prep-release-status", "list", "--job-id", job_id),
        "InvalidQueryParameterValue": ("task", "list", "--job-id", job_id, "--filter", "colour eq 'red'"),
        "ConditionNotMet": ("job", "stop", "--job-id", job_id, "--if-match", "0x8000000000000000"),
        "AuthenticationFailed": ("pool", "list", "--account-key", "d3Jvbmc="),
    }
    with ThreadPoolExecutor(2) as threads:
        ended = dict(zip(refused, threads.map(lambda command: az(*command), refused.values()), strict=True))
    for name, result in ended.items():
        # az itself: 3 for what is not there, 1 for every other error
        assert result.status == (3 if name.endswith("NotFound") else 1), result.errors
        assert result.errors.startswith(f"ERROR: ({name}) "), result.errors
    assert "The specified task already exists." in ended["TaskExists"].errors
    assert "QueryParameterName: $filter" in ended["InvalidQueryParameterValue"].errors
    client.begin_delete_job(job_id, polling_interval=0).wait(30)
