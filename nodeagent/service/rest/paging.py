"""Continuation of lists: a token that says the last id seen, and the link that carries it (spec/rest.md §4.4)."""

import base64
import binascii
from urllib.parse import quote

from nodeagent.service.rest.query import Query, bad_query_value

SKIP_PARAMETER = "$skiptoken"
_KEPT = ("maxresults", "$filter", "$select", "$expand", "recursive")


def encode_token(last: str) -> str:
    """Return a token of letters, digits, `-` and `_`: py 15 turns a `+` into a blank. Names may be any bytes."""
    return base64.urlsafe_b64encode(last.encode(errors="surrogateescape")).decode("ascii").rstrip("=")


def decode_token(query: Query, *, paths: bool = False) -> str | None:
    """Return the id after which the page starts, or None for the first page; `paths` need not be UTF-8."""
    token = query.get(SKIP_PARAMETER)
    if token is None:
        return None
    try:
        return base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode(
            errors="surrogateescape" if paths else "strict"
        )
    except (binascii.Error, UnicodeError, ValueError) as error:
        raise bad_query_value(SKIP_PARAMETER, token, "not a token that this service has given out") from error


def next_link(list_url: str, query: Query, last: str, skip_parameter: str = SKIP_PARAMETER) -> str:
    """Return the absolute link to the page after `last`; it keeps the api-version and the options of the request.

    `skip_parameter` is a spelling of `$skiptoken`: names have no case.
    """
    options = [("api-version", query.api_version)]
    options += [(name, value) for name in _KEPT if (value := query.get(name)) is not None]
    options.append((skip_parameter, encode_token(last)))
    # no blank may become a '+': some clients sign the link's parameters as they stand
    return list_url + "?" + "&".join(f"{name}={quote(value, safe='$:/,-')}" for name, value in options)
