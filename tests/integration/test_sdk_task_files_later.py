"""What is left of a task on the node, through the unmodified SDK: earlier attempts, and files whose time is over."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from azure.batch import BatchClient, models
from azure.core.exceptions import HttpResponseError

from tests.integration.batch_endpoint import (
    BatchEndpoint,
    Sdk,
    completed,
    eventually,
    job,
    local_stack,
    refusal,
    task,
)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchEndpoint]:
    """Run `nodeagent up` with an agent that looks often for what has expired."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NODEAGENT_AGENT_CLEANUP_SECONDS", "0.05")
        patch.setenv("NODEAGENT_AGENT_KEPT_LOG_BYTES", "0")  # what is kept of logs would answer for the files
        with local_stack(tmp_path_factory.mktemp("state")) as running:
            yield running


@pytest.fixture
def client(endpoint: BatchEndpoint) -> Iterator[Sdk]:
    """Return the SDK's client."""
    with BatchClient(endpoint.url, endpoint.credential()) as found:
        yield found


def text(stream: Iterator[bytes]) -> str:
    """Return what a file holds."""
    return b"".join(stream).decode()


def test_earlier_attempts_lie_beside_the_newest(client: Sdk, endpoint: BatchEndpoint) -> None:
    """The task's own files are the newest attempt's; the node's list has those of all, each with its log."""
    script = "n=$(cat $AZ_BATCH_NODE_SHARED_DIR/n || echo 0); n=$((n + 1)); echo $n > $AZ_BATCH_NODE_SHARED_DIR/n;"
    client.create_job(job("attempts"))
    client.create_task(
        "attempts",
        task(
            "t",
            f"{script} echo try $n; test $n = 3",
            constraints=models.BatchTaskConstraints(max_task_retry_count=5),
        ),
    )
    found = completed(client, "attempts", "t")
    assert (found.execution_info.exit_code, found.execution_info.retry_count) == (0, 2)

    assert text(client.download_task_file("attempts", "t", "stdout.txt")) == "try 3\n"
    listed = {file.name for file in client.list_task_files("attempts", "t", recursive=True)}
    assert listed == {"stdout.txt", "stderr.txt", "wd"}
    above = "workitems/attempts/job-1"
    node = (endpoint.pool_id, endpoint.node_id)
    everything = {file.name for file in client.list_node_files(*node, recursive=True)}
    assert {f"{above}/t/stdout.txt", f"{above}/t~1/stdout.txt", f"{above}/t~2/stdout.txt"} <= everything
    for number in (1, 2):
        path = f"{above}/t~{number}/stdout.txt"
        assert text(client.download_node_file(*node, path)) == f"try {number}\n"
        assert int(client.get_node_file_properties(*node, path).content_length) == 6


def test_files_whose_time_is_over_are_told_from_those_that_never_were(client: Sdk) -> None:
    """The task stays, its directory goes: 409 TaskFilesCleanedup for list, content and properties."""
    client.create_job(job("expires"))
    client.create_task("expires", task("kept", "echo kept"))
    client.create_task(
        "expires",
        task("gone", "echo gone", constraints=models.BatchTaskConstraints(retention_time=timedelta(seconds=1))),
    )
    completed(client, "expires", "gone")
    completed(client, "expires", "kept")

    def listing() -> str:
        try:
            return str(len(list(client.list_task_files("expires", "gone"))))
        except HttpResponseError as error:
            return str(error.error.code) if error.error is not None else ""

    assert eventually(listing, lambda answer: not answer.isdigit()) == "TaskFilesCleanedup"
    for ask in (
        lambda: text(client.download_task_file("expires", "gone", "stdout.txt")),
        lambda: client.get_task_file_properties("expires", "gone", "stdout.txt"),
    ):
        assert refusal(ask).status_code == 409
    assert refusal(lambda: text(client.download_task_file("expires", "kept", "never.txt"))).status_code == 404
    assert text(client.download_task_file("expires", "kept", "stdout.txt")) == "kept\n"
    assert client.get_task("expires", "gone").execution_info.exit_code == 0


def test_failure_details_reach_the_client(client: Sdk) -> None:
    """A task's own message, who stopped it and by which limit, and what was left of it."""
    client.create_job(job("told"))
    client.create_task("told", task("own", "echo no disk in drive 2 > $NODEAGENT_ERROR_FILE; sleep 300 & exit 4"))
    client.create_task(
        "told",
        task(
            "long", "exec sleep 300", constraints=models.BatchTaskConstraints(max_wall_clock_time=timedelta(seconds=1))
        ),
    )
    own = completed(client, "told", "own").execution_info
    details = {item.name: item.value for item in own.failure_info.details}
    assert (own.failure_info.code, own.exit_code) == ("FailureExitCode", 4)
    assert details["ErrorFile"] == "no disk in drive 2"
    assert details["LeftoverProcesses"] == "1 killed, 0 remain"
    long = completed(client, "told", "long").execution_info
    details = {item.name: item.value for item in long.failure_info.details}
    assert (long.failure_info.code, long.exit_code) == ("TaskEnded", -15)
    assert details["AdditionalErrorCode"] == "MaxWallClockTimeExpired"
    assert (details["StoppedBy"], details["Limit"]) == ("node", "maxWallClockTime PT1S")
