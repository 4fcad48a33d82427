"""`nodeagent agent`: the agent of one node."""

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from nodeagent.agent.daemon import run_agent
from nodeagent.agent.settings import AgentSettings
from nodeagent.cli.exits import STATUS_HELP
from nodeagent.cli.options import FOLDER, common, log_settings, sources
from nodeagent.observe.log import configure


@click.command(epilog=STATUS_HELP, short_help="Run the agent of one node.")
@click.option("--service", help="URL of the service that gives this node its work.")
@click.option("--pool", help="Id of the pool that the node joins.")
@click.option("--node", help="Id of this node, unique in its pool.")
@click.option("--slots", type=int, help="Task slots; the number of cores if not given.")
@click.option("--state-dir", type=FOLDER, help="The agent's own folder; one agent at a time.")
@click.option("--root", type=FOLDER, help="AZ_BATCH_NODE_ROOT_DIR: where tasks live.")
@click.option(
    "--accounts", type=click.Choice(["auto", "uids", "none"]), help="Who tasks run as.  [default: auto: uids if root]"
)
@click.option("--node-key-file", type=click.Path(path_type=Path), help="File with the key of the service's nodes.")
@click.option(
    "--service-ca-file", type=click.Path(path_type=Path), help="Authorities (PEM) that an https service is signed by."
)
@click.option(
    "--exit-with-parent", is_flag=True, help="Stop when standard input ends (for programs that start agents)."
)
@common
def agent(
    config: Path | None,
    log_level: str | None,
    log_format: str | None,
    *,
    exit_with_parent: bool,
    **flags: Any,  # noqa: ANN401 - whatever types the options have
) -> None:
    """Run the agent of one node: it takes work from a service and runs it here.

    Stopping the agent (Ctrl-C, SIGTERM, even kill -9) leaves its tasks running; the next agent on the same folders
    takes them over.

    \b
    Examples:
      nodeagent agent --service http://10.0.0.5:8190 --node-key-file /etc/nodeagent/node.key
      nodeagent agent --pool render --node box-7 --slots 8
    """  # noqa: D301 - \b is click's mark for text that keeps its lines
    found = sources(config)
    section = found.section("agent", AgentSettings, flags)
    if "node_key_file" in flags and flags["node_key_file"] is not None:
        section = section.without("node_key")
    settings = section.build()
    secrets = [settings.node_key.get_secret_value()] if settings.node_key is not None else []
    configure(log_settings(found, log_level, log_format, "info"), secrets=secrets)
    if exit_with_parent:
        threading.Thread(target=_stop_at_end_of_input, name="parent watch", daemon=True).start()
    click.get_current_context().exit(asyncio.run(run_agent(settings)))


def _stop_at_end_of_input() -> None:
    """The parent holds the other end of our standard input for as long as it lives, however it ends."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
