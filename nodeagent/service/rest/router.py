"""Finds the operation that a request line means; paths are taken as they were sent (spec/rest.md §2.5)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar
from urllib.parse import unquote

from nodeagent.service.errors import BatchError, refusal


class Routed(Protocol):
    """Anything that answers one verb on one path, e.g. `GET /jobs/{job_id}/tasks`.

    A last segment `{name...}` takes the rest of the path, slashes included.
    """

    @property
    def method(self) -> str:
        """The verb, in capitals."""

    @property
    def path(self) -> str:
        """The pattern."""


Target = TypeVar("Target", bound=Routed)


@dataclass(slots=True)
class _Place(Generic[Target]):
    literals: "dict[str, _Place[Target]]" = field(default_factory=dict)
    variable: "tuple[str, _Place[Target]] | None" = None
    rest: "tuple[str, _Place[Target]] | None" = None
    targets: dict[str, Target] = field(default_factory=dict)


class Router(Generic[Target]):
    """A tree of path segments; literal segments match without case, and before variables."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self._root: _Place[Target] = _Place()
        for target in targets:
            self._add(target)

    def find(self, method: str, raw_path: str) -> tuple[Target, dict[str, str]]:
        """Return the target and its decoded variables.

        Raises BatchError 404 `ResourceNotFound` for an unknown path, 405 `UnsupportedHttpVerb` for an unknown verb.
        """
        variables: dict[str, str] = {}
        place = self._root
        remaining = raw_path.lstrip("/")
        while remaining:
            raw, _, after = remaining.partition("/")
            following = place.literals.get(unquote(raw).lower())
            if following is None and place.rest is not None:
                name, following = place.rest
                raw, after = remaining, ""
                # a file's name may be any bytes: those that are not UTF-8 stay what they are
                variables[name] = unquote(raw, errors="surrogateescape")
            elif following is None and place.variable is not None:
                name, following = place.variable
                variables[name] = unquote(raw)
            if following is None:
                raise refusal("ResourceNotFound")
            place, remaining = following, after
        if not place.targets:
            raise refusal("ResourceNotFound")
        if method not in place.targets:
            text = "The resource does not support the specified HTTP verb."
            raise BatchError(405, "UnsupportedHttpVerb", text, (("AllowedVerbs", ", ".join(sorted(place.targets))),))
        return place.targets[method], variables

    def _add(self, target: Target) -> None:
        place = self._root
        for segment in target.path.strip("/").split("/"):
            if segment.endswith("...}"):
                place.rest = place.rest or (segment[1:-4], _Place())
                place = place.rest[1]
            elif segment.startswith("{"):
                place.variable = place.variable or (segment[1:-1], _Place())
                place = place.variable[1]
            else:
                place = place.literals.setdefault(segment.lower(), _Place())
        if target.method in place.targets:
            raise ValueError(f"{target.method} {target.path} is in the table twice")
        place.targets[target.method] = target
