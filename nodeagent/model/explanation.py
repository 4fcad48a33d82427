"""Why a task, a job or a node is in its state: the answer of `nodeagent explain` (docs/explain.md)."""

from typing import Literal

from nodeagent.model.base import BatchModel
from nodeagent.model.times import UtcTime


class Reason(BatchModel):
    """One reason: a code for programs, a sentence for people, since when it holds, and what it is about."""

    code: str
    message: str
    since: UtcTime | None = None
    subject: str | None = None
    """A node's id, `<job>/<task>`, a job's or a pool's id: the message says which."""


class Explanation(BatchModel):
    """Why something is in its state, most decisive reason first, and what would change it."""

    kind: Literal["task", "job", "node"]
    id: str
    """`<job>/<task>`, `<job>` or `<pool>/<node>`."""
    state: str
    since: UtcTime
    reasons: tuple[Reason, ...]
    would_change: tuple[str, ...] = ()
