"""Files in and files out, from the unmodified SDK to a real node and a real storage, as `nodeagent up` ships it."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from azure.batch import BatchClient, models
from azure.core.credentials import AzureNamedKeyCredential

from tests.integration.azurite import KEY as STORAGE_KEY
from tests.integration.azurite import Azurite, Container
from tests.integration.batch_endpoint import KEY as ACCOUNT_KEY
from tests.integration.batch_endpoint import Sdk, completed, eventually, job, shell, task
from tests.integration.command_line import kill_processes_of

pytest_plugins = ["tests.integration.storage_fixtures"]


@dataclass(frozen=True)
class Stack:
    """A running `nodeagent up`."""

    client: Sdk
    folder: Path
    said: Path
    """What it printed."""
    process: "subprocess.Popen[str]"
    facts: dict[str, Any]


@contextmanager
def upped(folder: Path, azurite: Azurite) -> Iterator[Stack]:
    """Run `up` on a folder that may have been used before, with everything logged."""
    environment = os.environ | {
        "NODEAGENT_SERVICE_AUTO_STORAGE_URL": azurite.endpoint,
        "NODEAGENT_SERVICE_AUTO_STORAGE_KEY": STORAGE_KEY,
        "NODEAGENT_AGENT_CLEANUP_SECONDS": "0.2",
        "NODEAGENT_AGENT_TRANSFER_TRIES": "2",
    }
    said = folder.with_name("said.txt")
    command = [sys.executable, "-m", "nodeagent", "up", "--port", "0", "--slots", "4", "--state-dir", str(folder)]
    command += ["--key", ACCOUNT_KEY, "--json", "--log-level", "debug"]
    with (
        said.open("a") as output,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, said.read_text()
            facts = json.loads(line)
            credential = AzureNamedKeyCredential(facts["account"], facts["key"])
            with BatchClient(facts["endpoint"], credential) as client:
                eventually(lambda: list(client.list_nodes(facts["pool"])), bool)
                yield Stack(client, folder, said, process, facts)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=60)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def stack(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One `up` for all tests that leave it running."""
    folder = tmp_path_factory.mktemp("up") / "state"
    with upped(folder, azurite) as made:
        yield made


@pytest.fixture
def client(stack: Stack) -> Sdk:
    """The SDK's client."""
    return stack.client


def output(client: Sdk, job_id: str, task_id: str, name: str = "stdout.txt") -> bytes:
    """A file of a task."""
    return b"".join(client.download_task_file(job_id, task_id, name))


def failure(found: Sdk) -> tuple[str, dict[str, str]]:
    """Code and details of a task's failure."""
    info = found.execution_info.failure_info
    return info.code, {detail.name: detail.value for detail in info.details}


def upload(pattern: str, url: str, path: str, condition: str = "taskcompletion") -> models.OutputFile:
    """An output file."""
    return models.OutputFile(
        file_pattern=pattern,
        destination=models.OutputFileDestination(
            container=models.OutputFileBlobContainerDestination(container_url=url, path=path)
        ),
        upload_options=models.OutputFileUploadConfiguration(upload_condition=condition),
    )


