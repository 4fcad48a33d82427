"""Fixture of the tests of other clients: `pytest_plugins = ["tests.integration.client_fixtures"]`."""

from collections.abc import Iterator

import pytest

from tests.integration.batch_endpoint import BatchEndpoint, local_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchEndpoint]:
    """Return a running `nodeagent up`; the clients keep apart by the ids of their jobs."""
    with local_stack(tmp_path_factory.mktemp("clients")) as endpoint:
        yield endpoint
