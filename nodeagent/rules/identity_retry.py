"""When the endpoint of managed identities is asked again (the instance metadata service's documented advice)."""

UPDATING = 410
"""The endpoint is being updated: it is back within 70 seconds."""
UPDATING_SECONDS = 75.0
UPDATING_PAUSE = 10.0
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 16.0
TRIES = 5
"""How often a token is asked for, apart from the time of an update."""
_PASSING = frozenset({404, 408, UPDATING, 429})


def passes(status: int | None) -> bool:
    """Whether asking again may help: `status` is that of the answer, None if there was none.

    404 is what the endpoint gives while it is updated; 400, 401 and 403 are errors of the request.
    """
    return status is None or status in _PASSING or status >= 500


def pause(status: int | None, tries: int, seconds: float, share: float) -> float | None:
    """Return the seconds until the next try, None to give up.

    `tries` have been made in `seconds`; `share` (0 to 1) is chance, so that the nodes of a pool do not ask together.
    """
    if not passes(status):
        return None
    if status == UPDATING:
        return UPDATING_PAUSE * (0.5 + share / 2) if seconds < UPDATING_SECONDS else None
    if tries >= TRIES:
        return None
    longest: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2**tries)
    return longest / 2 + longest / 2 * share
