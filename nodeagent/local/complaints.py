"""Validation errors of the models, said so that the writer of a file knows what would be right."""

import difflib
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nodeagent.local.text_marks import Location

_FEW = 8


def explain(model: type[BaseModel], error: ValidationError) -> Iterator[tuple[Location, str]]:
    """Yield, for each error, where it is (JSON names) and a sentence that says what would be right."""
    for detail in error.errors(include_url=False):
        location = _json_location(detail["loc"])
        if detail["type"] == "extra_forbidden":
            yield location, _unknown(model, location)
        else:
            yield location, _sentence(detail)


_WANTED = {
    "string_type": "text (in quotes)",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping of properties",
    "model_attributes_type": "a mapping of properties",
    "dict_type": "a mapping of properties",
}


def _sentence(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    shown = "a value that is not shown" if _may_be_secret(detail["loc"]) else _shown(detail.get("input"))
    if kind == "missing":
        return "is required and missing"
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}, not {shown}"
    if kind == "string_pattern_mismatch" and "A-Za-z0-9_-" in str(context.get("pattern")):
        return f"{shown} is no id; an id has 1 to 64 letters, digits, '-' and '_'"
    if kind == "enum":
        return f"{shown} is none of {context['expected']}"
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    return f"{shown}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _unknown(model: type[BaseModel], location: Location) -> str:
    owner = _model_at(model, location[:-1])
    name, names = str(location[-1]), _names(owner) if owner is not None else []
    by_lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower().replace("_", ""), by_lower, n=1, cutoff=0.6)
    if close:
        return f"is no property here; did you mean '{by_lower[close[0]]}'?"
    if len(names) <= _FEW:
        return f"is no property here; there is {', '.join(names)}"
    return "is no property here; remove it"


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _may_be_secret(location: tuple[int | str, ...]) -> bool:
    """A URL may have a SAS in it, and what is logged of a run on a build server is read by many."""
    return any(str(step).lower().endswith(("url", "password", "key")) for step in location)


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _json_location(location: tuple[int | str, ...]) -> Location:
    """Return `location` without pydantic's own steps (validators, branches of unions): names and indices only."""
    return tuple(step for step in location if isinstance(step, int) or not step.startswith(("function-", "tagged-")))


def _model_at(model: type[BaseModel] | None, location: Location) -> type[BaseModel] | None:
    """Return the model whose properties stand at `location`; None where that is no model."""
    for step in location:
        if model is None:
            return None
        if isinstance(step, int):
            continue
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        field = fields.get(step) or model.model_fields.get(step)
        model = _model_in(field.annotation) if field is not None else None
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - annotations are anything
    parts = typing.get_args(annotation)
    if parts:
        return next((found for part in parts if (found := _model_in(part))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
