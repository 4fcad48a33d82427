"""Clients of Azure Batch as they are published, run as programs of their own against `nodeagent up`."""

import json
import os
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.integration.batch_endpoint import BatchEndpoint

REPOSITORY = Path(__file__).parents[2]
CLIENTS = REPOSITORY / "tests" / "clients"


@cache
def installed(name: str) -> str:
    """Return the program that runs a client; it is installed if it is not there yet (scripts/clients)."""
    command = subprocess.run(["scripts/clients", name], cwd=REPOSITORY, stdout=subprocess.PIPE, timeout=600, check=True)
    return command.stdout.decode().strip()


def environment(endpoint: BatchEndpoint) -> dict[str, str]:
    """Return the variables that name an endpoint; the Azure CLI knows the same."""
    return {
        "AZURE_BATCH_ENDPOINT": endpoint.url,
        "AZURE_BATCH_ACCOUNT": endpoint.account,
        "AZURE_BATCH_ACCESS_KEY": endpoint.key,
    }


def told(*command: str | Path, variables: Mapping[str, str]) -> Any:  # noqa: ANN401 - JSON is anything
    """Run a program that tells a story; return what it saw."""
    ended = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120, check=False
    )
    if ended.returncode != 0:
        pytest.fail(f"{command[0]} ended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}")
    return json.loads(ended.stdout)
