"""Application packages from `nodeagent app add` to a task's environment, on `nodeagent up`, with the unmodified SDK."""

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.batch import BatchClient, models

from tests.integration.batch_endpoint import BatchEndpoint, Sdk, completed, job, local_stack, task
from tests.unit.package_zips import Made, link, zipped


def tool(word: str) -> bytes:
    """Return a package whose tool says a word."""
    script = f"#!/bin/sh\necho {word}\n".encode()
    return zipped([Made("bin/tool", script, mode=stat.S_IFREG | 0o700), link("tool", "bin/tool")])


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchEndpoint]:
    """`nodeagent up`, with the versions 1 (default) and 2.0 of `my-app`."""
    folder = tmp_path_factory.mktemp("up")
    with local_stack(folder / "state") as found:
        for version, more in (("1", ["--default"]), ("2.0", [])):
            (folder / "package.zip").write_bytes(tool(f"version {version}"))
            command = [sys.executable, "-m", "nodeagent", "app", "add", "my-app", version, str(folder / "package.zip")]
            options = ["--endpoint", found.url, "--account", found.account, "--key", found.key]
            subprocess.run([*command, *more, *options], check=True, timeout=60)
        yield found


@pytest.fixture
def client(endpoint: BatchEndpoint) -> Iterator[Sdk]:
    """Return the SDK's client."""
    with BatchClient(endpoint.url, endpoint.credential()) as found:
        yield found


def reference(application: str, version: str | None = None) -> models.BatchApplicationPackageReference:
    """Return a reference."""
    return models.BatchApplicationPackageReference(application_id=application, version=version)


def output(client: Sdk, job_id: str, task_id: str) -> list[str]:
    """Return the lines of a task's stdout."""
    return b"".join(client.download_task_file(job_id, task_id, "stdout.txt")).decode().splitlines()


def test_tasks_find_their_packages_in_their_environment(client: Sdk) -> None:
    """The default, a version, both; executable for the task's user whoever that is, and not to be written by it."""
    client.create_job(job("packages"))
    wanted = {
        "default": [reference("my-app")],
        "version": [reference("MY-APP", "2.0")],
        "both": [reference("my-app", "2.0"), reference("my-app")],
    }
    script = (
        "$AZ_BATCH_APP_PACKAGE_my_app/tool; env | grep -o ^AZ_BATCH_APP_PACKAGE_[^=]* | sort;"
        " cd $AZ_BATCH_APP_PACKAGE_MY_APP; find . ! -type l -perm /022"
    )
    for task_id, references in wanted.items():
        client.create_task("packages", task(task_id, script, application_package_references=references))
    names = {
        number: [f"AZ_BATCH_APP_PACKAGE_{name}_{number}" for name in ("MY_APP", "my_app")] for number in ("1", "2_0")
    }
    plain = ["AZ_BATCH_APP_PACKAGE_MY_APP", "AZ_BATCH_APP_PACKAGE_my_app"]
    expected = {
        "default": ("version 1", plain + names["1"]),
        "version": ("version 2.0", plain + names["2_0"]),
        "both": ("version 1", plain + names["1"] + names["2_0"]),
    }
    for task_id, (said, variables) in expected.items():
        ended = completed(client, "packages", task_id)
        assert ended.execution_info.exit_code == 0
        first, *rest = output(client, "packages", task_id)
        assert (first, sorted(rest)) == (said, sorted(variables))


def test_a_reference_that_means_nothing_fails_the_task_before_its_command(client: Sdk) -> None:
    """A pre-processing error: no exit code, and Batch's code with the reference and what is wrong with it."""
    client.create_job(job("no-package"))
    client.create_task("no-package", task("one", application_package_references=[reference("my-app", "3")]))
    ended = completed(client, "no-package", "one")
    failure = ended.execution_info.failure_info
    assert (ended.execution_info.exit_code, failure.code) == (None, "ApplicationPackageError")
    assert {item.name: item.value for item in failure.details} == {
        "ApplicationPackageReference": "my-app:3",
        "Message": "The application has no such version",
    }


def test_many_tasks_share_one_installation(client: Sdk, endpoint: BatchEndpoint) -> None:
    """One directory of each version on the node, however many tasks refer to it."""
    client.create_job(job("many"))
    tasks = [task(f"t{number}", application_package_references=[reference("my-app", "1")]) for number in range(12)]
    client.create_task_collection("many", models.BatchTaskGroup(task_values=tasks))
    for each in tasks:
        assert completed(client, "many", each.id).execution_info.exit_code == 0
    files = client.list_node_files(
        endpoint.pool_id, endpoint.node_id, filter="startswith(name, 'applications/my')", recursive=True
    )
    found = {Path(item.name).parts[1] for item in files if len(Path(item.name).parts) > 1}
    assert len([name for name in found if name.startswith("my-app1")]) == 1
