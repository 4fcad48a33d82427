"""`nodeagent service`: the service alone."""

import asyncio
from pathlib import Path
from typing import Any

import click

from nodeagent.cli.exits import STATUS_HELP
from nodeagent.cli.interrupts import interrupts
from nodeagent.cli.options import FOLDER, common, log_settings, sources
from nodeagent.observe.log import configure
from nodeagent.service.app import Service
from nodeagent.service.settings import ServiceSettings


@click.command(epilog=STATUS_HELP, short_help="Run the service alone.")
@click.option("--host", help="Address to listen on; loopback unless other machines shall reach it.")
@click.option("--port", type=int, help="TCP port; 0 takes a free one.")
@click.option("--account", help="Name of the Batch account.")
@click.option("--key", help="Key of the account, base64. NODEAGENT_SERVICE_KEY keeps it out of the process list.")
@click.option("--state-dir", type=FOLDER, help="Folder of everything that the service keeps.")
@click.option("--node-key-file", type=click.Path(path_type=Path), help="File with the key that agents show.")
@click.option("--tls", is_flag=True, default=None, help="Serve HTTPS with a certificate made here.")
@click.option("--tls-certificate", type=click.Path(path_type=Path), help="Serve HTTPS with this chain (PEM).")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Key (PEM) of --tls-certificate.")
@click.option("--no-auth", is_flag=True, default=None, help="Ask clients for nothing; only on loopback.")
@click.option("--trace-http", is_flag=True, default=None, help="Log one line per request.")
@click.option("--ephemeral", is_flag=True, default=None, help="Keep nothing.")
@click.option("--loose", is_flag=True, default=None, help="Log unsupported properties instead of refusing them.")
@common
def service(config: Path | None, log_level: str | None, log_format: str | None, **flags: Any) -> None:  # noqa: ANN401
    """Run the Batch service alone; agents on this or other machines join it.

    Ctrl-C or SIGTERM ends it. Agents go on with their tasks, and reach it again when it is back.

    \b
    Examples:
      NODEAGENT_SERVICE_KEY=... nodeagent service --account mybatch --state-dir /var/lib/nodeagent/service
      nodeagent service --host 10.0.0.5 --config /etc/nodeagent/nodeagent.toml
    """  # noqa: D301 - \b is click's mark for text that keeps its lines
    found = sources(config)
    settings = found.section("service", ServiceSettings, flags).build()
    configure(log_settings(found, log_level, log_format, "info"), secrets=settings.secrets)
    asyncio.run(_serve(settings))


async def _serve(settings: ServiceSettings) -> None:
    serving = asyncio.create_task(Service(settings).run())
    stopped = asyncio.Event()
    with interrupts(stopped.set, serving.cancel):
        waiting = asyncio.create_task(stopped.wait())
        await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not serving.done():
            serving.cancel()
            await asyncio.wait((serving,))
    if not serving.cancelled():
        serving.result()
