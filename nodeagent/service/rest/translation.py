"""What older api-versions say differently (spec/rest.md §12): the one place that knows.

Handlers, models and the store speak as today's version does. The body of a request of an older client is put into
today's words before its handler sees it, and the answer is put back into the client's. Names differ wherever they
stand, since no two properties of Batch share one of these; where the shape differs, a function of its own says how.
Values that are refused are named as today's version names them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import orjson

from nodeagent.service.rest.query import Query
from nodeagent.service.rest.validate import json_object
from nodeagent.service.rest.versions import (
    OWN_USERS_SINCE,
    RESULTS_OF_TASKS_SINCE,
    TASK_SLOTS_SINCE,
    URLS_OF_RESOURCE_FILES_SINCE,
    has_nested_task_counts,
    has_results_of_tasks,
    has_validation_status,
)

Json: TypeAlias = Mapping[str, Any]

_RENAMED = (
    (TASK_SLOTS_SINCE, "maxTasksPerNode", "taskSlotsPerNode"),
    (URLS_OF_RESOURCE_FILES_SINCE, "blobSource", "httpUrl"),
    (RESULTS_OF_TASKS_SINCE, "targetDedicated", "targetDedicatedNodes"),
    (RESULTS_OF_TASKS_SINCE, "currentDedicated", "currentDedicatedNodes"),
    (RESULTS_OF_TASKS_SINCE, "schedulingError", "preProcessingError"),
)
"""Since when, the name before, the name since then."""

_ADDED = (
    (TASK_SLOTS_SINCE, ("requiredSlots", "runningTaskSlotsCount")),
    (RESULTS_OF_TASKS_SINCE, ("result", "containerInfo", "targetLowPriorityNodes", "currentLowPriorityNodes")),
)
"""Since when, and properties that older clients are not shown."""

_NOT_OURS = frozenset({"settings", "protectedSettings"})
"""Of extensions of a pool's machines: JSON of somebody else, in which no name means what it means in Batch."""

_RELEASE = "jobReleaseTaskExecutionInfo"
_STATUS_LIST = "Jobs_ListJobPreparationAndReleaseTaskStatus"
_TASK_COUNTS = "Jobs_GetJobTaskCounts"


@dataclass(frozen=True, slots=True)
class Translation:
    """Between the words of one api-version and today's."""

    version: str
    to_today: Mapping[str, str]
    to_version: Mapping[str, str]
    hidden: frozenset[str]

    def request_body(self, body: bytes) -> bytes:
        """Return the body of a request as today's clients write it. Raises BatchError if it is no JSON object."""
        if not body.strip():
            return body
        return orjson.dumps(self._today(json_object(body)))

    def query(self, query: Query) -> Query:
        """Return the parameters of a request with today's names in `$select`."""
        chosen = query.get("$select")
        if chosen is None:
            return query
        names = {**self.to_today, **({"runElevated": "userIdentity"} if self._elevates() else {})}
        today = [names.get(name.strip(), name) for name in chosen.split(",")]
        return query.with_value("$select", ",".join(today))

    def reply_body(self, operation: str, query: Query, body: Json) -> Json:
        """Return what an operation answers as clients of the version know it."""
        if operation == _STATUS_LIST:
            return body if has_results_of_tasks(self.version) else _status_list_of_2016(query, body)
        if operation == _TASK_COUNTS:
            return _flat_task_counts(self.version, body)
        shown: Json = self._then(body)
        return shown

    def _elevates(self) -> bool:
        return self.version < OWN_USERS_SINCE

    def _today(self, value: Any) -> Any:  # noqa: ANN401 - JSON is anything
        if isinstance(value, list):
            return [self._today(item) for item in value]
        if not isinstance(value, dict):
            return value
        found = {}
        for name, item in value.items():
            if name == "runElevated" and self._elevates() and isinstance(item, bool):
                level = "admin" if item else "nonadmin"
                found["userIdentity"] = {"autoUser": {"elevationLevel": level}}
            else:
                # who gives both names gets the refusal of the one that is not today's
                today = self.to_today.get(name, name)
                found[name if today in value else today] = item if name in _NOT_OURS else self._today(item)
        return found

    def _then(self, value: Any) -> Any:  # noqa: ANN401 - JSON is anything
        if isinstance(value, list):
            return [self._then(item) for item in value]
        if not isinstance(value, dict):
            return value
        found = {}
        for name, item in value.items():
            if name in self.hidden:
                continue
            if name == "userIdentity" and self._elevates():
                found["runElevated"] = (item.get("autoUser") or {}).get("elevationLevel") == "admin"
            elif name == "resizeErrors" and not has_results_of_tasks(self.version):
                if item:
                    found["resizeError"] = self._then(item[0])
            else:
                found[self.to_version.get(name, name)] = item if name in _NOT_OURS else self._then(item)
        return found


@lru_cache(maxsize=64)
def translation_of(version: str) -> Translation | None:
    """Return the translation for a known api-version; None if it speaks as today's does."""
    if version >= TASK_SLOTS_SINCE:
        return None
    renamed = [(before, today) for since, before, today in _RENAMED if version < since]
    hidden = frozenset(name for since, names in _ADDED if version < since for name in names)
    to_version = {today: before for before, today in renamed}
    if not has_results_of_tasks(version):
        # what kept a task from running; requests have no such property
        to_version["failureInfo"] = "schedulingError"
    return Translation(version, dict(renamed), to_version, hidden)


def _flat_task_counts(version: str, body: Json) -> Json:
    if has_nested_task_counts(version):
        return body
    flat = {"odata.metadata": body["odata.metadata"], **body["taskCounts"]}
    return flat | {"validationStatus": "validated"} if has_validation_status(version) else flat


def _status_list_of_2016(query: Query, body: Json) -> Json:
    """Seed 000 is a page of this form: other names of list and links, no `result`, `values`, a `retryCount` of 0."""
    selected = {name.strip() for name in (query.get("$select") or _RELEASE).split(",")}
    counted = not selected.isdisjoint({_RELEASE, f"{_RELEASE}/retryCount"})
    older = dict(body)
    older["odata.metadata"] = _replaced_last(
        body["odata.metadata"], "jobpreparationandreleasetaskstatuslist", "jobpreparationandreleasestatuslist"
    )
    older["value"] = [_status_of_2016(entry, counted=counted) for entry in body["value"]]
    link = body.get("odata.nextLink")
    if link is not None:
        path, _, options = link.partition("?")
        path = _replaced_last(path, "jobpreparationandreleasetaskstatus", "jobpreparationandreleasestatus")
        older["odata.nextLink"] = f"{path}?{_replaced_last(options, '$skiptoken=', '$skipToken=')}"
    return older


def _status_of_2016(entry: Json, *, counted: bool) -> Json:
    older = {name: _execution_of_2016(value) if isinstance(value, Mapping) else value for name, value in entry.items()}
    if counted and _RELEASE in older:
        older[_RELEASE]["retryCount"] = 0
    return older


def _execution_of_2016(execution: Json) -> dict[str, Any]:
    older = {name: value for name, value in execution.items() if name not in {"result", "containerInfo"}}
    failure = older.get("failureInfo")
    if failure is not None:
        older["failureInfo"] = {"values" if name == "details" else name: value for name, value in failure.items()}
    return older


def _replaced_last(text: str, old: str, new: str) -> str:
    before, _, after = text.rpartition(old)
    return f"{before}{new}{after}"
