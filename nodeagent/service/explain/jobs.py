"""Why a job is in its state: what keeps it from going on, or from its end."""

from nodeagent.model.enums import JobState, OnAllTasksComplete
from nodeagent.model.explanation import Explanation
from nodeagent.model.protocol import AttemptKind
from nodeagent.rules.explain import Code, Finding, changes, count, finding, job_gate, shortened
from nodeagent.service.explain import tasks as tasks_explained
from nodeagent.service.lifecycle import jobs as lifecycle
from nodeagent.service.store import attempts, counts, lines, nodes, tasks
from nodeagent.service.store.attempts import TASK_KINDS, AttemptRow
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.jobs import JobRow

_ANY_SIZE = 1 << 30


def explain_job(tx: Transaction, job_id: str) -> Explanation:
    """Explain a job. Raises JobNotFound."""
    job = lifecycle.require(tx, job_id)
    found = _findings(tx, job)
    return Explanation(
        kind="job",
        id=job.id,
        state=job.state.value,
        since=job.state_time,
        reasons=tuple(item.reason for item in found),
        would_change=changes(found),
    )


def _findings(tx: Transaction, job: JobRow) -> list[Finding]:
    match job.state:
        case JobState.ACTIVE | JobState.ENABLING:
            return _active(tx, job)
        case JobState.COMPLETED:
            return [_ended(tx, job)]
        case JobState.DISABLED:
            return _gate(job)
        case JobState.DISABLING:
            return [*_gate(job), *_open_attempts(tx, job)]
        case _:
            found = [_why_it_ends(job), *_open_attempts(tx, job)]
            if len(found) == 1:
                found.append(finding(Code.REMOVING, "Nothing of it runs any more: its rows are being removed."))
            return found


def _gate(job: JobRow) -> list[Finding]:
    gate = job_gate(job.id, job.state, job.state_time)
    return [] if gate is None else [gate]


def _why_it_ends(job: JobRow) -> Finding:
    reason = f" ({job.terminate_reason})" if job.terminate_reason else ""
    text = f"Its end has begun{reason}; it is over when nothing of it runs on any node."
    return finding(Code.JOB_STATE, text, since=job.state_time, subject=job.id)


def _ended(tx: Transaction, job: JobRow) -> Finding:
    totals = counts.get(tx, job.num).tasks
    left = f", {totals.active + totals.running} never ran" if totals.active + totals.running else ""
    text = f"It has ended ({job.terminate_reason}): {totals.succeeded} succeeded, {totals.failed} failed{left}."
    return finding(Code.JOB_ENDED, text, since=job.ended)


def _active(tx: Transaction, job: JobRow) -> list[Finding]:
    totals = counts.get(tx, job.num)
    if totals.unfinished == 0:
        return [_all_complete(job)]
    waiting, in_line = lines.of_job(tx, job.num)
    parts = [
        f"{totals.tasks.running} at nodes",
        f"{in_line} in line",
        f"{waiting} waiting for other tasks",
    ]
    text = f"{count(totals.unfinished, 'task')} of it are not completed: {', '.join(parts)}."
    return [finding(Code.TASKS_OPEN, text), *_first_in_line(tx, job)]


def _first_in_line(tx: Transaction, job: JobRow) -> list[Finding]:
    """Explain the first task that could run, for all behind it; if there is none, the first that waits for others."""
    ready = tasks.ready(tx, job.num, max_slots=_ANY_SIZE, limit=1)
    first = ready[0] if ready else lines.first_waiting_for_others(tx, job.num)
    if first is None:
        return []
    name = f"{job.id}/{first.id}"
    text = f"The first that waits is task {first.id}; the next reasons are its own."
    head = finding(Code.FIRST_IN_LINE, text, since=first.state_time, subject=name)
    return [head, *tasks_explained.findings(tx, job, first, {})]


def _all_complete(job: JobRow) -> Finding:
    if job.spec.on_all_tasks_complete is OnAllTasksComplete.TERMINATE_JOB:
        return finding(Code.ALL_COMPLETE, "All its tasks are completed: it is about to end.")
    return finding(
        Code.ALL_COMPLETE,
        "All its tasks are completed, or it has none, and its onAllTasksComplete is noaction: it waits for more.",
        change=f"Add tasks, terminate job {job.id}, or set its onAllTasksComplete to terminatejob.",
    )


def _open_attempts(tx: Transaction, job: JobRow) -> list[Finding]:
    """Explain what of a job has not ended yet, and where."""
    live = attempts.live_of_job(tx, job.num)
    return shortened([_open(tx, attempt) for attempt in live], "attempt")


def _open(tx: Transaction, attempt: AttemptRow) -> Finding:
    node = nodes.by_num(tx, attempt.node_num)
    name = "a node that is gone" if node is None else f"node {node.id}"
    heard = "" if node is None else f"; the node was last heard of at {node.heartbeat:%Y-%m-%dT%H:%M:%SZ}"
    if attempt.kind in TASK_KINDS:
        code, what = Code.TASK_ENDING, f"Task {attempt.task_key} has not ended"
    elif attempt.kind is AttemptKind.JOB_PREPARATION:
        code, what = Code.PREPARATION_ENDING, "The job preparation task has not ended"
    else:
        code, what = Code.RELEASE_RUNNING, "The job release task has not ended"
    return finding(
        code,
        f"{what} on {name}{heard}.",
        since=attempt.start_time or attempt.assigned,
        subject=None if node is None else node.id,
        change="It ends; the lease of its node runs out; or the job is terminated or deleted with force=true.",
    )
