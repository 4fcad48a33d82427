"""The `$filter` of a request."""

from nodeagent.service.rest.odata.grammar import parse_filter
from nodeagent.service.rest.odata.tree import Expression, FilterError, StartsWith
from nodeagent.service.rest.odata.where import to_where
from nodeagent.service.rest.query import Query, bad_query_value
from nodeagent.service.store.columns import Columns, Where


def filter_where(query: Query, columns: Columns) -> Where | None:
    """Return the condition of `$filter` over `columns`. Raises BatchError 400 `InvalidQueryParameterValue`."""
    text = query.get("$filter")
    if text is None:
        return None
    try:
        return to_where(parse_filter(text), columns)
    except FilterError as error:
        raise bad_query_value("$filter", text, error.reason) from error


def filter_name_prefix(query: Query) -> str:
    """Return the prefix of a file list's filter, which knows only `startswith(name,'text')`; empty for no filter."""
    text = query.get("$filter")
    if text is None:
        return ""
    try:
        expression: Expression = parse_filter(text)
    except FilterError as error:
        raise bad_query_value("$filter", text, error.reason) from error
    if not isinstance(expression, StartsWith) or expression.name != "name":
        raise bad_query_value("$filter", text, "files can only be filtered with startswith(name,'text')")
    return expression.prefix
