"""The value of a formula: what size a pool shall have, by its samples and the time.

An evaluation is bounded: no loops in the language, a limited tree (grammar.py), and a limit of what all steps of it
may touch. Nothing of Python can be reached: names are looked up in tables only.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from nodeagent.model.enums import DrainOption
from nodeagent.model.times import format_time, parse_time
from nodeagent.service.autoscale import operations
from nodeagent.service.autoscale.operations import Value, Vector, WrongValueError, numbers, type_name
from nodeagent.service.autoscale.samples import PERIOD, Sample, Series, series_of
from nodeagent.service.autoscale.tree import (
    Binary,
    Call,
    Choice,
    EvaluationError,
    Expression,
    Formula,
    Literal,
    Member,
    Name,
    Place,
    Statement,
    Unary,
)

MAX_WORK = 500_000
"""Steps and elements of vectors that one evaluation may touch: some tenths of a second."""
MAX_NODES = 100_000

_DEDICATED = "$targetdedicatednodes"
_LOW_PRIORITY = "$targetlowprioritynodes"
_OPTION = "$nodedeallocationoption"
_TARGETS: Final = {_DEDICATED, "$targetdedicated", _LOW_PRIORITY, _OPTION}
_ALIASES: Final = {"$targetdedicated": _DEDICATED, "$currentdedicated": "$currentdedicatednodes"}
_OPTIONS: Final = frozenset(option.value for option in DrainOption)


@dataclass(frozen=True, slots=True)
class Situation:
    """What a formula is evaluated in: the time, the targets of the pool, and its samples, oldest first."""

    now: datetime
    dedicated: int
    low_priority: int
    samples: Sequence[Sample] = ()


@dataclass(frozen=True, slots=True)
class Results:
    """What a formula came to; `variables` are the formula's own, in the order of their names."""

    dedicated: int
    low_priority: int
    option: DrainOption
    variables: Mapping[str, str]

    @property
    def text(self) -> str:
        """The form of `autoScaleRun.results`."""
        targets = {
            "$TargetDedicatedNodes": str(self.dedicated),
            "$TargetLowPriorityNodes": str(self.low_priority),
            "$NodeDeallocationOption": self.option.value,
        }
        return ";".join(f"{name}={value}" for name, value in (targets | dict(self.variables)).items())


class _StopEvaluationError(Exception):
    """`stop()` was evaluated: what has been assigned so far holds."""


def evaluate(formula: Formula, situation: Situation) -> Results:
    """Return what size a formula gives a pool. Raises EvaluationError with the place."""
    return _Evaluation(situation).run(formula)


