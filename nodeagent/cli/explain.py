"""`nodeagent explain`: why a task, a job or a node is in its state."""

import asyncio
from collections.abc import Mapping
from typing import Any

import click
import orjson

from nodeagent.cli.exits import STATUS_HELP
from nodeagent.cli.service_options import with_service
from nodeagent.local.client import BatchClient


@click.command(epilog=STATUS_HELP, short_help="Say why a task, a job or a node is in its state.")
@click.argument("names", nargs=-1, required=True, metavar="JOB [TASK] | --node POOL NODE")
@click.option("--node", is_flag=True, help="Explain a node: the names are those of its pool and its own.")
@click.option("--json", "as_json", is_flag=True, help="Print the explanation as one JSON document.")
@with_service
def explain(names: tuple[str, ...], client: BatchClient, *, node: bool, as_json: bool) -> None:
    """Say why a task, a job or a node is in its state, and what would change it.

    The reasons of a task that waits are those that the scheduler had. Without further options it asks the
    `nodeagent up` of this machine.

    \b
    Examples:
      nodeagent explain myjob               what keeps the job from its end
      nodeagent explain myjob mytask        why the task waits, runs or failed
      nodeagent explain --node local node1  what the node runs, and why it gets nothing
    """  # noqa: D301 - \b is click's mark for text that keeps its lines
    path = _path(names, node=node)
    explanation = asyncio.run(_ask(client, path))
    click.echo(orjson.dumps(explanation, option=orjson.OPT_INDENT_2).decode() if as_json else _text(explanation))


def _path(names: tuple[str, ...], *, node: bool) -> tuple[str, ...]:
    if node:
        if len(names) != 2:
            raise click.UsageError("--node needs the name of a pool and the name of a node")
        return "pools", names[0], "nodes", names[1]
    if len(names) > 2:
        raise click.UsageError("give a job, or a job and a task")
    return ("jobs", names[0]) if len(names) == 1 else ("jobs", names[0], "tasks", names[1])


async def _ask(client: BatchClient, path: tuple[str, ...]) -> dict[str, Any]:
    async with client:
        return await client.explain(*path)


def _text(explanation: Mapping[str, Any]) -> str:
    lines = [f"{explanation['kind']} {explanation['id']}: {explanation['state']} since {explanation['since']}"]
    for reason in explanation["reasons"]:
        since = f" (since {reason['since']})" if "since" in reason else ""
        lines.append(f"  {reason['code']}: {reason['message']}{since}")
    changes = explanation.get("wouldChange", ())
    if changes:
        lines.append("What would change it:")
        lines += [f"  - {change}" for change in changes]
    return "\n".join(lines)
