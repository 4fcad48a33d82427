"""What follows the end of an attempt, and how failures are told."""

import errno

import pytest

from nodeagent.model.enums import DependencyAction, ErrorCategory, ExecutionResult, JobAction
from nodeagent.model.failure import FailureInfo
from nodeagent.model.job import JobCreate
from nodeagent.model.protocol import Outcome, StopReason
from nodeagent.model.task import (
    ExitCodeMapping,
    ExitCodeRangeMapping,
    ExitConditions,
    ExitOptions,
    TaskCreate,
    TaskExecutionInfo,
)
from nodeagent.model.times import utc_now
from nodeagent.rules import command_line, dependencies, exit_conditions, failures, supported
from nodeagent.rules.retry import Next, after_completed

OK = ExecutionResult.SUCCESS
FAILED = ExecutionResult.FAILURE
DISABLE = ExitOptions(job_action=JobAction.DISABLE)
SATISFY = ExitOptions(dependency_action=DependencyAction.SATISFY)
TERMINATE = ExitOptions(job_action=JobAction.TERMINATE)


@pytest.mark.parametrize(
    ("exit_code", "reason", "retries", "limit", "expected"),
    [
        (0, None, 0, 3, Next.COMPLETE),
        (1, None, 0, 0, Next.COMPLETE),
        (1, None, 0, 1, Next.RETRY),
        (1, None, 1, 1, Next.COMPLETE),
        (-9, None, 0, 1, Next.RETRY),
        (1, None, 5000, -1, Next.RETRY),
        (None, None, 0, 3, Next.COMPLETE),
        (-15, StopReason.WALL_CLOCK, 0, 3, Next.COMPLETE),
        (-15, StopReason.USER_TERMINATE, 0, 3, Next.COMPLETE),
        (-15, StopReason.JOB_DISABLE_REQUEUE, 0, 0, Next.REQUEUE),
        (-15, StopReason.PREEMPTED, 0, 0, Next.RECOVER),
    ],
)
def test_what_follows_an_end(
    exit_code: int | None, reason: StopReason | None, retries: int, limit: int, expected: Next
) -> None:
    """Only the nonzero exit of a process that ended by itself is retried."""
    outcome = Outcome(
        result=OK if exit_code == 0 else FAILED, end_time=utc_now(), exit_code=exit_code, stop_reason=reason
    )
    assert expected is after_completed(outcome, retry_count=retries, max_task_retry_count=limit)


def test_a_failed_upload_after_success_is_not_retried() -> None:
    """Exit 0 with a failed upload completes as a failure."""
    outcome = Outcome(result=FAILED, end_time=utc_now(), exit_code=0)
    assert after_completed(outcome, retry_count=0, max_task_retry_count=5) is Next.COMPLETE


def test_launch_failures_tell_programs_from_permissions_and_disks() -> None:
    """ENOENT, EACCES and ENOSPC have codes of their own, with path, user and errno as details."""
    codes = {
        number: failures.launch_failure(number, path="/x", cwd="/w", user="u", hint="h").code
        for number in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOSPC)
    }
    assert list(codes.values()) == ["CommandProgramNotFound", "CommandLaunchFailed", "CommandLaunchFailed", "DiskFull"]
    details = failures.launch_failure(errno.EACCES, path="/x", cwd="/w", user="u").details
    assert {item.name: item.value for item in details} == {
        "Message": "Permission denied (EACCES)",
        "Path": "/x",
        "WorkingDirectory": "/w",
        "User": "u",
    }


@pytest.mark.parametrize("reason", list(StopReason))
def test_every_stop_reason_has_its_words(reason: StopReason) -> None:
    """Each reason is told with the additional code that names it."""
    failure = failures.task_ended(reason)
    assert failure.code == ("DiskFull" if "disk" in reason else "TaskEnded")
    assert {"Message", "AdditionalErrorCode", "StoppedBy"} == {item.name for item in failure.details}


