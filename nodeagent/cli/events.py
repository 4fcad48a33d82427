"""`nodeagent events`: the event stream of a running service."""

import asyncio

import click
import orjson

from nodeagent.cli.exits import STATUS_HELP
from nodeagent.cli.service_options import with_service
from nodeagent.local.client import BatchClient


@click.command(epilog=STATUS_HELP, short_help="Print the events of a running service.")
@click.option("--follow", "-f", is_flag=True, help="Go on with new events until Ctrl-C.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Begin behind the event of this number.")
@with_service
def events(client: BatchClient, after: int, *, follow: bool) -> None:
    """Print the diagnostic events of a service, one JSON object a line.

    Without further options it asks the `nodeagent up` of this machine.

    \b
    Examples:
      nodeagent events
      nodeagent events --follow | jq -r '.operationName + " " + .properties.id'
    """  # noqa: D301 - \b is click's mark for text that keeps its lines
    asyncio.run(_print(client, after, follow=follow))


async def _print(client: BatchClient, after: int, *, follow: bool) -> None:
    async with client:
        async for event in client.events(after=after, follow=follow):
            click.echo(orjson.dumps(event).decode())
