"""Fixtures of the tests that need storage: `pytest_plugins = ["tests.integration.storage_fixtures"]`."""

from collections.abc import Iterator

import pytest

from tests.integration.azurite import Azurite, Container, running_azurite


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Return the one Azurite of the test session."""
    with running_azurite(tmp_path_factory.mktemp("azurite")) as running:
        yield running


@pytest.fixture
def container(azurite: Azurite) -> Container:
    """Return a container of the test's own."""
    return azurite.container()
