"""The query string of a request; names are matched without case (spec/rest.md §1.1)."""

from urllib.parse import unquote_plus

from nodeagent.service.errors import BatchError, refusal
from nodeagent.service.rest.versions import KNOWN_VERSIONS

MAX_RESULTS = 1000
"""Entries of a page, and the largest that `maxresults` may ask for."""

_KNOWN_NAMES = frozenset(
    {
        "api-version",
        "timeout",
        "maxresults",
        "$filter",
        "$select",
        "$expand",
        "$skiptoken",
        "recursive",
        "force",
        "starttime",
        "endtime",
    }
)


def bad_query_value(name: str, value: str, reason: str) -> BatchError:
    """Return the refusal of a query parameter, with the three values that clients show."""
    values = (("QueryParameterName", name), ("QueryParameterValue", value[:256]), ("Reason", reason))
    return refusal("InvalidQueryParameterValue", *values)


class Query:
    """The parameters of one request. A name that Batch does not have is refused, an empty value is an absent one."""

    def __init__(self, text: str) -> None:
        self._values: dict[str, str] = {}
        for part in text.split("&"):
            name, _, value = part.partition("=")
            if not name:
                continue
            known = unquote_plus(name).lower()
            if known not in _KNOWN_NAMES:
                text = "One of the query parameters specified in the request URI is not supported."
                values = (("QueryParameterName", unquote_plus(name)[:256]),)
                raise BatchError(400, "UnsupportedQueryParameter", text, values)
            if value:
                self._values[known] = unquote_plus(value)

    def get(self, name: str) -> str | None:
        """Return the decoded value; `name` in lower case."""
        return self._values.get(name)

    def with_value(self, name: str, value: str) -> "Query":
        """Return the same query with another value of a parameter; `name` in lower case."""
        other = Query("")
        other._values = self._values | {name: value}
        return other

    @property
    def api_version(self) -> str:
        """The api-version; raises BatchError if it is missing or unknown."""
        version = self.get("api-version")
        if version is None:
            text = "A query parameter that is mandatory for this request is not specified."
            raise BatchError(400, "MissingRequiredQueryParameter", text, (("QueryParameterName", "api-version"),))
        if version not in KNOWN_VERSIONS:
            text = "The api-version specified in the request URI is not supported."
            values = (("QueryParameterName", "api-version"), ("QueryParameterValue", version[:256]))
            raise BatchError(400, "UnsupportedRequestVersion", text, values)
        return version

    @property
    def max_results(self) -> int:
        """The page size asked for, 1 to 1000."""
        text = self.get("maxresults")
        if text is None:
            return MAX_RESULTS
        if not (text.isascii() and text.isdigit()):
            raise bad_query_value("maxresults", text, "maxresults must be a whole number from 1 to 1000")
        if not (len(text) <= 9 and 1 <= int(text) <= MAX_RESULTS):
            values = (("QueryParameterName", "maxresults"), ("QueryParameterValue", text[:256]))
            limits = (("MinimumAllowed", "1"), ("MaximumAllowed", str(MAX_RESULTS)))
            reason = "A query parameter specified in the request URI is outside the permissible range."
            raise BatchError(400, "OutOfRangeQueryParameterValue", reason, values + limits)
        return int(text)

    def flag(self, name: str) -> bool:
        """Return a boolean parameter; absent is false."""
        text = self.get(name)
        if text is None or text.lower() == "false":
            return False
        if text.lower() == "true":
            return True
        raise bad_query_value(name, text, f"{name} must be true or false")
