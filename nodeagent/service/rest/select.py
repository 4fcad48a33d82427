"""`$select`: only these properties come back (spec/rest.md §4.3)."""

from collections.abc import Collection, Mapping
from typing import Any

from nodeagent.service.rest.query import Query, bad_query_value

Selection = Mapping[str, frozenset[str]]
"""Top-level names to keep; for each the nested names to keep, empty for all of it."""


def parse_select(query: Query, allowed: Collection[str]) -> Selection | None:
    """Return what `$select` asks for, None for everything. Raises BatchError for a name that the entity lacks."""
    text = query.get("$select")
    if text is None:
        return None
    chosen: dict[str, frozenset[str]] = {}
    for item in text.split(","):
        name, slash, nested = item.strip().partition("/")
        if name not in allowed or (slash and not _has(allowed, name, nested.strip())):
            raise bad_query_value("$select", text, f"'{item.strip()}' is not a property that can be selected")
        whole = name in chosen and not chosen[name]
        chosen[name] = frozenset() if whole or not slash else chosen.get(name, frozenset()) | {nested.strip()}
    return chosen


def _has(allowed: Collection[str], name: str, nested: str) -> bool:
    """Tell whether a property may have a nested one: of some entities these are known as well (`name/nested`)."""
    return f"{name}/{nested}" in allowed or not any(one.startswith(f"{name}/") for one in allowed)


def select(entity: Mapping[str, Any], selection: Selection | None) -> Mapping[str, Any]:
    """Return the chosen part of an entity; `odata.metadata` always stays."""
    if selection is None:
        return entity
    kept: dict[str, Any] = {}
    for name, value in entity.items():
        if name == "odata.metadata":
            kept[name] = value
        elif name in selection:
            nested = selection[name]
            kept[name] = (
                {key: value[key] for key in value if key in nested} if nested and isinstance(value, dict) else value
            )
    return kept


def expands_stats(query: Query) -> bool:
    """Tell whether `$expand` asks for statistics, the only thing that may be expanded. Raises BatchError."""
    text = query.get("$expand")
    if text is None:
        return False
    if any(part.strip() != "stats" for part in text.split(",")):
        raise bad_query_value("$expand", text, "only 'stats' can be expanded")
    return True
