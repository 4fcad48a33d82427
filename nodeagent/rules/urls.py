"""How a URL may be shown: without what opens it (invariant I7)."""

from urllib.parse import urlsplit, urlunsplit


def shown(url: str) -> str:
    """Return a URL without its query (a SAS), its fragment and the user and password before its host."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "(not a URL)"
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