class _Evaluation:
    """One evaluation of a formula."""

    def __init__(self, situation: Situation) -> None:
        self._now = situation.now
        self._series = series_of(situation.samples)
        self._own: dict[str, Value] = {}
        self._targets: dict[str, Value] = {
            _DEDICATED: float(situation.dedicated),
            _LOW_PRIORITY: float(situation.low_priority),
            _OPTION: DrainOption.REQUEUE.value,
        }
        self._work = 0

    def run(self, formula: Formula) -> Results:
        place: Place | None = None
        try:
            for statement in formula:
                place = statement.place
                self._assign(statement)
        except _StopEvaluationError:
            pass
        variables = {name: _shown(value)[:1024] for name, value in sorted(self._own.items())}
        return Results(
            _count(self._targets[_DEDICATED], "$TargetDedicatedNodes", place),
            _count(self._targets[_LOW_PRIORITY], "$TargetLowPriorityNodes", place),
            _option(self._targets[_OPTION], place),
            variables,
        )

    def _assign(self, statement: Statement) -> None:
        value = self._value(statement.value)
        if statement.name is None:
            return
        name = _key(statement.name)
        if name in _TARGETS:
            self._targets[name] = value
        elif name in self._series:
            raise EvaluationError(f"{statement.name} cannot be assigned to", statement.place)
        else:
            self._own[statement.name] = value

    def _value(self, node: Expression) -> Value:
        found = self._found(node)
        self._count_work(1 + (len(found) if isinstance(found, tuple) else 0), node.place)
        if isinstance(found, float) and not math.isfinite(found):
            raise EvaluationError("the result is no number", node.place)
        return found

    def _count_work(self, amount: int, place: Place) -> None:
        self._work += amount
        if self._work > MAX_WORK:
            raise EvaluationError("the evaluation takes too much work", place)

    def _found(self, node: Expression) -> Value:  # noqa: PLR0911 - one for each kind of node
        try:
            match node:
                case Literal():
                    return node.value
                case Name():
                    return self._named(node)
                case Unary():
                    return self._unary(node)
                case Binary():
                    return self._binary(node)
                case Choice():
                    return self._value(node.chosen if self._true(node.condition) else node.other)
                case Member():
                    return self._member(node)
                case Call(of=None):
                    return self._function(node)
                case Call():
                    return self._method(node)
        except (WrongValueError, OverflowError, ValueError) as error:
            raise EvaluationError(str(error), node.place) from error

    def _named(self, node: Name) -> Value:
        if node.name in self._own:
            return self._own[node.name]
        name = _key(node.name)
        if name in self._targets:
            return self._targets[name]
        if name in self._series:
            points = self._series[name].points
            if not points:
                raise EvaluationError(f"there are no samples of {node.name} yet", node.place)
            return points[-1][1]
        if name in operations.INTERVALS:
            return operations.INTERVALS[name]
        if name in _OPTIONS:
            return name
        raise EvaluationError(f"{node.name} has no value", node.place)

    def _true(self, node: Expression) -> bool:
        value = self._value(node)
        if not isinstance(value, float):
            raise EvaluationError(f"a double is wanted here, not a {type_name(value)}", node.place)
        return value != 0

    def _unary(self, node: Unary) -> Value:
        if node.operator == "!":
            return float(not self._true(node.operand))
        value = self._value(node.operand)
        if isinstance(value, str | datetime):
            raise WrongValueError(f"{node.operator}{type_name(value)} is not defined")
        return value if node.operator == "+" else operations.combine("*", value, -1.0)

    def _binary(self, node: Binary) -> Value:
        if node.operator == "&&":
            return float(self._true(node.left) and self._true(node.right))
        if node.operator == "||":
            return float(self._true(node.left) or self._true(node.right))
        return operations.combine(node.operator, self._value(node.left), self._value(node.right))

    def _member(self, node: Member) -> Value:
        value = self._value(node.of)
        part = operations.MEMBERS.get(node.name.lower())
        if part is None or not isinstance(value, datetime):
            raise WrongValueError(f"a {type_name(value)} has no {node.name}")
        return part(value)

    def _function(self, node: Call) -> Value:
        name = node.name.lower()
        function = _FUNCTIONS.get(name)
        if function is not None:
            return function(self, node)
        arguments = [self._value(argument) for argument in node.arguments]
        if name in operations.ELEMENTWISE:
            _number_of(arguments, node, 1, 1)
            apply, (value,) = operations.ELEMENTWISE[name], arguments
            values = tuple(apply(item) for item in numbers([value]))
            return values if isinstance(value, tuple) else values[0]
        if name in operations.REDUCING:
            found = numbers(arguments)
            if not found:
                raise WrongValueError(f"{node.name} of no values: there are too few samples")
            self._count_work(len(found), node.place)
            return operations.REDUCING[name](found)
        raise WrongValueError(f"there is no function {node.name}")

    def _len(self, node: Call) -> Value:
        return float(len(numbers(self._value(argument) for argument in node.arguments)))

    def _sum(self, node: Call) -> Value:
        return float(math.fsum(numbers(self._value(argument) for argument in node.arguments)))

    def _percentile(self, node: Call) -> Value:
        vector, percent = self._vector_and_number(node)
        self._count_work(len(vector), node.place)
        return operations.percentile(vector, percent)

    def _val(self, node: Call) -> Value:
        vector, index = self._vector_and_number(node)
        if not 0 <= index < len(vector):
            raise WrongValueError(f"there is no element {index:g} in a vector of {len(vector)}")
        return vector[int(index)]

    def _vector_and_number(self, node: Call) -> tuple[Vector, float]:
        arguments = [self._value(argument) for argument in node.arguments]
        _number_of(arguments, node, 2, 2)
        first, second = arguments
        vector = numbers([first])
        if not vector:
            raise WrongValueError(f"{node.name} of no values: there are too few samples")
        if not isinstance(second, float):
            raise WrongValueError(f"the second argument of {node.name} is a double")
        return vector, second

    def _rand(self, node: Call) -> Value:
        _number_of(node.arguments, node, 0, 0)
        return random.random()  # noqa: S311 - no secret hangs on it

    def _stop(self, node: Call) -> Value:
        _number_of(node.arguments, node, 0, 0)
        raise _StopEvaluationError

    def _time(self, node: Call) -> Value:
        _number_of(node.arguments, node, 0, 1)
        if not node.arguments:
            return self._now
        text = self._value(node.arguments[0])
        if not isinstance(text, str):
            raise WrongValueError("time takes a quoted text")
        if not text:
            return self._now
        return parse_time(text if "T" in text.upper() or " " in text.strip() else f"{text.strip()}T00:00:00Z")

    def _method(self, node: Call) -> Value:
        if not isinstance(node.of, Name) or _key(node.of.name) not in self._series:
            raise WrongValueError(f"only the variables of the service have samples, so {node.name} has no meaning here")
        series = self._series[_key(node.of.name)]
        self._count_work(len(series.points), node.place)
        arguments = [self._value(argument) for argument in node.arguments]
        match node.name.lower():
            case "getsample":
                return self._get_sample(series, arguments, node)
            case "getsamplepercent":
                _number_of(arguments, node, 1, 2)
                return series.percent(*self._window(arguments, node))
            case "getsampleperiod":
                return PERIOD
            case "historybegintime":
                if not series.points:
                    raise WrongValueError(f"there are no samples of {series.name} yet")
                return series.points[0][0]
            case "count":
                return float(len(series.points))
            case _:
                raise WrongValueError(f"there is no method {node.name}")

    def _get_sample(self, series: Series, arguments: list[Value], node: Call) -> Value:
        """GetSample(), GetSample(count), GetSample(start[, end][, percent])."""
        _number_of(arguments, node, 0, 3)
        if not arguments:
            return tuple(value for _, value in series.points)
        first, *more = arguments
        if isinstance(first, float):
            _number_of(arguments, node, 1, 1)
            count = int(first)
            if count < 1:
                raise WrongValueError("at least one sample must be asked for")
            return tuple(value for _, value in series.points[-count:])
        percent = more.pop() if more and isinstance(more[-1], float) else 0.0
        start, end = self._window([first, *more], node)
        found = series.percent(start, end)
        if found < _float(percent):
            raise WrongValueError(f"there are {found:.0f} % of the samples of {series.name}, {percent:g} % are wanted")
        return series.between(start, end)

    def _window(self, arguments: Sequence[Value], node: Call) -> tuple[datetime, datetime]:
        _number_of(arguments, node, 1, 2)
        times = [self._now - value if isinstance(value, timedelta) else value for value in arguments]
        start, end = times[0], times[1] if len(times) > 1 else self._now
        if not isinstance(start, datetime) or not isinstance(end, datetime):
            raise WrongValueError(f"{node.name} takes timestamps or timeintervals")
        return start, end


