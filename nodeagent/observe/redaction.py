"""Keep secrets out of everything that is written for people: logs, errors, reports (design.md §8, I7)."""

import re
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

MASK = "***"

_SECRET_NAME = re.compile(
    r"(?i)(?:^|[_-])(?:password|passwd|pwd|secret|token|sas|sig|authorization|credential|credentials"
    r"|(?:account|node|access|shared|private|storage|api)[_-]?key)$|^key$|^(?:account|node|access)Key$"
)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # SAS signatures, plain or percent-encoded inside another URL.
    (re.compile(r"(?i)((?:\b|%3f|%26)sig(?:=|%3d))[^&\s\"'<>;,)\]}]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b(SharedKey(?:Lite)?\s+[^\s:]+:)\s*[A-Za-z0-9+/_=-]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b(Bearer\s+)[A-Za-z0-9._~+/=-]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b(Basic\s+)[A-Za-z0-9+/]{8,}={0,2}"), rf"\1{MASK}"),
    # Connection strings and key-value text: AccountKey=…;  password: …  "password": "…"
    (
        re.compile(
            r"(?i)((?:\b|_)(?:account[_-]?key|access[_-]?key|node[_-]?key|shared[_-]?access[_-]?signature|password|passwd"
            r"|pwd|client[_-]?secret|secret|token)\b[\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s\"'&;,})\]]+)"
        ),
        rf"\1{MASK}",
    ),
    # The password of a URL's user.
    (re.compile(r"([a-z][a-z0-9+.-]*://[^/\s:@]+:)[^/\s@]+@"), rf"\1{MASK}@"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"), MASK),
    # The token of a task.
    (re.compile(r"\bnat1\.[0-9A-Za-z_-]+\.[A-Za-z0-9_-]{43}"), MASK),
    # A bare account key: 64 bytes of base64.
    (re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{86}=="), MASK),
)


class Redactor:
    """Removes secrets from text and from structured values.

    `known` are exact secrets of this process (its account key, its node key): they are removed wherever they
    occur, also where no pattern would recognise them. Secrets shorter than 6 characters are not searched for,
    because they would blank out innocent text.
    """

    def __init__(self, known: Sequence[str] = ()) -> None:
        self._known = sorted({secret for secret in known if len(secret) >= 6}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """Return `text` with every recognised secret replaced by `***`."""
        for secret in self._known:
            text = text.replace(secret, MASK)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text

    def value(self, value: object, name: str = "") -> object:
        """Return `value` without secrets; what stands under a secret's name (`password`, `node_key`) goes as a whole.

        Mappings and sequences become plain dicts and lists; numbers, booleans and None stay as they are.
        """
        if name and value is not None and _SECRET_NAME.search(name):
            return MASK
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, Mapping):
            return {str(key): self.value(item, str(key)) for key, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.value(item) for item in value]
        return self.text(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        """Be a structlog processor."""
        return {key: self.value(item, key) for key, item in event.items()}