def test_exit_conditions_go_from_code_to_range_to_class_to_default() -> None:
    """The exact code wins over ranges, both over `default`; `default` is never for exit 0."""
    conditions = ExitConditions(
        exit_codes=(ExitCodeMapping(code=3, exit_options=DISABLE),),
        exit_code_ranges=(ExitCodeRangeMapping(start=2, end=9, exit_options=SATISFY),),
        default=TERMINATE,
    )
    failure = failures.exit_code_failure(3)
    assert exit_conditions.options_for(conditions, exit_code=3, failure=failure) is DISABLE
    assert exit_conditions.options_for(conditions, exit_code=9, failure=failure) is SATISFY
    assert exit_conditions.options_for(conditions, exit_code=10, failure=failure) is TERMINATE
    assert exit_conditions.options_for(conditions, exit_code=0, failure=None) is None
    launch = failures.launch_failure(errno.ENOENT, path="x", cwd="w", user="u")
    assert exit_conditions.options_for(conditions, exit_code=None, failure=launch) is TERMINATE
    assert exit_conditions.job_action(None, result=FAILED) is JobAction.TERMINATE
    assert exit_conditions.job_action(None, result=OK) is JobAction.NONE


def test_a_task_that_was_ended_has_failed_whatever_its_process_said() -> None:
    """Its signal may be listed; an exit code of 0 after SIGTERM is no success, but one before a failed upload is."""
    conditions = ExitConditions(
        exit_codes=(
            ExitCodeMapping(code=-15, exit_options=DISABLE),
            ExitCodeMapping(code=0, exit_options=SATISFY),
        ),
        default=TERMINATE,
    )
    for reason in (StopReason.WALL_CLOCK, StopReason.DISK_PRESSURE):
        ended = failures.task_ended(reason)
        assert exit_conditions.options_for(conditions, exit_code=-15, failure=ended) is DISABLE
        assert exit_conditions.options_for(conditions, exit_code=0, failure=ended) is TERMINATE
        assert exit_conditions.options_for(conditions, exit_code=None, failure=ended) is TERMINATE
    upload = FailureInfo(category=ErrorCategory.USER_ERROR, code="FileUploadMiscError", message="m")
    assert exit_conditions.options_for(conditions, exit_code=0, failure=upload) is SATISFY


def test_a_success_or_what_the_exit_options_say_satisfies_dependents() -> None:
    """Without options, success satisfies and all else blocks."""
    assert dependencies.satisfies(TaskExecutionInfo(result=OK), None, None)
    assert not dependencies.satisfies(TaskExecutionInfo(result=FAILED), None, None)
    assert dependencies.satisfies(TaskExecutionInfo(result=FAILED), ExitConditions(default=SATISFY), SATISFY)
    blocks = ExitOptions(dependency_action=DependencyAction.BLOCK)
    assert not dependencies.satisfies(TaskExecutionInfo(result=OK), ExitConditions(default=blocks), blocks)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("/bin/sh -c 'echo $HOME && ls'", ["/bin/sh", "-c", "echo $HOME && ls"]),
        ("echo *.txt | cat > x", ["echo", "*.txt", "|", "cat", ">", "x"]),
        ('a "b c" d\\ e', ["a", "b c", "d e"]),
    ],
)
def test_command_lines_split_like_a_shell_and_do_nothing_else(text: str, arguments: list[str]) -> None:
    """Quotes and backslashes work; globs, pipes and variables stay text."""
    assert arguments == command_line.split(text)


@pytest.mark.parametrize("text", ["", "   ", "''", "echo 'x"])
def test_command_lines_without_a_program_are_refused(text: str) -> None:
    """Nothing to run, and unclosed quotes, are errors."""
    with pytest.raises(command_line.CommandLineError):
        command_line.split(text)


def test_what_is_not_built_is_refused_by_name() -> None:
    """A property of a later version is named, and a plain task passes."""
    plain = TaskCreate.model_validate({"id": "t", "commandLine": "x", "userIdentity": {"autoUser": {}}})
    assert supported.unsupported_task(plain) == []
    fancy = TaskCreate.model_validate(
        {
            "id": "t",
            "commandLine": "x",
            "containerSettings": {"imageName": "i"},
            "multiInstanceSettings": {"coordinationCommandLine": "c"},
        }
    )
    assert supported.unsupported_task(fancy) == ["containerSettings", "multiInstanceSettings"]


def test_what_is_not_built_is_refused_of_a_job_manager_too() -> None:
    """Its properties are those of a task, under its own name."""
    manager = {"id": "m", "commandLine": "x", "outputFiles": [], "containerSettings": {"imageName": "i"}}
    job = JobCreate.model_validate({"id": "j", "poolInfo": {"poolId": "p"}, "jobManagerTask": manager})
    assert supported.unsupported_job(job) == ["jobManagerTask.containerSettings"]