def test_every_kind_of_task_gets_its_files_from_every_source(client: Sdk, container: Container) -> None:
    """Preparation, job manager, user task and release; a file, a container with a prefix, a linked container."""
    container.put("one.txt", b"one")
    container.put("dir/two.txt", b"two")
    container.put("dir/deep/three.txt", b"three")
    one = models.ResourceFile(http_url=container.blob_url("one.txt"), file_path="in/one.txt", file_mode="0440")
    some = models.ResourceFile(storage_container_url=container.url_with_sas("rl"), blob_prefix="dir/", file_path="some")
    linked = models.ResourceFile(auto_storage_container_name=container.name, file_path="linked")
    everything = [one, some, linked]
    script = "cat in/one.txt some/dir/two.txt linked/dir/deep/three.txt; stat -c %a in/one.txt linked/one.txt"
    where = f"$AZ_BATCH_NODE_SHARED_DIR/{container.name}"
    client.create_job(
        job(
            "kinds",
            job_preparation_task=models.BatchJobPreparationTask(
                command_line=shell(f"mkdir -p {where}; ({script}) > {where}/prep"), resource_files=everything
            ),
            job_release_task=models.BatchJobReleaseTask(
                command_line=shell(f"({script}) > {where}/release"), resource_files=everything
            ),
            job_manager_task=models.BatchJobManagerTask(
                id="manager", command_line=shell(script), resource_files=everything, kill_job_on_completion=False
            ),
        )
    )
    client.create_task("kinds", task("user", script, resource_files=everything))
    for name in ("user", "manager"):
        assert completed(client, "kinds", name).execution_info.exit_code == 0
        assert output(client, "kinds", name) == b"onetwothree440\n770\n"
    assert b"".join(client.download_task_file("kinds", "user", "wd/some/dir/deep/three.txt")) == b"three"

    reason = models._models.BatchJobTerminateOptions(termination_reason="enough")
    client.begin_terminate_job("kinds", reason, polling_interval=0).wait(30)
    (node,) = client.list_nodes("local")

    def printed(name: str) -> bytes:
        return b"".join(client.download_node_file("local", node.id, f"shared/{container.name}/{name}"))

    for name in ("prep", "release"):
        assert eventually(partial(printed, name), lambda text: text.count(b"\n") == 2) == b"onetwothree440\n770\n"


def test_a_task_whose_files_cannot_come_never_runs_and_is_not_retried(client: Sdk, container: Container) -> None:
    """No exit code, the code that Batch gives, and nothing of a SAS in it."""
    missing = models.ResourceFile(http_url=container.blob_url("no-such-blob"), file_path="f")
    denied = models.ResourceFile(http_url=f"{container.url}/no-such-blob?sig=wrong", file_path="f")
    gone = models.ResourceFile(storage_container_url=f"{container.url}x?{container.sas('rl')}")
    client.create_job(job("fails", constraints=models.BatchJobConstraints(max_task_retry_count=3)))
    codes = {}
    for name, file in (("missing", missing), ("denied", denied), ("gone", gone)):
        client.create_task("fails", task(name, "echo ran", resource_files=[file]))
        found = completed(client, "fails", name)
        info = found.execution_info
        codes[name], details = failure(found)
        assert (info.exit_code, info.retry_count) == (None, 0)
        assert "sig=" not in str(details)
    assert codes["missing"] == "BlobNotFound"
    assert codes["denied"] == "BlobAccessDenied"
    assert codes["gone"] in ("ResourceContainerNotFound", "ResourceContainerAccessDenied")


def test_output_files_go_by_their_conditions(client: Sdk, container: Container) -> None:
    """After success, after failure, always; blobs are named as documented, and the logs of the upload are there."""
    url = container.url_with_sas("racwl")
    client.create_job(job("outs"))
    for name, code in (("good", 0), ("bad", 3)):
        rules = [
            upload("../std*.txt", url, f"{name}/always"),
            upload("out/**/*.csv", url, f"{name}/success", "tasksuccess"),
            upload("out/a.csv", url, f"{name}/failure.csv", "taskfailure"),
            upload("nothing*", url, f"{name}/nothing"),
        ]
        script = f"mkdir -p out/b; echo 1 > out/a.csv; echo 2 > out/b/c.csv; echo said; exit {code}"
        client.create_task("outs", task(name, script, output_files=rules))
    assert completed(client, "outs", "good").execution_info.failure_info is None
    assert failure(completed(client, "outs", "bad"))[0] == "FailureExitCode"

    assert container.names() == [
        "bad/always/stderr.txt",
        "bad/always/stdout.txt",
        "bad/failure.csv",
        "good/always/stderr.txt",
        "good/always/stdout.txt",
        "good/success/a.csv",
        "good/success/b/c.csv",
    ]
    assert container.content("good/always/stdout.txt") == b"said\n"
    assert b"good/success/b/c.csv" in output(client, "outs", "good", "fileuploadout.txt")


