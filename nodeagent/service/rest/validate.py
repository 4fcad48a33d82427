"""Request bodies: JSON to model, and what is wrong with them in Batch's words (spec/rest.md §7.3)."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from nodeagent.model.base import BatchModel
from nodeagent.rules.file_properties import FileFault
from nodeagent.service.errors import BatchError, refusal

MAX_BODY_BYTES = 1_048_576

_REMOVED = ("certificateReferences", "resourceTags", "targetNodeCommunicationMode")
"""Features that Batch has removed; clients of older versions still name them, and they mean nothing here."""

_SECRET_PARTS = ("password", "key", "token", "sas", "url", "secret", "environmentsettings", "commandline")

Model = TypeVar("Model", bound=BatchModel)


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body. Raises BatchError 400 `InvalidRequestBody`."""
    if not body.strip():
        raise _bad_body("The body is empty.")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _bad_body(f"The body is not JSON: {error.msg} (line {error.lineno}, column {error.colno}).") from error
    if not isinstance(value, dict):
        raise _bad_body("The body must be a JSON object.")
    return value


def parse(model: type[Model], value: object) -> Model:
    """Return `value` as `model`. Raises BatchError 400 naming the property and what would be right."""
    try:
        return model.model_validate(_without_removed(value))
    except ValidationError as error:
        raise _first_fault(model, error.errors(include_url=False, include_context=False)) from error


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
        values.insert(1, ("PropertyValue", str(value)[:256]))
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
    if kind == "extra_forbidden":
        return unsupported_property(path, "Batch has no such property here")
    reason = fault["msg"].removeprefix("Value error, ")
    if kind.endswith(("_type", "_parsing")):
        return refusal("InvalidRequestBody", ("PropertyName", path), ("Reason", reason))
    return invalid_property(path or _named_in(model, fault["input"], reason), fault["input"], reason)


def _json_path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


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
