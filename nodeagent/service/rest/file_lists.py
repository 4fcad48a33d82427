"""How long a list of resource files may be (swagger of `resourceFiles`: `RequestEntityTooLarge`)."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from nodeagent.service.errors import refusal

MAX_CHARACTERS = 32_768
"""Of the list as compact JSON. The number is the one that Azure's refusal names."""

_HOLDERS = ("jobManagerTask", "jobPreparationTask", "jobReleaseTask", "startTask", "jobSpecification")


def refuse_long_file_lists(body: Mapping[str, Any]) -> None:
    """Raise BatchError 413 `RequestEntityTooLarge` naming the first list that is too long.

    `body` is a valid task, job, job schedule or pool as it came in; the lists of all its tasks are measured.
    """
    for path, files in _lists(body, ""):
        if len(orjson.dumps(files).decode()) > MAX_CHARACTERS:
            reason = f"Total size of resourceFiles cannot be more than {MAX_CHARACTERS} characters"
            raise refusal("RequestEntityTooLarge", ("PropertyName", path), ("Reason", reason))


def _lists(body: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
    if body.get("resourceFiles"):
        yield f"{prefix}resourceFiles", body["resourceFiles"]
    for name in _HOLDERS:
        inner = body.get(name)
        if isinstance(inner, Mapping):
            yield from _lists(inner, f"{prefix}{name}.")
