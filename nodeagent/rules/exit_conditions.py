"""Which exit options apply to the end of a task (spec/node.md §9, spec/rest.md §3.3.1)."""

from nodeagent.model.enums import ExecutionResult, JobAction
from nodeagent.model.failure import FailureInfo
from nodeagent.model.task import ExitConditions, ExitOptions
from nodeagent.rules.failures import DISK_FULL, TASK_ENDED

_UPLOAD_PREFIX = "FileUpload"
_PRE_PROCESSING_PREFIXES = ("Blob", "Resource", "Command", "Container", "ApplicationPackage")


def is_upload_failure(failure: FailureInfo) -> bool:
    """Tell whether output files could not be uploaded."""
    return failure.code.startswith(_UPLOAD_PREFIX)


def is_pre_processing_failure(failure: FailureInfo) -> bool:
    """Tell whether the failure came before the process was launched."""
    return failure.code == DISK_FULL or failure.code.startswith(_PRE_PROCESSING_PREFIXES)


def options_for(
    conditions: ExitConditions | None, *, exit_code: int | None, failure: FailureInfo | None
) -> ExitOptions | None:
    """Return the options that match: the exact code, then the ranges in order, then the class of error, then `default`.

    `default` never covers an exit code of 0 that is not listed. A listed exit code goes before a failed upload.
    """
    if conditions is None:
        return None
    by_code = _by_exit_code(conditions, exit_code) if failure is None or failure.code != TASK_ENDED else None
    if by_code is not None:
        return by_code
    if failure is None:
        return None
    if is_upload_failure(failure) and conditions.file_upload_error is not None:
        return conditions.file_upload_error
    if exit_code is None and is_pre_processing_failure(failure) and conditions.pre_processing_error is not None:
        return conditions.pre_processing_error
    return conditions.default


def _by_exit_code(conditions: ExitConditions, exit_code: int | None) -> ExitOptions | None:
    if exit_code is None:
        return None
    for mapping in conditions.exit_codes or ():
        if mapping.code == exit_code:
            return mapping.exit_options
    for span in conditions.exit_code_ranges or ():
        if span.start <= exit_code <= span.end:
            return span.exit_options
    return None


def job_action(options: ExitOptions | None, *, result: ExecutionResult) -> JobAction:
    """Return what the job does when its `onTaskFailure` is `performexitoptionsjobaction`."""
    if options is not None and options.job_action is not None:
        return options.job_action
    return JobAction.NONE if result is ExecutionResult.SUCCESS else JobAction.TERMINATE
