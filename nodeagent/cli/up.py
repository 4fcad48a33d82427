"""`nodeagent up`: the Batch REST API on this machine."""

import asyncio
from pathlib import Path
from typing import Any

import click
import orjson

import nodeagent
from nodeagent.cli.exits import STATUS_HELP
from nodeagent.cli.interrupts import interrupts
from nodeagent.cli.options import FOLDER, common, log_settings, sources
from nodeagent.cli.stack_plan import plan_of
from nodeagent.local.settings import LocalSettings
from nodeagent.local.stack import Stack
from nodeagent.observe.log import configure

_WELCOME = """\
nodeagent {version}: Azure Batch on this machine

  endpoint  {endpoint}
  account   {account}
  key       {key}
  pool      {pool} ({nodes} x {slots} slots)
  state     {state}{authority}

Python (pip install azure-batch):

  from azure.batch import BatchClient
  from azure.core.credentials import AzureNamedKeyCredential
  client = BatchClient("{endpoint}", AzureNamedKeyCredential("{account}", "{key}"){verify})

az:
{trust}
  export AZURE_BATCH_ENDPOINT={endpoint}
  export AZURE_BATCH_ACCOUNT={account}
  export AZURE_BATCH_ACCESS_KEY={key}
  az batch task list --job-id myjob

{farewell}
"""


@click.command(epilog=STATUS_HELP, short_help="Serve the Batch REST API on this machine.")
@click.option("--port", type=int, help="TCP port on loopback; 0 takes a free one.  [default: 8190]")
@click.option("--account", help="Name of the Batch account.  [default: the development account]")
@click.option("--key", help="Key of the account, base64.  [default: the development key]")
@click.option("--pool", help="Id of the pool.  [default: local]")
@click.option("--nodes", type=int, help="Number of nodes, at first and at most.  [default: 1]")
@click.option("--slots", type=int, help="Task slots of each node.  [default: the number of cores]")
@click.option("--state-dir", type=FOLDER, help="Folder of everything that is kept.")
@click.option("--tls", is_flag=True, default=None, help="Serve HTTPS; prints the authority to trust.")
@click.option("--no-auth", is_flag=True, default=None, help="Ask clients for nothing.")
@click.option("--trace-http", is_flag=True, default=None, help="Log one line per request.")
@click.option("--ephemeral", is_flag=True, default=None, help="Keep nothing.")
@click.option("--loose", is_flag=True, default=None, help="Log unsupported properties instead of refusing them.")
@click.option("--detach-tasks", is_flag=True, help="At the end let tasks run on; the next start takes them over.")
@click.option("--json", "as_json", is_flag=True, help="When ready, print one JSON object instead of the text.")
@common
def up(
    config: Path | None,
    log_level: str | None,
    log_format: str | None,
    *,
    loose: bool | None,
    detach_tasks: bool,
    as_json: bool,
    **flags: Any,  # noqa: ANN401 - whatever types the options have
) -> None:
    """Serve the Batch REST API on this machine, with one pool whose nodes run here.

    Everything is kept in one folder: after a stop, a crash or kill -9 the same command goes on where it was. Ctrl-C
    ends the tasks too (they run again after the next start), unless --detach-tasks; after kill -9 they run on and
    are taken over.

    \b
    Examples:
      nodeagent up
      nodeagent up --port 0 --ephemeral --json
      nodeagent up --tls
      nodeagent up --nodes 2 --slots 4 --state-dir ~/batch
    """  # noqa: D301 - \b is click's mark for text that keeps its lines
    found = sources(config)
    local = found.section("local", LocalSettings, flags).build()
    if detach_tasks and local.ephemeral:
        raise click.UsageError("--detach-tasks and --ephemeral exclude each other: nothing would be left to take over")
    log = log_settings(found, log_level, log_format, "info" if local.trace_http else "warning")
    plan = plan_of(found, local, log, state_dir=local.state_dir, loose=loose)
    configure(log, secrets=plan.service.secrets)
    stack = Stack(plan)
    stack.detach_tasks = detach_tasks
    asyncio.run(_serve(stack, local, as_json=as_json))


async def _serve(stack: Stack, local: LocalSettings, *, as_json: bool) -> None:
    serving = asyncio.create_task(_until_broken(stack, local, as_json=as_json))

    def kill() -> None:
        click.echo("killing everything", err=True)
        stack.hurry()

    def stop() -> None:
        click.echo("stopping; once more kills at once", err=True)
        serving.cancel()

    with interrupts(stop, kill):
        await asyncio.wait((serving,))
    if not serving.cancelled():
        serving.result()


async def _until_broken(stack: Stack, local: LocalSettings, *, as_json: bool) -> None:
    async with stack:
        facts = {
            "version": nodeagent.__version__,
            "endpoint": stack.endpoint,
            "account": local.account,
            "key": local.key.get_secret_value(),
            "pool": local.pool,
            "nodes": local.nodes,
            "slots": local.slots,
            "state": str(stack.plan.state_dir),
            "ca": None if stack.ca_file is None else str(stack.ca_file),
        }
        if as_json:
            click.echo(orjson.dumps(facts).decode())
        else:
            click.echo(_WELCOME.format(farewell=_farewell(stack), **_trust(stack.ca_file), **facts), nl=False)
        await stack.until_broken()


def _trust(ca_file: Path | None) -> dict[str, str]:
    """Return what the welcome says of an authority that clients must be told to trust; nothing for plain HTTP."""
    if ca_file is None:
        return {"authority": "", "verify": "", "trust": ""}
    return {
        "authority": f"\n  authority {ca_file}",
        "verify": f', connection_verify="{ca_file}"',
        "trust": f"\n  export REQUESTS_CA_BUNDLE={ca_file}",
    }


def _farewell(stack: Stack) -> str:
    if stack.plan.ephemeral:
        return "Ctrl-C ends everything; nothing is kept (--ephemeral)."
    if stack.detach_tasks:
        return "Ctrl-C ends service and nodes; tasks run on (--detach-tasks)."
    return "Ctrl-C ends everything, tasks too; the same command goes on where it was."
