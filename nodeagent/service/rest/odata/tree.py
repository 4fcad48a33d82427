"""A parsed `$filter`, and its text form."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from nodeagent.model.times import format_time

Scalar = str | int | bool | datetime | None
"""A literal, None for `null`. A quoted time stays text until its property says that it is a time."""


class Operator(StrEnum):
    """The comparisons of the grammar."""

    EQ = "eq"
    NE = "ne"
    GT = "gt"
    GE = "ge"
    LT = "lt"
    LE = "le"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`property operator literal`; `position` counts characters from 1."""

    name: str
    operator: Operator
    value: Scalar
    position: int = field(default=1, compare=False)

    def __str__(self) -> str:
        return f"{self.name} {self.operator} {literal_text(self.value)}"


@dataclass(frozen=True, slots=True)
class StartsWith:
    """`startswith(property, 'text')`; `position` counts characters from 1."""

    name: str
    prefix: str
    position: int = field(default=1, compare=False)

    def __str__(self) -> str:
        return f"startswith({self.name},{literal_text(self.prefix)})"


@dataclass(frozen=True, slots=True)
class And:
    """Every term holds."""

    terms: tuple["Expression", ...]

    def __str__(self) -> str:
        return " and ".join(f"({term})" if isinstance(term, Or | And) else str(term) for term in self.terms)


@dataclass(frozen=True, slots=True)
class Or:
    """At least one term holds."""

    terms: tuple["Expression", ...]

    def __str__(self) -> str:
        return " or ".join(f"({term})" if isinstance(term, Or) else str(term) for term in self.terms)


Expression = Comparison | StartsWith | And | Or


class FilterError(Exception):
    """A `$filter` that is not of the grammar or not of the list's properties: `reason` says where and what."""

    def __init__(self, reason: str, position: int | None = None) -> None:
        self.reason = reason if position is None else f"{reason} (at position {position})"
        super().__init__(self.reason)


def literal_text(value: Scalar) -> str:
    """Return a literal as `$filter` writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, datetime):
        return f"DateTime'{format_time(value)}'"
    doubled = value.replace("'", "''")
    return f"'{doubled}'"
