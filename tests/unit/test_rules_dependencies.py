"""Dependencies as rules: what a waiting task watches, and which tasks can never run."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nodeagent.model.task import TaskDependencies, TaskIdRange
from nodeagent.rules.dependencies import (
    LARGEST_NUMBER,
    MAX_TASK_IDS_LENGTH,
    Watched,
    ids_too_long,
    integer_id,
    next_unmet,
    stuck,
)

IDS = st.lists(st.sampled_from(("a", "B", "c", "3", "04")), max_size=4)
RANGES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted), max_size=3)


def wanted(ids: Iterable[str] = (), ranges: Iterable[Iterable[int]] = ()) -> TaskDependencies:
    """Return dependencies on ids and on ranges of (first, last)."""
    spans = tuple(TaskIdRange(start=start, end=end) for start, end in ranges)
    return TaskDependencies(task_ids=tuple(ids), task_id_ranges=spans)


class Ended:
    """The ids that have satisfied their dependents, in lower case."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    def missing(self, start: int, end: int) -> int | None:
        """Return the highest number that is missing."""
        numbers = {integer_id(task_id) for task_id in self.ids}
        return next((number for number in range(end, start - 1, -1) if number not in numbers), None)

    def next(self, dependencies: TaskDependencies, met_last: Watched | None) -> Watched | None:
        """Return what a task watches next."""
        return next_unmet(dependencies, met_last, id_met=self.ids.__contains__, highest_missing=self.missing)

    def all_met(self, dependencies: TaskDependencies) -> bool:
        """Tell by the definition whether a task may run: every id, and every number of every range."""
        numbers = {integer_id(task_id) for task_id in self.ids}
        named = all(task_id.lower() in self.ids for task_id in dependencies.task_ids or ())
        spans = dependencies.task_id_ranges or ()
        return named and all(number in numbers for span in spans for number in range(span.start, span.end + 1))


def meets(task_id: str, watched: Watched) -> bool:
    """Tell whether a task is the one that is watched."""
    if watched.number is not None:
        return integer_id(task_id) == watched.number
    return task_id == watched.key


@given(IDS, RANGES, st.permutations(("a", "b", "c", "0", "1", "2", "03", "3", "4", "04", "5", "06", "x6")))
def test_watching_one_dependency_finds_the_moment_when_all_are_met(
    ids: list[str], ranges: list[list[int]], order: list[str]
) -> None:
    """Whatever the order in which tasks end, a task is free exactly when the definition says so."""
    dependencies, ended = wanted(ids, ranges), Ended()
    watched = ended.next(dependencies, None)
    assert (watched is None) == ended.all_met(dependencies)
    for task_id in order:
        ended.ids.add(task_id)
        if watched is not None and meets(task_id, watched):
            watched = ended.next(dependencies, watched)
        assert (watched is None) == ended.all_met(dependencies)
        assert watched is None or not any(meets(found, watched) for found in ended.ids)


def test_ids_are_compared_without_case_and_ranges_see_integers() -> None:
    """Leading zeros are ignored by ranges; words, signs, and numbers beyond 32 bits are in none."""
    assert [integer_id(text) for text in ("010", "x9", "-4", "²", str(LARGEST_NUMBER + 1))] == [
        10,
        None,
        None,
        None,
        None,
    ]
    ended = Ended()
    assert ended.next(wanted(["A"]), None) == Watched(0, key="a")
    assert ended.next(wanted(["A"], [(4, 9)]), None) == Watched(1, number=9)


def test_only_an_ordered_range_of_possible_numbers_is_a_range() -> None:
    """The first is not beyond the last."""
    with pytest.raises(ValidationError, match="start must not be greater than end"):
        TaskIdRange(start=2, end=1)
    with pytest.raises(ValidationError):
        TaskIdRange(start=-1, end=1)


def test_the_ids_of_a_list_have_a_length_together() -> None:
    """64 000 characters are taken, one more is not."""
    assert not ids_too_long(wanted(["x" * 64] * (MAX_TASK_IDS_LENGTH // 64)))
    assert ids_too_long(wanted([*["x" * 64] * (MAX_TASK_IDS_LENGTH // 64), "y"]))


def test_blocked_tasks_and_circles_are_stuck_and_all_that_waits_for_them() -> None:
    """What waits for a task that can still run is not."""
    waiting = {
        "free": None,
        "later": wanted(["FREE"], [(1, 2)]),
        "2": wanted(["1"]),
        "blocked": wanted(["failed"]),
        "behind": wanted(["blocked", "free"]),
        "circle-a": wanted(["circle-b"]),
        "circle-b": wanted(["circle-a"]),
        "no-such-number": wanted(ranges=[(1, 3)]),
    }
    assert stuck(waiting, {"1"}) == {"blocked", "behind", "circle-a", "circle-b", "no-such-number"}
    assert stuck({}, set()) == set()
