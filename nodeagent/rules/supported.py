"""What this version does not do yet, refused by name: silence about a property would be a bug (design.md §7).

Every capability that is built removes its line here.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from nodeagent.model.enums import ElevationLevel
from nodeagent.model.job import JobCreate, JobManagerTask, JobPreparationTask, JobReleaseTask
from nodeagent.model.pool import PoolCreate, PoolPatch, StartTask
from nodeagent.model.task import TaskCreate

Check = Callable[[Any], bool]


def _present(value: object) -> bool:
    return value not in (None, (), [])


_ANY_TASK: dict[str, Check] = {
    "containerSettings": _present,
}
_TASK: dict[str, Check] = _ANY_TASK | {
    "multiInstanceSettings": _present,
}
_POOL: dict[str, Check] = {
    "mountConfiguration": _present,
    "enableInterNodeCommunication": bool,
}
_JOB: dict[str, Check] = {
    "networkConfiguration": _present,
}


def _refused(model: object, checks: dict[str, Check], prefix: str) -> list[str]:
    return [f"{prefix}{name}" for name, check in checks.items() if check(getattr(model, _snake(name), None))]


@cache
def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def unsupported_task(task: TaskCreate | JobManagerTask) -> list[str]:
    """Return the JSON paths of a task's properties that this version refuses."""
    return _refused(task, _TASK, "")


def unsupported_job(job: JobCreate) -> list[str]:
    """Return the JSON paths of a job's properties that this version refuses."""
    paths = _refused(job, _JOB, "")
    if job.pool_info.auto_pool_specification is not None:
        paths.append("poolInfo.autoPoolSpecification")
    special: dict[str, JobPreparationTask | JobReleaseTask | None] = {
        "jobPreparationTask": job.job_preparation_task,
        "jobReleaseTask": job.job_release_task,
    }
    if job.job_manager_task is not None:
        paths += _refused(job.job_manager_task, _TASK, "jobManagerTask.")
    for name, task in special.items():
        if task is not None:
            paths += _refused(task, _ANY_TASK, f"{name}.")
    return paths


def unsupported_pool(pool: PoolCreate | PoolPatch) -> list[str]:
    """Return the JSON paths of a pool's properties that this version refuses."""
    paths = _refused(pool, _POOL, "")
    for number, account in enumerate(pool.user_accounts or ()):
        where = f"userAccounts[{number}]"
        if account.windows_user_configuration is not None:
            paths.append(f"{where}.windowsUserConfiguration")
        linux = account.linux_user_configuration
        if linux is not None and linux.uid is not None and account.elevation_level is ElevationLevel.ADMIN:
            paths.append(f"{where}.linuxUserConfiguration.uid")  # an administrator is uid 0
    return paths


def unsupported_start_task(task: StartTask) -> list[str]:
    """Return the JSON paths of a start task's properties that this version refuses."""
    return _refused(task, _ANY_TASK, "startTask.")
