"""What the end of a task does to its job (spec/node.md §9, spec/rest.md §3.3.1)."""

from datetime import datetime

from nodeagent.model.enums import DisableTasks, ExecutionResult, JobAction, JobState, OnTaskFailure, TaskState
from nodeagent.model.protocol import AttemptKind
from nodeagent.rules.exit_conditions import job_action, options_for
from nodeagent.service.lifecycle import jobs
from nodeagent.service.store import tasks
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.tasks import TaskRow


def task_ended(tx: Transaction, job: JobRow, task_num: int, now: datetime) -> None:
    """Do what the end of a task does to its job; nothing if the task is going to run again.

    The job manager's end ends the job if it wants that; so may a failure (`onTaskFailure`), and the last task's end
    (`onAllTasksComplete`).
    """
    manager = job.spec.job_manager_task
    acts = job.spec.on_task_failure is OnTaskFailure.PERFORM_EXIT_OPTIONS_JOB_ACTION
    task = tasks.by_num(tx, task_num) if manager is not None or acts else None
    if task is not None and task.state is TaskState.COMPLETED:
        if task.kind is AttemptKind.JOB_MANAGER and manager is not None and manager.kill_job_on_completion:
            jobs.end_job(tx, job, jobs.JOB_MANAGER_COMPLETE, now)
        elif acts:
            _perform(tx, job, _action(task), now)
    jobs.settle(tx, job.num, now)


def _action(task: TaskRow) -> JobAction:
    execution = task.execution
    options = options_for(task.spec.exit_conditions, exit_code=execution.exit_code, failure=execution.failure_info)
    return job_action(options, result=execution.result or ExecutionResult.FAILURE)


def _perform(tx: Transaction, job: JobRow, action: JobAction, now: datetime) -> None:
    if action is JobAction.TERMINATE:
        jobs.end_job(tx, job, jobs.TASK_FAILED, now)
    elif action is JobAction.DISABLE and job.state is JobState.ACTIVE:
        jobs.disable_job(tx, job.id, DisableTasks.REQUEUE, now)
