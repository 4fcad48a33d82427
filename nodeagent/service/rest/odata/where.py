"""A `$filter` tree as a SQL condition over the columns that an entity offers (spec/rest.md §4.1, §4.2)."""

from datetime import datetime

from nodeagent.model.times import parse_time
from nodeagent.service.rest.odata.tree import And, Comparison, Expression, FilterError, Operator, Or, Scalar, StartsWith
from nodeagent.service.store.columns import Column, Columns, ColumnType, Parameter, Where

_SQL = {
    Operator.EQ: "=",
    # a missing property is unequal to everything but null, and compares false otherwise
    Operator.NE: "IS NOT",
    Operator.GT: ">",
    Operator.GE: ">=",
    Operator.LT: "<",
    Operator.LE: "<=",
}
_WANTED: dict[ColumnType, tuple[type, str]] = {
    ColumnType.ID: (str, "a quoted text"),
    ColumnType.TEXT: (str, "a quoted text"),
    ColumnType.ENUM: (str, "a quoted text"),
    ColumnType.TIME: (datetime, "a time such as DateTime'2026-01-31T23:59:59Z'"),
    ColumnType.INTEGER: (int, "a whole number"),
    ColumnType.BOOLEAN: (bool, "true or false"),
}
_ONLY_EQUALITY = frozenset({ColumnType.ENUM, ColumnType.BOOLEAN})
_TEXTS = frozenset({ColumnType.ID, ColumnType.TEXT})


def to_where(expression: Expression, columns: Columns) -> Where:
    """Return the condition. Raises FilterError for a property, operator or literal that the list does not know."""
    match expression:
        case And(terms):
            return _joined(" AND ", [to_where(term, columns) for term in terms])
        case Or(terms):
            return _joined(" OR ", [to_where(term, columns) for term in terms])
        case StartsWith():
            return _starts_with(expression, columns)
        case Comparison():
            return _comparison(expression, columns)


def _joined(word: str, parts: list[Where]) -> Where:
    parameters: tuple[Parameter, ...] = ()
    for part in parts:
        parameters += part.parameters
    return Where(word.join(f"({part.sql})" for part in parts), parameters)


def _column(name: str, position: int, columns: Columns) -> Column:
    column = columns.get(name)
    if column is None:
        known = ", ".join(sorted(columns))
        raise FilterError(f"'{name}' is not a property that can be filtered here; these are: {known}", position)
    return column


def _starts_with(expression: StartsWith, columns: Columns) -> Where:
    column = _column(expression.name, expression.position, columns)
    if column.type not in _TEXTS:
        raise FilterError(f"startswith does not apply to '{expression.name}'", expression.position)
    return Where(f"substr({column.sql}, 1, ?) = ?", (len(expression.prefix), column.parameter(expression.prefix)))


def _comparison(expression: Comparison, columns: Columns) -> Where:
    column = _column(expression.name, expression.position, columns)
    if column.type in _ONLY_EQUALITY and expression.operator not in (Operator.EQ, Operator.NE):
        raise FilterError(f"'{expression.name}' can only be compared with eq and ne", expression.position)
    if expression.value is None:
        return _is_null(expression, column)
    value = _typed(expression, column.type)
    return Where(f"{column.sql} {_SQL[expression.operator]} ?", (column.parameter(value),))


def _is_null(expression: Comparison, column: Column) -> Where:
    if expression.operator not in (Operator.EQ, Operator.NE):
        raise FilterError("null can only be compared with eq and ne", expression.position)
    return Where(f"{column.sql} IS {'NULL' if expression.operator is Operator.EQ else 'NOT NULL'}")


def _typed(expression: Comparison, kind: ColumnType) -> Scalar:
    value: Scalar = expression.value
    wanted, words = _WANTED[kind]
    if kind is ColumnType.TIME and isinstance(value, str):
        try:
            value = parse_time(value)
        except ValueError as error:
            raise FilterError(str(error), expression.position) from error
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise FilterError(f"'{expression.name}' must be compared with {words}", expression.position)
    return value
