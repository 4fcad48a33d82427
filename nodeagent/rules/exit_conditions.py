"""Which exit options apply to the end of a task (spec/node.md §9, spec/rest.md §3.3.1)."""

from collections.abc import Iterator
from dataclasses import dataclass

from nodeagent.model.enums import ExecutionResult, JobAction, OnTaskFailure
from nodeagent.model.failure import FailureInfo
from nodeagent.model.task import ExitConditions, ExitOptions
from nodeagent.rules.failures import DISK_FULL

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

    `default` never covers an exit code of 0 that is not listed. A listed exit code goes before a failed upload. A
    task that was ended has failed whatever its process said, so an exit code of 0 does not count.
    """
    if conditions is None:
        return None
    denied = exit_code == 0 and failure is not None and not is_upload_failure(failure)
    by_code = None if denied else _by_exit_code(conditions, exit_code)
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


@dataclass(frozen=True, slots=True)
class Misplaced:
    """An action that the task's job does not take: its JSON path, its value, and why."""

    path: str
    value: str
    reason: str


def misplaced_action(
    conditions: ExitConditions | None, *, on_task_failure: OnTaskFailure, uses_task_dependencies: bool
) -> Misplaced | None:
    """Return the first action that Batch refuses (spec/rest.md §7.3); None if all are in their place.

    A `jobAction` needs a job that performs it, a `dependencyAction` one that has dependencies.
    """
    performs = on_task_failure is OnTaskFailure.PERFORM_EXIT_OPTIONS_JOB_ACTION
    for path, options in _all_options(conditions):
        if options.job_action is not None and not performs:
            reason = "the job's onTaskFailure is noaction, so no job action may be given"
            return Misplaced(f"{path}.jobAction", options.job_action.value, reason)
        if options.dependency_action is not None and not uses_task_dependencies:
            reason = "the job's usesTaskDependencies is false, so no dependency action may be given"
            return Misplaced(f"{path}.dependencyAction", options.dependency_action.value, reason)
    return None


def _all_options(conditions: ExitConditions | None) -> Iterator[tuple[str, ExitOptions]]:
    if conditions is None:
        return
    for index, mapping in enumerate(conditions.exit_codes or ()):
        yield f"exitConditions.exitCodes[{index}].exitOptions", mapping.exit_options
    for index, span in enumerate(conditions.exit_code_ranges or ()):
        yield f"exitConditions.exitCodeRanges[{index}].exitOptions", span.exit_options
    named = {
        "preProcessingError": conditions.pre_processing_error,
        "fileUploadError": conditions.file_upload_error,
        "default": conditions.default,
    }
    for name, options in named.items():
        if options is not None:
            yield f"exitConditions.{name}", options