def test_a_failed_upload_is_a_failure_of_its_own_and_an_exit_condition(client: Sdk, container: Container) -> None:
    """The exit code stays 0; `fileUploadError` decides what follows."""
    container.client.delete_container()
    rules = [upload("../stdout.txt", container.url_with_sas("racwl"), "x")]
    on_error = models.ExitConditions(file_upload_error=models.ExitOptions(job_action="terminate"))
    client.create_job(job("uploads", task_failure_mode="performexitoptionsjobaction"))
    client.create_task("uploads", task("t", "true", output_files=rules, exit_conditions=on_error))

    found = completed(client, "uploads", "t")
    code, details = failure(found)
    assert (found.execution_info.exit_code, found.execution_info.result) == (0, "failure")
    assert code == "FileUploadContainerNotFound"
    assert "sig=" not in str(details)
    eventually(lambda: client.get_job("uploads").state, lambda state: state == models.BatchJobState.COMPLETED)


def test_a_package_is_installed_once_and_named_by_variables(client: Sdk, stack: Stack, tmp_path: Path) -> None:
    """`nodeagent app add`, a reference of a task, and the directory on the node."""
    path = tmp_path / "tool.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bin/say", "#!/bin/sh\necho packed")
    facts = stack.facts
    options = ["--endpoint", facts["endpoint"], "--account", facts["account"], "--key", facts["key"], "--default"]
    command = [sys.executable, "-m", "nodeagent", "app", "add", "My-Tool", "1.0", str(path), *options]
    assert subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).returncode == 0
    client.create_job(job("packed"))
    refs = [models.BatchApplicationPackageReference(application_id="My-Tool")]
    script = "sh $AZ_BATCH_APP_PACKAGE_My_Tool/bin/say; echo $AZ_BATCH_APP_PACKAGE_MY_TOOL_1_0"
    for name in ("a", "b"):
        client.create_task("packed", task(name, script, application_package_references=refs))
    outputs = {
        output(client, "packed", name)
        for name in ("a", "b")
        if completed(client, "packed", name).execution_info.exit_code == 0
    }

    (only,) = outputs
    packed, directory = only.decode().split()
    assert packed == "packed"
    assert Path(directory).parent.name == "applications"
    unknown = [models.BatchApplicationPackageReference(application_id="none")]
    client.create_task("packed", task("c", application_package_references=unknown))
    found = completed(client, "packed", "c")
    assert (failure(found)[0], found.execution_info.exit_code) == ("ApplicationPackageError", None)


def test_another_retention_time_reaches_files_of_a_task_that_runs(client: Sdk) -> None:
    """Changed with Update Task; the files go when the task has ended."""
    client.create_job(job("kept"))
    go = "$AZ_BATCH_NODE_SHARED_DIR/kept-go"
    client.create_task("kept", task("t", f"while [ ! -e {go} ]; do sleep 0.05; done"))
    eventually(lambda: client.get_task("kept", "t").state, lambda state: state == models.BatchTaskState.RUNNING)
    constraints = models.BatchTaskConstraints(retention_time=timedelta(seconds=1))
    client.replace_task("kept", "t", models.BatchTask(constraints=constraints))
    client.create_task("kept", task("other", f"touch {go}"))
    completed(client, "kept", "t")
    completed(client, "kept", "other")

    directory = "workitems/kept/job-1"
    (node,) = client.list_nodes("local")
    names = eventually(
        lambda: {file.name for file in client.list_node_files("local", node.id, recursive=True)},
        lambda found: f"{directory}/t" not in found,
    )
    assert f"{directory}/other/stdout.txt" in names


