"""What a SharedKey signature signs, in every form that real clients use (spec/rest.md §6.1, §6.2)."""

import base64
import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from urllib.parse import unquote, unquote_plus

_SIGNED_HEADERS = (
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


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """The parts of a request that are signed: verb, path and query as they stood in the request line, headers.

    `headers` has lower-case names.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


def canonical_strings(request: SignedRequest, account: str) -> Iterator[str]:
    """Yield the string to sign in each of the forms that clients are known to use, the commonest first."""
    prefix = f"{request.method}\n"
    ocp = "".join(f"{name}:{value}\n" for name, value in sorted(request.headers.items()) if name.startswith("ocp-"))
    lengths = _unique((request.headers.get("content-length", ""), "", "0"))
    dates = _unique((request.headers.get("date", ""), ""))
    resources = [
        f"{name}{request.path}{parameters}"
        for parameters, name in product(_query_forms(request.query), _unique((account, account.lower())))
    ]
    for length, date, resource in product(lengths, dates, resources):
        replaced = {"content-length": length, "date": date}
        headers = "\n".join(replaced.get(name, request.headers.get(name, "")) for name in _SIGNED_HEADERS)
        yield f"{prefix}{headers}\n{ocp}/{resource}"


def signature(text: str, key: bytes) -> str:
    """Return the base64 HMAC-SHA256 of `text`; bytes of the request line that are no UTF-8 are signed as they came."""
    digest = hmac.new(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).digest()
    return base64.b64encode(digest).decode("ascii")


def is_signed(request: SignedRequest, account: str, key: bytes, given: str) -> bool:
    """Tell whether `given` is a signature of `request` by the holder of `key`; compares in constant time."""
    claimed = given.encode("utf-8", "replace")
    return any(
        hmac.compare_digest(signature(text, key).encode("ascii"), claimed)
        for text in canonical_strings(request, account)
    )


def _unique(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _query_forms(query: str) -> list[str]:
    pairs = [part.partition("=") for part in query.split("&") if part]
    decoders = (unquote_plus, unquote) if "+" in query else (unquote_plus,)
    forms = []
    for decode, lower, keep_blank in product(decoders, (False, True), (False, True)):
        joined: dict[str, list[str]] = {}
        for name, _, value in pairs:
            if not value and not keep_blank:
                continue
            decoded = decode(name)
            joined.setdefault(decoded.lower() if lower else decoded, []).append(decode(value))
        # by code points, or as JavaScript's localeCompare orders letters
        forms += [
            "".join(f"\n{name}:{','.join(joined[name])}" for name in names)
            for names in (sorted(joined), sorted(joined, key=str.lower))
        ]
    return _unique(forms)