_FUNCTIONS: Final[Mapping[str, Callable[[_Evaluation, Call], Value]]] = {
    "len": _Evaluation._len,  # noqa: SLF001 - the class's own table
    "sum": _Evaluation._sum,  # noqa: SLF001
    "percentile": _Evaluation._percentile,  # noqa: SLF001
    "val": _Evaluation._val,  # noqa: SLF001
    "rand": _Evaluation._rand,  # noqa: SLF001
    "stop": _Evaluation._stop,  # noqa: SLF001
    "time": _Evaluation._time,  # noqa: SLF001
}


def _key(name: str) -> str:
    lowered = name.lower()
    return _ALIASES.get(lowered, lowered)


def _float(value: Value) -> float:
    if not isinstance(value, float):
        raise WrongValueError(f"a double is wanted, not a {type_name(value)}")
    return value


def _number_of(arguments: Sequence[object], node: Call, least: int, most: int) -> None:
    if not least <= len(arguments) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise WrongValueError(f"{node.name} takes {wanted} arguments, not {len(arguments)}")


def _count(value: Value, name: str, place: Place | None) -> int:
    """Return a number of nodes: a part of a node is a whole one, so that what waits is never left without any."""
    if not isinstance(value, float):
        raise EvaluationError(f"{name} must be a double, not a {type_name(value)}", place)
    if not 0 <= value <= MAX_NODES:
        raise EvaluationError(f"{name} must be from 0 to {MAX_NODES}, not {value:g}", place)
    return math.ceil(value)


def _option(value: Value, place: Place | None) -> DrainOption:
    if isinstance(value, str) and value.lower() in _OPTIONS and value.lower() != DrainOption.RETAINED_DATA:
        return DrainOption(value.lower())
    raise EvaluationError("$NodeDeallocationOption must be requeue, terminate or taskcompletion", place)


def _shown(value: Value) -> str:
    match value:
        case float():
            return f"{value:.15g}"
        case tuple():
            return f"[{','.join(f'{item:.15g}' for item in value[:100])}]"
        case datetime():
            return format_time(value)
        case timedelta():
            return f"{value.total_seconds():g}s"
        case _:
            return value
