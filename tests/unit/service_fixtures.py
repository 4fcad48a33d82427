"""Fixtures of the tests of the service's lifecycle: `pytest_plugins = ["tests.unit.service_fixtures"]`."""

from collections.abc import Callable, Iterator

import pytest

from tests.unit.service_world import World


@pytest.fixture
def worlds() -> Iterator[Callable[..., World]]:
    """Makes worlds with nodes of so many slots each."""
    made: list[World] = []

    def make(*slots: int) -> World:
        made.append(World(*slots))
        return made[-1]

    yield make
    for world in made:
        world.store.close()


@pytest.fixture
def world(worlds: Callable[..., World]) -> World:
    """A world with one node of two slots."""
    return worlds(2)
