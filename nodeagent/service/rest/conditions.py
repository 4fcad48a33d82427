"""The four conditional headers (spec/rest.md §5.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from nodeagent.service.errors import BatchError

_HEADERS = ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since")


@dataclass(frozen=True, slots=True)
class Condition:
    """What the caller demands of the resource: one header, or nothing."""

    header: str | None = None
    value: str = ""
    reads: bool = False
    """GET and HEAD answer 304 where another verb answers 412."""

    def check(self, etag: str | None, last_modified: datetime) -> None:
        """Raise BatchError 304 or 412 `ConditionNotMet` unless the existing resource meets the condition."""
        if self.header is None:
            return
        modified = last_modified.replace(microsecond=0)
        match self.header:
            case "if-match":
                met, unmet_status = self._names(etag), 412
            case "if-none-match":
                met, unmet_status = not self._names(etag), 304 if self.reads else 412
            case "if-modified-since":
                met, unmet_status = modified > _date(self.header, self.value), 304 if self.reads else 412
            case _:
                met, unmet_status = modified <= _date(self.header, self.value), 412
        if not met:
            raise BatchError(unmet_status, "ConditionNotMet")

    def _names(self, etag: str | None) -> bool:
        return any(tag in ("*", etag) for tag in map(_bare, self.value.split(",")))


def parse_condition(method: str, headers: Mapping[str, str]) -> Condition:
    """Read the condition from headers with lower-case names. Raises BatchError if there are several, or a bad date."""
    given = [name for name in _HEADERS if headers.get(name)]
    if not given:
        return Condition()
    if len(given) > 1:
        text = "Only one of the conditional headers may be given."
        raise BatchError(400, "MultipleConditionHeadersNotSupported", text, (("HeaderName", ", ".join(given)),))
    condition = Condition(given[0], headers[given[0]], method in ("GET", "HEAD"))
    if given[0].endswith("since"):
        _date(given[0], condition.value)
    return condition


def _bare(tag: str) -> str:
    """Remove the quotes; py 15 sends ETags in quotes, all others bare."""
    return tag.strip().removeprefix("W/").strip('"')


def _date(header: str, text: str) -> datetime:
    try:
        value = parsedate_to_datetime(text)
    except (ValueError, OverflowError) as error:
        values = (("HeaderName", header), ("HeaderValue", text[:256]), ("Reason", "must be an RFC 1123 date"))
        text = "The value provided for one of the HTTP headers is not in the correct format."
        raise BatchError(400, "InvalidHeaderValue", text, values) from error
    return value if value.tzinfo else value.replace(tzinfo=UTC)
