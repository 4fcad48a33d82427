"""When the endpoint of managed identities is asked again."""

import pytest

from nodeagent.rules.identity_retry import TRIES, UPDATING_SECONDS, pause


@pytest.mark.parametrize("status", [400, 401, 403, 405, 200, 302])
def test_errors_of_the_request_are_not_asked_again(status: int) -> None:
    """An identity that the node does not have is not there a second later either."""
    assert pause(status, 1, 0, 0.5) is None


@pytest.mark.parametrize("status", [404, 408, 429, 500, 503, None])
def test_what_passes_is_asked_again_after_growing_pauses(status: int | None) -> None:
    """The documented advice: exponential, at least a second, and not for ever."""
    pauses = [pause(status, tries, 0, 0.0) for tries in range(1, TRIES)]
    assert pauses == [1, 2, 4, 8]
    assert pause(status, TRIES, 0, 0.0) is None


def test_chance_spreads_the_nodes_of_a_pool() -> None:
    """All of them ask at the same moment when a job begins."""
    assert (pause(500, 1, 0, 0.0), pause(500, 1, 0, 1.0)) == (1, 2)


def test_an_endpoint_that_is_updated_is_waited_for() -> None:
    """410 means: back within 70 seconds, however often that was heard."""
    assert pause(410, TRIES + 3, 70, 1.0) == 10
    assert pause(410, 2, UPDATING_SECONDS, 1.0) is None
