"""Request bodies: JSON to model, and what is wrong with them in Batch's words (spec/rest.md §7.3)."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import orjson
import structlog
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from nodeagent.model.base import BatchModel
from nodeagent.rules.file_properties import FileFault
from nodeagent.service.errors import BatchError, refusal

MAX_BODY_BYTES = 1_048_576

MAX_DEPTH = 64
"""Objects and arrays within each other; what Batch has needs 8, and pools keep parts that are only echoed."""

_MAX_SHOWN = 256
"""Characters of a client's text that a refusal repeats."""

_REMOVED = ("certificateReferences", "resourceTags", "targetNodeCommunicationMode")
"""Features that Batch has removed; clients of older versions still name them, and they mean nothing here."""

_SECRET_PARTS = ("password", "key", "token", "sas", "url", "secret", "environmentsettings", "commandline")

_UNKNOWN = "extra_forbidden"
_MAX_LOGGED = 20
_log = structlog.get_logger()

Model = TypeVar("Model", bound=BatchModel)


class _NameTwiceError(Exception):
    """An object of a body has two properties of one name."""


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises BatchError 400 `InvalidRequestBody`, also for what JSON parsers disagree about: a name that an object has
    twice, NaN, text that is not UTF-8.
    """
    if not body.strip():
        raise _bad_body("The body is empty.")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _bad_body(f"The body is not JSON: {error.msg} (line {error.lineno}, column {error.colno}).") from error
    if not isinstance(value, dict):
        raise _bad_body("The body must be a JSON object.")
    if _is_too_deep(value):
        raise _bad_body(f"Objects and arrays may be nested {MAX_DEPTH} deep.")
    _refuse_name_twice(body)
    return value


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        parts = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [child for part in parts for child in part if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _refuse_name_twice(body: bytes) -> None:
    """Raise BatchError for an object in which a name occurs twice: who reads it knows only one of the values."""
    try:
        # numbers stay text: they are not looked at, and one of a million digits would cost time
        json.loads(body.decode(), object_pairs_hook=_names_once, parse_int=str, parse_float=str)
    except _NameTwiceError as error:
        raise _bad_body(f"An object has the property '{str(error)[:_MAX_SHOWN]}' twice.") from error


def _names_once(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise _NameTwiceError(next(name for name in names if names.count(name) > 1))


def parse(model: type[Model], value: object, *, loose: bool = False) -> Model:
    """Return `value` as `model`; `loose` leaves out, and logs, properties that Batch does not have.

    Raises BatchError 400 naming the property and what would be right.
    """
    given = _without_removed(value)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        unknown = [fault["loc"] for fault in faults if fault["type"] == _UNKNOWN]
        if loose and unknown:
            _log.warning("properties_ignored", properties=[_json_path(path) for path in unknown[:_MAX_LOGGED]])
            return parse(model, _without(given, unknown))
        raise _first_fault(model, faults) from error


def _without(value: object, paths: Iterable[tuple[int | str, ...]]) -> object:
    """Return a copy of JSON that lacks the properties at these paths."""
    copy = orjson.loads(orjson.dumps(value))
    for path in paths:
        place = copy
        for part in path[:-1]:
            place = place[part]
        del place[path[-1]]
    return copy


def refuse_unsupported(paths: Iterable[str], *, loose: bool) -> list[str]:
    """Raise BatchError 400 `UnsupportedProperty` for the first path, or return the paths when `loose`."""
    found = list(paths)
    if found and not loose:
        raise unsupported_property(found[0], "this version of nodeagent does not support it")
    return found


def refuse_faults(faults: Iterable[FileFault]) -> None:
    """Raise BatchError 400 for the first thing that is wrong with a task's files; its value is not repeated."""
    for fault in faults:
        if fault.reason is None:
            raise refusal("MissingRequiredProperty", ("PropertyName", fault.path))
        raise refusal("InvalidPropertyValue", ("PropertyName", fault.path), ("Reason", fault.reason))


def unsupported_property(path: str, reason: str) -> BatchError:
    """Return the refusal of a property by name."""
    return refusal("UnsupportedProperty", ("PropertyName", path), ("Reason", reason))


def invalid_property(path: str, value: object, reason: str) -> BatchError:
    """Return the refusal of a property's value; values that may hold a secret are not repeated."""
    values = [("PropertyName", path), ("Reason", reason)]
    if isinstance(value, str | int | float | bool) and not any(part in path.lower() for part in _SECRET_PARTS):
        values.insert(1, ("PropertyValue", str(value)[:_MAX_SHOWN]))
    return refusal("InvalidPropertyValue", *values)


def _bad_body(reason: str) -> BatchError:
    return refusal("InvalidRequestBody", ("Reason", reason))


def _without_removed(value: object) -> object:
    if isinstance(value, dict) and any(name in value for name in _REMOVED):
        return {name: item for name, item in value.items() if name not in _REMOVED}
    return value


def _first_fault(model: type[BatchModel], faults: list[ErrorDetails]) -> BatchError:
    """Batch reports one fault; a missing property explains the others, so it goes first."""
    fault = next((item for item in faults if item["type"] == "missing"), faults[0])
    path, kind = _json_path(fault["loc"]), fault["type"]
    if kind == "missing":
        return refusal("MissingRequiredProperty", ("PropertyName", path))
    if kind == _UNKNOWN:
        return unsupported_property(path, "Batch has no such property here")
    reason = fault["msg"].removeprefix("Value error, ").replace("a valid tuple", "a valid array")
    if kind.endswith(("_type", "_parsing")):
        return refusal("InvalidRequestBody", ("PropertyName", path), ("Reason", reason))
    return invalid_property(path or _named_in(model, fault["input"], reason), fault["input"], reason)


def _json_path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")[:_MAX_SHOWN]


def _named_in(model: type[BatchModel], body: object, reason: str) -> str:
    """A rule about several properties has no place of its own: name the first that it names and that is there."""
    names: Mapping[str, int] = {
        field.alias: position
        for field in model.model_fields.values()
        if field.alias is not None
        and (not isinstance(body, dict) or field.alias in body)
        and (position := reason.find(field.alias)) >= 0
    }
    return min(names, key=names.__getitem__, default="")
