"""`nodeagent run`: one job on this machine."""

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from nodeagent.cli.exits import STATUS_HELP, CommandError, Exit
from nodeagent.cli.interrupts import interrupts
from nodeagent.cli.live import Display
from nodeagent.cli.options import FOLDER, common, log_settings, sources
from nodeagent.cli.stack_plan import plan_of
from nodeagent.cli.summary import print_summary
from nodeagent.local.folders import make_folder, run_folder
from nodeagent.local.job_file import JobFile, JobFileError, load
from nodeagent.local.outcome import RunOutcome
from nodeagent.local.run import JobRun
from nodeagent.local.settings import LocalSettings, state_home
from nodeagent.local.stack import Plan, Stack
from nodeagent.model.times import utc_now
from nodeagent.observe.log import LogSettings, configure
from nodeagent.service.settings import ServiceSettings


@click.command(epilog=STATUS_HELP, short_help="Run one job on this machine.")
@click.argument("job", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as one JSON document; progress on stderr.")
@click.option("--pool", help="Id of the pool, if the job names none.  [default: local]")
@click.option("--nodes", type=int, help="Number of nodes.  [default: 1]")
@click.option("--slots", type=int, help="Task slots of each node.  [default: the number of cores]")
@click.option("--state-dir", type=FOLDER, help="Folder of this run.  [default: a new one below the state home]")
@click.option("--ephemeral", is_flag=True, default=None, help="Keep nothing.")
@click.option("--loose", is_flag=True, help="Ignore what this version does not support, with a warning.")
@common
def run(
    job: Path,
    config: Path | None,
    log_level: str | None,
    log_format: str | None,
    state_dir: Path | None,
    *,
    loose: bool,
    as_json: bool,
    **flags: Any,  # noqa: ANN401 - whatever types the options have
) -> None:
    """Run one job on this machine: preparation, tasks, release, and a table of what became of them.

    JOB is the body of the Batch REST call "add a job" with "tasks" beside it, as JSON or YAML; poolInfo may be left
    out. Each task finds the folder of JOB in NODEAGENT_JOB_DIR. Ctrl-C ends the job and lets its release run;
    Ctrl-C again kills everything at once.

    \b
    Examples:
      nodeagent run examples/stdlib-report/job.json
      nodeagent run job.yaml --slots 8 --json > outcome.json
    """  # noqa: D301 - \b is click's mark for text that keeps its lines
    found = sources(config)
    local = found.section("local", LocalSettings, flags).without("port", "tls", "no_auth", "trace_http").build(port=0)
    auto_storage = "auto_storage_url" in found.section("service", ServiceSettings).given
    job_file = _read(job, local.pool, loose=loose, auto_storage=auto_storage)
    local = local.model_copy(update={"pool": job_file.pool_id})
    log = log_settings(found, log_level, log_format, "warning")
    folder = state_dir or run_folder(state_home(), job_file.job.id, utc_now())
    plan = plan_of(found, local, log, state_dir=folder, loose=loose or None)
    with ExitStack() as exit_stack:
        _log_to_file(plan, log, exit_stack)
        display = Display(sys.stderr if as_json else sys.stdout)
        outcome = asyncio.run(_run(plan, job_file, display))
    if as_json:
        click.echo(outcome.model_dump_json(by_alias=True, indent=2))
    else:
        print_summary(outcome, sys.stdout)
    click.get_current_context().exit(_status(outcome))


def _read(job: Path, pool_id: str, *, loose: bool, auto_storage: bool) -> JobFile:
    try:
        job_file = load(job, pool_id=pool_id, loose=loose, auto_storage=auto_storage)
    except OSError as error:
        raise CommandError(f"{job}: cannot be read: {error.strerror}", Exit.USAGE) from error
    except JobFileError as error:
        # as compilers do it, so that editors find the places: no program's name before the file's
        click.echo(str(error), err=True)
        click.get_current_context().exit(Exit.USAGE)
    for warning in job_file.warnings:
        click.echo(f"nodeagent: warning: {warning}", err=True)
    return job_file.with_job_directory()


def _log_to_file(plan: Plan, log: LogSettings, exit_stack: ExitStack) -> None:
    """The terminal is for the run; what the service logs goes to a file beside its state."""
    make_folder(plan.state_dir, 0o700)
    stream = exit_stack.enter_context((plan.state_dir / "service.log").open("a", encoding="utf-8"))
    configure(log, stream, secrets=plan.service.secrets)


async def _run(plan: Plan, job_file: JobFile, display: Display) -> RunOutcome:
    """Run on a stack of its own. Raises CommandError if it was killed before there was an outcome."""
    stack = Stack(plan)
    job = JobRun(stack, job_file, display.tell)
    running = asyncio.create_task(_run_on(stack, job, display))

    def kill() -> None:
        click.echo("killing everything", err=True)
        stack.hurry()
        running.cancel()

    def interrupt() -> None:
        click.echo("ending the job; once more kills at once", err=True)
        if not job.interrupt():
            running.cancel()

    with interrupts(interrupt, kill):
        await asyncio.wait((running,))
    if running.cancelled():
        raise CommandError("killed; no process of the job is left", Exit.INTERRUPTED)
    return running.result()


async def _run_on(stack: Stack, job: JobRun, display: Display) -> RunOutcome:
    with display.showing(job.progress):
        async with stack:
            return await job.run()


def _status(outcome: RunOutcome) -> Exit:
    if outcome.interrupted:
        return Exit.INTERRUPTED
    return Exit.OK if outcome.succeeded else Exit.TASK_FAILED
