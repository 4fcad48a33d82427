"""The api-versions that clients may name (spec/rest.md §12)."""

KNOWN_VERSIONS: frozenset[str] = frozenset(
    {
        "2014-10-01.1.0",
        "2015-03-01.1.1",
        "2015-06-01.2.0",
        "2015-11-01.2.1",
        "2015-12-01.2.2",
        "2016-02-01.3.0",
        "2016-07-01.3.1",
        "2017-01-01.4.0",
        "2017-05-01.5.0",
        "2017-06-01.5.1",
        "2017-09-01.6.0",
        "2018-03-01.6.1",
        "2018-08-01.7.0",
        "2018-12-01.8.0",
        "2019-06-01.9.0",
        "2019-08-01.10.0",
        "2020-03-01.11.0",
        "2020-09-01.12.0",
        "2021-06-01.14.0",
        "2022-01-01.15.0",
        "2022-10-01.16.0",
        "2023-05-01.17.0",
        "2023-11-01.18.0",
        "2024-02-01.19.0",
        "2024-07-01.20.0",
        "2025-06-01",
    }
)

# Versions order as text by their date. What each of these changed is said where it is translated (translation.py).
TASK_SLOTS_SINCE = "2020-09"
"""Tasks may need several slots, and are counted with them in a nested form; it was only tasks per node before."""

URLS_OF_RESOURCE_FILES_SINCE = "2018-12"
RESULTS_OF_TASKS_SINCE = "2017-05"
"""Tasks have a `result`; nodes may be of low priority; the status list is today's and not that of seed 000."""

OWN_USERS_SINCE = "2017-01"
"""A task says as which user it runs; before, only whether it is elevated."""


def has_results_of_tasks(version: str) -> bool:
    """Tell whether `version` shows the `result` of tasks."""
    return version >= RESULTS_OF_TASKS_SINCE


def has_nested_task_counts(version: str) -> bool:
    """Tell whether `version` has `taskCounts` and `taskSlotCounts`."""
    return version >= TASK_SLOTS_SINCE


def has_validation_status(version: str) -> bool:
    """Tell whether the task counts of `version` say whether they have been checked."""
    return "2017-06" <= version < "2018-08"
