"""The end of a run, for a person: the table, what went wrong, and where the files are."""

import shutil
from pathlib import Path
from typing import TextIO

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nodeagent.local.outcome import Execution, RunOutcome

WHOLE_TABLE = 200
"""Up to so many tasks each has its row; of more, only those that did not simply succeed."""

STDERR_LINES = 10
STDOUT_LINES = 5
_WIDE = 400


def print_summary(outcome: RunOutcome, stream: TextIO) -> None:
    """Print what became of a run."""
    width = max(shutil.get_terminal_size().columns, 80) if stream.isatty() else _WIDE
    console = Console(file=stream, width=width, highlight=False, soft_wrap=True)
    with console.capture() as table:
        console.print(_table(outcome))
    click.echo("\n".join(line.rstrip() for line in table.get().splitlines()), file=stream)
    for failure in outcome.failures:
        _print_failure(console, failure)
    for release in outcome.release:
        if release.stdout_tail:
            click.echo(f"{release.id} on {release.node_id} says:", file=stream)
            for line in release.stdout_tail.splitlines()[-STDOUT_LINES:]:
                click.echo(f"  {line}", file=stream)
    _print_end(outcome, stream)


def _table(outcome: RunOutcome) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    several = len(outcome.nodes) > 1
    for name in ("task", "state", "exit code", "retries", "seconds", *(("node",) if several else ()), "files"):
        right = name in ("exit code", "retries", "seconds")
        table.add_column(name, justify="right" if right else "left", no_wrap=True, overflow="fold")
    shown = [task for task in outcome.tasks if len(outcome.tasks) <= WHOLE_TABLE or not _plain_success(task)]
    for row in (*outcome.preparation, *shown, *outcome.release):
        node = (row.node_id or "",) if several else ()
        table.add_row(*_cells(row), *node, _files(row, outcome))
    if len(shown) < len(outcome.tasks):
        table.add_row(f"... and {len(outcome.tasks) - len(shown)} tasks that succeeded at the first try")
    return table


def _plain_success(task: Execution) -> bool:
    return task.succeeded and task.retry_count == 0


def _cells(row: Execution) -> tuple[str | Text, ...]:
    state = row.result or row.state
    return (
        row.id,
        Text(state, style="green" if row.succeeded else "red" if row.failed else "yellow"),
        "" if row.exit_code is None else str(row.exit_code),
        str(row.retry_count),
        "" if row.duration_seconds is None else f"{row.duration_seconds:.2f}",
    )


def _files(row: Execution, outcome: RunOutcome) -> str:
    """Return the directory below the node's root, which is told once at the end."""
    if row.directory is None or row.node_id is None:
        return ""
    return str(Path(row.directory).relative_to(outcome.nodes[row.node_id]))


def _print_failure(console: Console, failure: Execution) -> None:
    info = failure.failure_info or {}
    console.print()
    console.print(Text(f"{failure.id} failed: {info.get('code', 'no failureInfo')}", style="red"))
    if info:
        console.print(Text(f"  {info['category']}: {info['message']}"))
    for detail in info.get("details", ()):
        if detail["name"] != "StandardError":  # shown below, from the file itself
            console.print(Text(f"  {detail['name']}: {detail['value']}"))
    if failure.stderr_tail:
        console.print(Text("  last lines of stderr.txt:"))
        for line in failure.stderr_tail.splitlines()[-STDERR_LINES:]:
            console.print(Text(f"    {line}"))


def _print_end(outcome: RunOutcome, stream: TextIO) -> None:
    good = sum(task.succeeded for task in outcome.tasks)
    retried = sum(task.retry_count > 0 for task in outcome.tasks)
    ending = ", interrupted" if outcome.interrupted else ""
    click.echo(file=stream)
    click.echo(
        f"job {outcome.job_id}: {good} of {len(outcome.tasks)} tasks succeeded, {retried} after a retry, "
        f"in {outcome.elapsed_seconds:.1f} s{ending}",
        file=stream,
    )
    if outcome.problem is not None:
        click.echo(f"problem: {outcome.problem}", file=stream)
    if not outcome.kept:
        click.echo("files: removed (--ephemeral)", file=stream)
        return
    for node_id, root in outcome.nodes.items():
        click.echo(f"files of {node_id}: {root}", file=stream)
