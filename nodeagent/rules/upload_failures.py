"""What a failed upload is called: the failure codes of spec/node.md §5."""

from collections.abc import Sequence

from nodeagent.model.base import BatchModel
from nodeagent.model.failure import FailureInfo
from nodeagent.rules.failures import failure_of

_MOST_FILES = 5
"""So many files are told in the failure's details; all of them are in fileuploaderr.txt."""
_NOT_PUBLIC = "PublicAccessNotPermitted"
_SLOW_CODES = frozenset({"OperationTimedOut", "ServerBusy"})


class UploadProblem(BatchModel):
    """Why one file was not uploaded. No field holds a secret."""

    message: str
    status: int | None = None
    """Of HTTP, if there was an answer."""
    error_code: str | None = None
    """Of the storage, e.g. `AuthorizationPermissionMismatch`."""
    request_id: str | None = None
    timed_out: bool = False
    denied: bool = False
    """There is no token of the identity that the rule names."""
    attempts: int = 0
    """How often requests were made; 0 if none was, or if it is not for them that it failed."""

    @property
    def code(self) -> str:
        """The failure code of the task."""
        if self.denied or self.status in (401, 403) or self.error_code == _NOT_PUBLIC:
            return "FileUploadAccessDenied"
        if self.status == 404:
            return "FileUploadContainerNotFound"
        if self.status in (409, 412):
            return "FileUploadConflict"
        if self.timed_out or self.status in (408, 504) or self.error_code in _SLOW_CODES:
            return "FileUploadTimedOut"
        return "FileUploadMiscError"

    @property
    def is_unreachable(self) -> bool:
        """No answer, none but that it can't, or no token to ask with: another file would meet the same."""
        return self.denied or (self.attempts > 0 and (self.status is None or self.status >= 500))

    def text(self) -> str:
        """Return the whole of it as one line."""
        facts = [
            f"status {self.status}" if self.status else None,
            self.error_code,
            f"request {self.request_id}" if self.request_id else None,
            f"{self.attempts} attempts" if self.attempts > 1 else "1 attempt" if self.attempts else None,
        ]
        shown = ", ".join(fact for fact in facts if fact)
        return f"{self.message} ({shown})" if shown else self.message


def upload_failure(failed: Sequence[tuple[str, UploadProblem]], total: int) -> FailureInfo | None:
    """Return the task's failure: what could not be uploaded (a path or a pattern) and why, the first gives the code.

    `total` counts what was to be uploaded. None if nothing failed.
    """
    if not failed:
        return None
    path, first = failed[0]
    files = (
        (f"File{number}", f"{path}: {problem.text()}")
        for number, (path, problem) in enumerate(failed[:_MOST_FILES], start=1)
    )
    return failure_of(
        first.code,
        ("Message", f"{path}: {first.message}"),
        ("Failed", f"{len(failed)} of {total} files"),
        ("HttpStatus", None if first.status is None else str(first.status)),
        ("StorageErrorCode", first.error_code),
        ("RequestId", first.request_id),
        ("Attempts", str(first.attempts) if first.attempts else None),
        *files,
    )
