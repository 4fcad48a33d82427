"""What a caller may do: the account everything, a task what concerns its own job (spec/rest.md §6.4)."""

from collections.abc import Mapping
from dataclasses import dataclass

from nodeagent.service.errors import BatchError, refusal
from nodeagent.service.store import attempts, jobs
from nodeagent.service.store.database import Transaction


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the account, or the task that an attempt executes.

    `kind` says for logs how it was known: `sharedKey`, `bearer`, `oidc`, `task` or `nobody` (`no_auth`).
    """

    attempt_id: str | None = None
    kind: str = "sharedKey"

    @property
    def is_task(self) -> bool:
        """Whether it is a task, by its token."""
        return self.attempt_id is not None


ACCOUNT = Caller()


def authorize_task(tx: Transaction, attempt_id: str, variables: Mapping[str, str]) -> None:
    """Raise BatchError 403 unless the path of a call leads to the job of an attempt that has not ended.

    `variables` are the decoded variable parts of the path: all paths of a job and of what it has name `job_id`.
    """
    attempt = attempts.get(tx, attempt_id)
    if attempt is None or not attempt.live:
        text = "Server failed to authenticate the request."
        detail = (("AuthenticationErrorDetail", "The task that the token was made for has ended."),)
        raise BatchError(403, "AuthenticationFailed", text, detail)
    job = jobs.by_num(tx, attempt.job_num)
    if job is None or variables.get("job_id", "").lower() != job.id.lower():
        raise not_permitted()


def not_permitted() -> BatchError:
    """Return the refusal of a call that a task may not make."""
    return refusal("InsufficientAccountPermissions", ("Reason", "The token of a task opens that task's job only."))
