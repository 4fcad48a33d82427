"""`nodeagent events`: the event stream of a running service."""

import asyncio
from pathlib import Path

import click
import orjson

from nodeagent.cli.exits import STATUS_HELP
from nodeagent.cli.options import sources
from nodeagent.local.client import BatchClient
from nodeagent.local.settings import LocalSettings


@click.command(epilog=STATUS_HELP, short_help="Print the events of a running service.")
@click.option("--follow", "-f", is_flag=True, help="Go on with new events until Ctrl-C.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Begin behind the event of this number.")
@click.option("--endpoint", envvar="AZURE_BATCH_ENDPOINT", help="URL of the service; else $AZURE_BATCH_ENDPOINT.")
@click.option("--account", envvar="AZURE_BATCH_ACCOUNT", help="Name of the account; else $AZURE_BATCH_ACCOUNT.")
@click.option("--key", envvar="AZURE_BATCH_ACCESS_KEY", help="Key of the account; else $AZURE_BATCH_ACCESS_KEY.")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings file (TOML).")
def events(
    endpoint: str | None, account: str | None, key: str | None, config: Path | None, after: int, *, follow: bool
) -> None:
    """Print the diagnostic events of a service, one JSON object a line.

    Without further options it asks the `nodeagent up` of this machine.

    \b
    Examples:
      nodeagent events
      nodeagent events --follow | jq -r '.operationName + " " + .properties.id'
    """  # noqa: D301 - \b is click's mark for text that keeps its lines
    local = sources(config).section("local", LocalSettings, {"account": account, "key": key}).build()
    client = BatchClient(endpoint or f"http://127.0.0.1:{local.port}", local.account, local.key.get_secret_value())
    asyncio.run(_print(client, after, follow=follow))


async def _print(client: BatchClient, after: int, *, follow: bool) -> None:
    async with client:
        async for event in client.events(after=after, follow=follow):
            click.echo(orjson.dumps(event).decode())
