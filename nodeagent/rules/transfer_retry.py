"""When a request of a transfer is made again, and after which pause: one rule for all transfers (spec/node.md §4)."""

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

FIRST_PAUSE = 1.0
"""Seconds; the longest that the first pause can be."""
LONGEST_PAUSE = 60.0
"""Seconds that no pause of our own exceeds. What a server asks for may be longer."""
RETRIED_STATUSES = frozenset({408, 429})
"""Statuses below 500 that time may heal."""


class Trouble(StrEnum):
    """What went wrong with one request."""

    NAME = "name"
    """The name of the host could not be resolved."""
    CONNECTION = "connection"
    """No connection came about: refused, unreachable."""
    CERTIFICATE = "certificate"
    """The server's certificate is not trusted."""
    TLS = "tls"
    """Another fault of the encrypted connection."""
    RESET = "reset"
    """The connection was cut before there was an answer."""
    INCOMPLETE = "incomplete"
    """The content ended too early."""
    SILENCE = "silence"
    """No byte for too long."""
    STATUS = "status"
    """An answer, but not the content."""
    CHANGED = "changed"
    """The content is another one than that of which a part is here already."""
    CHECKSUM = "checksum"
    """The content is not what its checksum says."""
    ANSWER = "answer"
    """The answer breaks the rules of HTTP."""
    REDIRECT = "redirect"
    """The server sends us where we do not go."""
    ADDRESS = "address"
    """The URL is none that can be asked for."""
    IDENTITY = "identity"
    """There is no token of the identity."""


_HOPELESS = frozenset({Trouble.CERTIFICATE, Trouble.REDIRECT, Trouble.ADDRESS, Trouble.IDENTITY})


def may_help(trouble: Trouble, status: int | None = None) -> bool:
    """Tell whether the same request may go well another time; `status` is that of the answer, if there was one."""
    if trouble is Trouble.STATUS:
        return status is not None and (status in RETRIED_STATUSES or status >= 500)
    return trouble not in _HOPELESS


@dataclass(slots=True)
class Tries:
    """Counts tries that brought nothing, one after the other."""

    allowed: int
    """So many, and there is no further one."""
    failed: int = 0

    def failed_once(self, *, progress: bool) -> bool:
        """Count a try that failed and tell whether there is another one.

        `progress`: it brought bytes that need not be fetched again; then it does not count, and counting begins anew.
        """
        self.failed = 0 if progress else self.failed + 1
        return self.failed < self.allowed


def pause(failed: int, chance: float, retry_after: float | None = None) -> float:
    """Return the seconds to wait after so many failed tries (0: after one that brought something).

    Exponential with full jitter.

    `chance` is a random number from 0 to 1. What the server asks for (`retry_after`, seconds) comes on top, so that
    not all who were told the same come back at the same moment.
    """
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failed - 1, 16))
    return (retry_after or 0.0) + longest * chance


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a `Retry-After` header asks for, as a number or as a date; None if it says nothing."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        # More than a year is as good as never; a float cannot hold any number of digits.
        return float(text) if len(text) < 9 else 1e9
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - now).total_seconds())
