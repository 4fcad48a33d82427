"""SharedKey signatures of requests to the Batch REST API (spec/rest.md §6.1). Pure."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

_SIGNED = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)


def authorization(account: str, key: str, method: str, url: str, headers: Mapping[str, str]) -> str:
    """Return the value of `Authorization` for a request exactly as it will be sent.

    `url` is percent-encoded; `headers` must hold `ocp-date` or `Date`, and `Content-Length` where it is sent.
    Raises ValueError if `key` is not base64.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    parts = urlsplit(url)
    query = sorted(parse_qsl(parts.query, keep_blank_values=False))
    text = "\n".join(
        (
            method,
            *(lowered.get(name, "") for name in _SIGNED),
            *(f"{name}:{lowered[name]}" for name in sorted(lowered) if name.startswith("ocp-")),
            f"/{account}{parts.path}" + "".join(f"\n{name}:{value}" for name, value in query),
        )
    )
    try:
        secret = base64.b64decode(key, validate=True)
    except binascii.Error:
        raise ValueError("the account key is not base64") from None
    digest = hmac.new(secret, text.encode(), hashlib.sha256).digest()
    return f"SharedKey {account}:{base64.b64encode(digest).decode()}"
