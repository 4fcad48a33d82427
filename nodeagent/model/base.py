"""What every Batch model shares: frozen, camelCase on the wire, null is the same as absent."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

_NO_SCHEMAS = ("metadata", "config", "default", "expected", "members")


def _make_strict(schema: Any) -> None:  # noqa: ANN401 - a core schema is dicts and lists of many kinds
    """Mark the JSON types in a core schema; models within it have done so themselves."""
    if isinstance(schema, dict):
        # a dict without a kind holds the fields of a model by name, and a field may be called `type` or `metadata`
        kind = schema.get("type")
        if kind in ("int", "bool", "float"):
            schema["strict"] = True
        skipped = _NO_SCHEMAS if isinstance(kind, str) else ()
        for name, part in schema.items():
            if name not in skipped:
                _make_strict(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _make_strict(part)


class BatchModel(BaseModel):
    """A frozen model with the property names of the Batch REST API.

    Unknown properties are refused by name (silence about an unsupported property is a bug), and `null` is treated
    as absent, as the real service does (spec/rest.md §1.1). Numbers and booleans are taken as JSON has them: `"5"`
    and `5.0` are no whole numbers, `1` is not true. Times, durations and enumerations are text.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, frozen=True, extra="forbid"
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:  # noqa: ANN401 - pydantic hands over whatever arrived
        if isinstance(value, dict) and None in value.values():
            return {key: item for key, item in value.items() if item is not None}
        return value

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        """Make numbers and booleans strict, and nothing else: pydantic's strict mode would refuse enumerations."""
        schema = handler(source)
        _make_strict(schema)
        return schema

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form: camelCase names, times and durations as text, absent properties left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_json(self) -> str:
        """Return `to_wire` as JSON text."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse what `to_json` wrote. Raises pydantic.ValidationError."""
        return cls.model_validate_json(text)
