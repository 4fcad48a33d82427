"""Packages of a pool, on a real agent: there before the first task, and an unusable node where they cannot be."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from azure.batch import BatchClient, models

from nodeagent.service.packages import FOLDER_NAME
from tests.integration.batch_endpoint import BatchEndpoint, Sdk, completed, eventually, service_thread, task
from tests.unit.package_zips import Made, zipped

POOL = "packed"


def tool(word: str) -> bytes:
    """Return a package whose tool says a word."""
    return zipped([Made("tool", f"#!/bin/sh\necho {word}\n".encode(), mode=stat.S_IFREG | 0o755)])


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[BatchEndpoint]:
    """A service with two versions of `app`, the first being the default."""
    with service_thread(tmp_path / "state", tmp_path / "scripted") as found:
        for version, more in (("1", ["--default"]), ("2", [])):
            (tmp_path / "package.zip").write_bytes(tool(f"version {version}"))
            command = [sys.executable, "-m", "nodeagent", "app", "add", "app", version, str(tmp_path / "package.zip")]
            options = ["--endpoint", found.url, "--account", found.account, "--key", found.key]
            subprocess.run([*command, *more, *options], check=True, timeout=60, stdout=subprocess.DEVNULL)
        yield found


@pytest.fixture
def client(endpoint: BatchEndpoint) -> Iterator[Sdk]:
    """Return the SDK's client, with a pool that refers to `app`, and a job there."""
    with BatchClient(endpoint.url, endpoint.credential()) as found:
        sdk: Sdk = found
        pool = models.BatchPoolCreateOptions(
            id=POOL,
            vm_size="v",
            application_package_references=[models.BatchApplicationPackageReference(application_id="app")],
        )
        sdk.create_pool(pool)
        sdk.create_job(models.BatchJobCreateOptions(id="packed", pool_info=models.BatchPoolInfo(pool_id=POOL)))
        yield sdk


@contextmanager
def agent(endpoint: BatchEndpoint, folder: Path) -> Iterator[None]:
    """Run `nodeagent agent` for a node of the pool."""
    command = [
        *(sys.executable, "-m", "nodeagent", "agent", f"--service={endpoint.url}", f"--pool={POOL}", "--node=n"),
        *("--slots=2", "--accounts=none", f"--state-dir={folder}/agent", f"--root={folder}/root"),
        f"--node-key-file={folder}/state/node.key",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NODEAGENT_")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            finally:
                process.kill()


def node(client: Sdk) -> Sdk:
    """Return the node, None before it has registered."""
    return next(iter(client.list_nodes(POOL)), None)


def said(client: Sdk, task_id: str) -> str:
    """Return what a task printed."""
    completed(client, "packed", task_id)
    return b"".join(client.download_task_file("packed", task_id, "stdout.txt")).decode().strip()


def test_every_task_has_the_packages_of_its_pool(client: Sdk, endpoint: BatchEndpoint, tmp_path: Path) -> None:
    """Those of the task itself win; the pool's other variables stay."""
    own = [models.BatchApplicationPackageReference(application_id="app", version="2")]
    client.create_task("packed", task("plain", "$AZ_BATCH_APP_PACKAGE_app/tool"))
    both = "$AZ_BATCH_APP_PACKAGE_app/tool; $AZ_BATCH_APP_PACKAGE_app_1/tool"
    client.create_task("packed", task("own", both, application_package_references=own))
    with agent(endpoint, tmp_path):
        assert said(client, "plain") == "version 1"
        assert said(client, "own") == "version 2\nversion 1"


def test_a_node_without_its_pools_packages_gets_no_work(client: Sdk, endpoint: BatchEndpoint, tmp_path: Path) -> None:
    """It is unusable and says why; an agent that starts again and finds them works."""
    (lost,) = (path for path in (tmp_path / "state" / FOLDER_NAME).iterdir() if path.read_bytes() == tool("version 1"))
    lost.rename(tmp_path / "lost.zip")
    client.create_task("packed", task("waits", "$AZ_BATCH_APP_PACKAGE_app/tool"))
    with agent(endpoint, tmp_path):
        found = eventually(lambda: node(client), lambda found: found is not None and found.state == "unusable")
        assert [(error.code, error.message) for error in found.errors] == [
            (
                "ApplicationPackageError",
                "One or more application packages specified for the pool are invalid",
            )
        ]
        details = {item.name: item.value for item in found.errors[0].error_details}
        assert (details["ApplicationPackageReference"], details["Message"]) == ("app:1", "Resource download failed")
        assert client.get_task("packed", "waits").state == models.BatchTaskState.ACTIVE
    (tmp_path / "lost.zip").rename(lost)
    with agent(endpoint, tmp_path):
        assert said(client, "waits") == "version 1"
        assert node(client).errors is None
