"""Continuation of lists: a token that says the last id seen, and the link that carries it (spec/rest.md §4.4).

A token holds all that the next page needs, so it outlives a restart, and what is added or deleted meanwhile. It starts
with a check sum over the kind of list: one that was cut, made up or taken from another list is refused, not read as a
place in this one. It is no secret and no proof: whoever may read the list may read all of it.
"""

import base64
import binascii
import hashlib
from urllib.parse import quote

from nodeagent.service.errors import BatchError
from nodeagent.service.rest.query import Query, bad_query_value

SKIP_PARAMETER = "$skiptoken"
_KEPT = ("maxresults", "$filter", "$select", "$expand", "recursive")
_CHECK_BYTES = 6
_VERSION = b"1"
"""Changes with the form of tokens: older ones are refused then, and clients begin anew."""


def encode_token(kind: str, last: str) -> str:
    """Return a token of letters, digits, `-` and `_`: py 15 turns a `+` into a blank. Names may be any bytes.

    `kind` is the list's fragment of `odata.metadata`, such as `tasks`.
    """
    content = last.encode(errors="surrogateescape")
    return base64.urlsafe_b64encode(_check(kind, content) + content).decode("ascii").rstrip("=")


def decode_token(kind: str, query: Query, *, paths: bool = False) -> str | None:
    """Return the id after which the page starts, or None for the first page; `paths` need not be UTF-8.

    Raises BatchError 400 `InvalidQueryParameterValue` for what `encode_token` has not made for this kind of list.
    """
    token = query.get(SKIP_PARAMETER)
    if token is None:
        return None
    try:
        found = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        check, content = found[:_CHECK_BYTES], found[_CHECK_BYTES:]
        last = content.decode(errors="surrogateescape" if paths else "strict")
    except (binascii.Error, UnicodeError, ValueError) as error:
        raise _foreign(token) from error
    if check != _check(kind, content):
        raise _foreign(token)
    return last


def _check(kind: str, content: bytes) -> bytes:
    return hashlib.blake2s(_VERSION + kind.encode() + b"\0" + content, digest_size=_CHECK_BYTES).digest()


def _foreign(token: str) -> BatchError:
    return bad_query_value(SKIP_PARAMETER, token, "not a token that this service has given out for this list")


def next_link(kind: str, list_url: str, query: Query, last: str) -> str:
    """Return the absolute link to the page after `last`; it keeps the api-version and the options of the request.

    `kind` is that of `encode_token`.
    """
    options = [("api-version", query.api_version)]
    options += [(name, value) for name in _KEPT if (value := query.get(name)) is not None]
    options.append((SKIP_PARAMETER, encode_token(kind, last)))
    # no blank may become a '+': some clients sign the link's parameters as they stand
    return list_url + "?" + "&".join(f"{name}={quote(value, safe='$:/,-')}" for name, value in options)