def _agents(stack: Stack) -> list[int]:
    """The agents that this `up` runs."""
    pid = stack.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_everything_goes_on_after_kill_9_of_service_and_node(
    azurite: Azurite, container: Container, tmp_path: Path
) -> None:
    """While files come, and while they go: every task runs once, and all its files are whole."""
    content = os.urandom(24 << 20)
    container.put("big", content)
    folder = tmp_path / "state"
    root = folder / "nodes" / "node-1" / "root"
    file = models.ResourceFile(http_url=container.blob_url("big"), file_path="big")
    try:
        with upped(folder, azurite) as first:
            first.client.create_job(job("j"))
            for number in range(4):
                rules = [upload("big", container.url_with_sas("racwl"), f"out/{number}")]
                script = f"echo {number} >> $AZ_BATCH_NODE_SHARED_DIR/ran; echo more >> big"
                first.client.create_task("j", task(f"t{number}", script, resource_files=[file], output_files=rules))
            eventually(lambda: list(root.glob("volatile/staging/*")), bool)
            for pid in _agents(first):
                os.kill(pid, signal.SIGKILL)
            eventually(lambda: list(root.glob("workitems/j/job-1/t*/stdout.txt")), bool)
            first.process.kill()  # its agents end with it
        with upped(folder, azurite) as again:
            ended = [completed(again.client, "j", f"t{number}").execution_info for number in range(4)]
    finally:
        kill_processes_of(folder)
    assert [(info.exit_code, info.failure_info) for info in ended] == [(0, None)] * 4
    for number in range(4):
        assert container.content(f"out/{number}") == content + b"more\n"
    assert sorted((root / "shared" / "ran").read_text().split()) == ["0", "1", "2", "3"]


def test_no_secret_is_written_anywhere(stack: Stack, azurite: Azurite) -> None:
    """Every log, event, file of the node, and all that the API tells, after what went well and what did not (I7)."""
    client = stack.client
    container = azurite.container()
    container.put("f", b"x")
    urls = [
        container.url_with_sas("rl"),
        container.url_with_sas("racwl"),
        container.blob_url("f"),
        container.blob_url("no"),
    ]
    denied = container.url_with_sas("l")
    files = {
        "good": [
            models.ResourceFile(http_url=urls[2], file_path="f"),
            models.ResourceFile(storage_container_url=urls[0]),
        ],
        "missing": [models.ResourceFile(http_url=urls[3], file_path="f")],
        "denied": [models.ResourceFile(storage_container_url=denied.replace(container.name, f"{container.name}x"))],
        "dns": [models.ResourceFile(http_url=urls[2].replace("127.0.0.1", "no.such.host.invalid"), file_path="f")],
        "linked": [models.ResourceFile(auto_storage_container_name=container.name)],
    }
    outputs = {
        "good": [upload("f", urls[1], "out")],
        "missing": [],
        "denied": [],
        "dns": [],
        "linked": [upload("f", denied, "out"), upload("f", urls[1].replace("127.0.0.1", "no.such.host.invalid"), "o")],
    }
    client.create_job(job("secret"))
    for name, given in files.items():
        client.create_task("secret", task(name, "true", resource_files=given, output_files=outputs[name]))
    told = [json.dumps(completed(client, "secret", name).execution_info.as_dict(), default=str) for name in files]
    assert failure(client.get_task("secret", "linked"))[0].startswith("FileUpload")
    assert failure(client.get_task("secret", "dns"))[0] == "BlobDownloadMiscError"

    node_key = (stack.folder / "service" / "node.key").read_text().strip()
    secrets = {STORAGE_KEY, ACCOUNT_KEY, node_key}
    for url in (*urls, denied):
        (signature,) = parse_qs(urlsplit(url).query)["sig"]
        secrets |= {signature, quote(signature, safe="")}
    written = {"the API": "\n".join(told), "up": stack.said.read_text()}
    for path in stack.folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and _is_told(path):
            written[str(path)] = path.read_text(errors="replace")

    assert any(name.endswith("agent.log") for name in written)
    assert any(name.endswith("fileuploaderr.txt") for name in written)
    assert any("event" in name for name in written)
    assert "no.such.host.invalid" in "".join(written.values())
    for name, text in written.items():
        for secret in secrets:
            assert secret not in text, f"{secret[:6]}... is in {name}"


def _is_told(path: Path) -> bool:
    """Whether a file is for people: databases, keys and records of the agent are not."""
    return not (".db" in path.name or path.name == "node.key" or "attempts" in path.parts or "cache" in path.parts)
