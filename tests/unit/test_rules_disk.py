"""Levels of disk pressure, budgets, and the choice of the one who pays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.rules.disk import Cleanup, Free, Level, Thresholds, culprit, level, over_budget

SIZES = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 10**9), max_size=6)


@pytest.mark.parametrize(
    ("free", "found"), [(100, Level.NORMAL), (99, Level.SOFT), (50, Level.SOFT), (49, Level.HARD), (0, Level.HARD)]
)
def test_levels_begin_below_their_thresholds(free: int, found: Level) -> None:
    """Exactly the threshold is still enough."""
    assert level(free, Thresholds(soft=100, hard=50)) is found


def test_without_thresholds_nothing_is_ever_short() -> None:
    """Off unless configured; one without the other works too."""
    assert level(0, Thresholds()) is Level.NORMAL
    assert level(0, Thresholds(soft=1)) is Level.SOFT
    assert level(0, Thresholds(hard=1)) is Level.HARD
    assert (Thresholds().room, Thresholds(soft=9, hard=5).room, Thresholds(hard=5).room) == (0, 9, 5)


@given(used=SIZES, shortfall=st.integers(0, 2 * 10**9))
def test_the_one_who_pays_holds_most_and_only_if_paying_helps(used: dict[str, int], shortfall: int) -> None:
    """Nobody holds more than the culprit; and there is none if all tasks together hold less than is missing."""
    found = culprit(used, shortfall)
    if found is None:
        assert not used or sum(used.values()) < shortfall
    else:
        assert used[found] == max(used.values())


@given(used=SIZES, budget=st.none() | st.integers(0, 10**9))
def test_over_budget_are_all_that_hold_more(used: dict[str, int], budget: int | None) -> None:
    """And nobody else; without a budget nobody."""
    expected = {name for name, size in used.items() if budget is not None and size > budget}
    assert set(over_budget(used, budget)) == expected


@given(free=st.integers(0, 200), inodes=st.none() | st.integers(0, 200))
def test_something_has_to_go_below_either_limit_only(free: int, inodes: int | None) -> None:
    """A file system that counts no inodes is never short of them."""
    cleanup, left = Cleanup(bytes=100, inodes=50), Free(free, inodes)

    assert cleanup.is_short(left) == (free < 100 or (inodes is not None and inodes < 50))
    assert cleanup.short_of_bytes(left) == max(0, 100 - free)
    assert cleanup.short_of_inodes(left) == (0 if inodes is None else max(0, 50 - inodes))


def test_without_limits_nothing_goes_before_its_time() -> None:
    """Off unless configured."""
    assert not Cleanup().wanted
    assert not Cleanup().is_short(Free(0, 0))
    assert Cleanup(inodes=1).wanted
    assert Cleanup(bytes=1).is_short(Free(0, None))
