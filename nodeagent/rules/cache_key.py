"""What makes two URLs ask for the same content: all but what opens it (a SAS)."""

from collections.abc import Sequence
from hashlib import blake2b
from urllib.parse import unquote, urlsplit, urlunsplit

SAS_PARAMETERS = frozenset(
    {
        *("sv", "sig", "se", "sp", "st", "sr", "spr", "sip", "si", "ss", "srt", "sdd", "tn"),
        *("skoid", "sktid", "skt", "ske", "sks", "skv", "saoid", "suoid", "scid", "sduoid", "skdutid", "ses"),
    }
)
"""Of account, service and user delegation SAS. `rscc`, `rsct` and the like are not: they change what is answered."""
_SIGNED = frozenset({"sv", "sig"})
"""Every SAS has both; without them `st` or `sp` may mean anything to its server."""


def content_url(url: str) -> str:
    """Return what two URLs of the same content have in common.

    The parameters of a SAS and the fragment are left out, the others are sorted by name, scheme and host are in lower
    case. A user and password before the host stay: nobody knows that other users see the same. So this is a secret
    like the URL itself; only `content_key` leaves this process. Raises ValueError for what is no URL.
    """
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    query = [part for part in parts.query.split("&") if part]
    if {_name(part) for part in query} >= _SIGNED:
        query = [part for part in query if _name(part) not in SAS_PARAMETERS]
    return urlunsplit((parts.scheme.lower(), user + at + host.lower(), parts.path, _sorted(query), ""))


def content_key(url: str) -> str:
    """Return a name for the content of a URL: a hash, from which nobody gets the URL back. Raises ValueError."""
    return blake2b(content_url(url).encode(errors="surrogatepass"), digest_size=20).hexdigest()


def _name(part: str) -> str:
    return unquote(part.partition("=")[0]).lower()


def _sorted(query: Sequence[str]) -> str:
    """By name only: the order of parameters of one name may mean something."""
    return "&".join(sorted(query, key=_name))
