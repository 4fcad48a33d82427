"""What every Batch model shares: frozen, camelCase on the wire, null is the same as absent."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel


class BatchModel(BaseModel):
    """A frozen model with the property names of the Batch REST API.

    Unknown properties are refused by name (silence about an unsupported property is a bug), and `null` is treated
    as absent, as the real service does (spec/rest.md §1.1).
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
