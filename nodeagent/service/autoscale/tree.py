"""A formula as a tree. `place` is where something stands in the text: line and column, both from 1."""

from dataclasses import dataclass
from typing import TypeAlias

Place: TypeAlias = tuple[int, int]


class FormulaError(Exception):
    """Something is wrong with a formula, at a place of its text."""

    def __init__(self, message: str, place: Place | None) -> None:
        where = "" if place is None else f" (line {place[0]}, column {place[1]})"
        super().__init__(f"{message}{where}")
        self.message = message
        self.place = place


class FormulaSyntaxError(FormulaError):
    """The text is no formula."""


class FormulaTooLongError(FormulaError):
    """The text is longer than a formula may be."""


class EvaluationError(FormulaError):
    """The formula has no value now: a wrong type, too few samples, too much work."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A number or a quoted text."""

    value: float | str
    place: Place
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Name:
    """A variable, or a word that stands for itself, such as `taskcompletion`."""

    name: str
    place: Place
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Unary:
    """`-x` or `!x`."""

    operator: str
    operand: "Expression"
    place: Place
    depth: int


@dataclass(frozen=True, slots=True)
class Binary:
    """Two operands and what stands between them."""

    operator: str
    left: "Expression"
    right: "Expression"
    place: Place
    depth: int


@dataclass(frozen=True, slots=True)
class Choice:
    """`condition ? chosen : other`."""

    condition: "Expression"
    chosen: "Expression"
    other: "Expression"
    place: Place
    depth: int


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its arguments; `of` is what a method is called on."""

    name: str
    arguments: tuple["Expression", ...]
    of: "Expression | None"
    place: Place
    depth: int


@dataclass(frozen=True, slots=True)
class Member:
    """`x.weekday`."""

    of: "Expression"
    name: str
    place: Place
    depth: int


Expression: TypeAlias = Literal | Name | Unary | Binary | Choice | Call | Member


@dataclass(frozen=True, slots=True)
class Statement:
    """`name = value`; a statement without a name is an expression alone, such as `stop()`."""

    name: str | None
    value: Expression
    place: Place


Formula: TypeAlias = tuple[Statement, ...]
