"""`nodeagent drain`: bring a node's work to an end before its machine is stopped (stopping the agent is no drain)."""

import asyncio
from collections.abc import Awaitable, Callable

import click

from nodeagent.cli.exits import STATUS_HELP
from nodeagent.cli.service_options import with_service
from nodeagent.local.client import BatchClient, ServiceError

LOOK_SECONDS = 0.5
"""How often the node is looked at: nothing tells when its last task has ended."""
_ALREADY = "NodeAlreadyInTargetSchedulingState"


@click.command(epilog=STATUS_HELP, short_help="Bring a node's work to an end.")
@click.argument("pool")
@click.argument("node")
@click.option("--requeue", "option", flag_value="requeue", help="End its tasks; they run again elsewhere.")
@click.option("--terminate", "option", flag_value="terminate", help="End its tasks for good.")
@click.option("--no-wait", is_flag=True, help="Return at once; the node is drained when its state is offline.")
@click.option("--undo", is_flag=True, help="Let the node take tasks again.")
@with_service
def drain(pool: str, node: str, option: str | None, client: BatchClient, *, no_wait: bool, undo: bool) -> None:
    """Give NODE of POOL no more tasks, and return when none of its tasks runs any more.

    Its tasks run to their end, unless --requeue or --terminate. The node takes no tasks until --undo, whatever
    happens to its agent or its machine.

    \b
    Examples:
      nodeagent drain render box-7 && ssh box-7 systemctl poweroff
      nodeagent drain render box-7 --requeue
      nodeagent drain render box-7 --undo
    """  # noqa: D301 - \b is click's mark for text that keeps its lines
    if undo:
        asyncio.run(_undo(client, pool, node))
        click.echo(f"{node} takes tasks again")
        return
    asyncio.run(_drain(client, pool, node, option or "taskcompletion", None if no_wait else click.echo))


async def _undo(client: BatchClient, pool: str, node: str) -> None:
    async with client:
        await _unless_already(client.enable_scheduling(pool, node))


async def _drain(client: BatchClient, pool: str, node: str, option: str, tell: Callable[[str], None] | None) -> None:
    async with client:
        await _unless_already(client.disable_scheduling(pool, node, option))
        if tell is None:
            return
        last = -1
        while True:
            found = await client.get_node(pool, node)
            running = int(found["runningTasksCount"])
            if running == 0 and found["state"] != "running":
                tell(f"{node} is drained ({found['state']})")
                return
            if running != last:
                tell(f"{node}: {running} {'task' if running == 1 else 'tasks'} left")
                last = running
            await asyncio.sleep(LOOK_SECONDS)


async def _unless_already(verb: Awaitable[None]) -> None:
    try:
        await verb
    except ServiceError as error:
        if error.code != _ALREADY:
            raise
