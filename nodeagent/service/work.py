"""What a node is told to execute, merged from job and task. Pure."""

from collections.abc import Iterable

from nodeagent.model.enums import AccessScope
from nodeagent.model.job import JobCreate, JobManagerTask, JobPreparationTask, JobReleaseTask
from nodeagent.model.pool import LinuxUserConfiguration, StartTask, UserAccount
from nodeagent.model.protocol import NamedUser, Work, WorkConstraints
from nodeagent.model.task import TaskConstraints, TaskCreate
from nodeagent.model.times import UNLIMITED
from nodeagent.model.values import DEFAULT_USER_IDENTITY, EnvironmentSetting

_NO_CONSTRAINTS = TaskConstraints()


def max_task_retry_count(job: JobCreate, task: TaskCreate) -> int:
    """Return the task's own limit of retries, or the one it inherits from its job; -1 is unlimited."""
    own = None if task.constraints is None else task.constraints.max_task_retry_count
    return job.constraints.max_task_retry_count if own is None else own


def of_task(job: JobCreate, task: TaskCreate) -> Work:
    """Return the work of a user or job manager task."""
    constraints = task.constraints or _NO_CONSTRAINTS
    return Work(
        command_line=task.command_line,
        environment_settings=_environment(job, task.environment_settings),
        constraints=WorkConstraints(
            max_wall_clock_time=constraints.max_wall_clock_time,
            retention_time=constraints.retention_time,
            max_task_retry_count=max_task_retry_count(job, task),
        ),
        user_identity=task.user_identity or DEFAULT_USER_IDENTITY,
        container_settings=task.container_settings,
        resource_files=task.resource_files or (),
        output_files=task.output_files or (),
        authentication_token="" if _has_token(task) else None,
    )


def _has_token(task: TaskCreate) -> bool:
    settings = task.authentication_token_settings
    return settings is not None and AccessScope.JOB in settings.access


def of_preparation(job: JobCreate, task: JobPreparationTask) -> Work:
    """Return the work of a job's preparation task."""
    return Work(
        command_line=task.command_line,
        environment_settings=_environment(job, task.environment_settings),
        constraints=WorkConstraints(
            max_wall_clock_time=task.constraints.max_wall_clock_time,
            retention_time=task.constraints.retention_time,
            max_task_retry_count=task.constraints.max_task_retry_count or 0,
        ),
        user_identity=task.user_identity,
        container_settings=task.container_settings,
        resource_files=task.resource_files or (),
        wait_for_success=task.wait_for_success,
    )


def of_release(job: JobCreate, task: JobReleaseTask) -> Work:
    """Return the work of a job's release task: it is never retried."""
    return Work(
        command_line=task.command_line,
        environment_settings=_environment(job, task.environment_settings),
        constraints=WorkConstraints(
            max_wall_clock_time=task.max_wall_clock_time, retention_time=task.retention_time, max_task_retry_count=0
        ),
        user_identity=task.user_identity,
        container_settings=task.container_settings,
        resource_files=task.resource_files or (),
    )


def of_start_task(task: StartTask) -> Work:
    """Return the work of a pool's start task: it has no limit of time, and its files are never cleaned up."""
    return Work(
        command_line=task.command_line,
        environment_settings=task.environment_settings or (),
        constraints=WorkConstraints(retention_time=UNLIMITED, max_task_retry_count=task.max_task_retry_count),
        user_identity=task.user_identity,
        container_settings=task.container_settings,
        resource_files=task.resource_files or (),
        wait_for_success=task.wait_for_success,
    )


def named_user(accounts: Iterable[UserAccount], name: str) -> NamedUser | None:
    """Return what a node is told of a user account of its pool: no password, no key."""
    for account in accounts:
        if account.name == name:
            linux = account.linux_user_configuration or LinuxUserConfiguration()
            return NamedUser(name=name, elevation_level=account.elevation_level, uid=linux.uid, gid=linux.gid)
    return None


def task_of_manager(manager: JobManagerTask) -> TaskCreate:
    """Return the job manager as the task that appears in its job's list."""
    return TaskCreate(
        id=manager.id,
        display_name=manager.display_name,
        command_line=manager.command_line,
        container_settings=manager.container_settings,
        resource_files=manager.resource_files,
        output_files=manager.output_files,
        environment_settings=manager.environment_settings,
        constraints=manager.constraints,
        required_slots=manager.required_slots,
        user_identity=manager.user_identity,
        application_package_references=manager.application_package_references,
        authentication_token_settings=manager.authentication_token_settings,
    )


def _environment(job: JobCreate, own: tuple[EnvironmentSetting, ...] | None) -> tuple[EnvironmentSetting, ...]:
    return (*(job.common_environment_settings or ()), *(own or ()))
