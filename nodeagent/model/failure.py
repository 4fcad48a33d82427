"""`failureInfo`: what went wrong with an execution (spec/node.md §13)."""

from nodeagent.model.base import BatchModel
from nodeagent.model.enums import ErrorCategory
from nodeagent.model.values import NameValuePair


class FailureInfo(BatchModel):
    """Why a task, preparation, release or start task failed; `details` is always an array on the wire."""

    category: ErrorCategory
    code: str
    message: str
    details: tuple[NameValuePair, ...] = ()
