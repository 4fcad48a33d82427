"""The `nodeagent` command: its subcommands are imported only when they are used."""

import difflib
import importlib
import os
import sys
import traceback

import click

import nodeagent
from nodeagent.cli.exits import STATUS_HELP, Exit
from nodeagent.cli.faults import told
from nodeagent.observe.redaction import Redactor

COMMANDS = {
    "run": "nodeagent.cli.run:run",
    "up": "nodeagent.cli.up:up",
    "service": "nodeagent.cli.service:service",
    "agent": "nodeagent.cli.agent:agent",
    "app": "nodeagent.cli.app:app",
    "drain": "nodeagent.cli.drain:drain",
    "events": "nodeagent.cli.events:events",
    "explain": "nodeagent.cli.explain:explain",
    "config": "nodeagent.cli.config:config",
    "completion": "nodeagent.cli.completion:completion",
    "version": "nodeagent.cli.version:version",
}


class LazyGroup(click.Group):
    """A group whose commands are imported on demand: `nodeagent version` need not load a web server."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command. Unknown names: None."""
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, name = target.partition(":")
        command = getattr(importlib.import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{target} is no command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is refused with the nearest name."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there is {', '.join(COMMANDS)}"
            raise click.UsageError(f"no such command '{name}'; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=STATUS_HELP,
)
@click.version_option(nodeagent.__version__, message="nodeagent %(version)s")
def cli() -> None:
    """Run Azure Batch jobs on your own machines.

    \b
    Examples:
      nodeagent run job.json        run one job here, and show what became of it
      nodeagent up                  serve the Batch REST API on this machine
      nodeagent config show         say which settings hold, and where they came from
    """  # noqa: D301 - \b is click's mark for text that keeps its lines


def main() -> None:
    """Run the command line and end the process with its exit status."""
    try:
        status = cli.main(prog_name="nodeagent", standalone_mode=False)
    except click.ClickException as error:
        status = _refused(error)
    except (click.Abort, KeyboardInterrupt):
        status = Exit.INTERRUPTED
    except BrokenPipeError:
        # who read our output has gone: what is still buffered must not be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = Exit.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - known faults become one line, all others are shown whole
        message, status = told(error)
        lines = message.splitlines() if message else []
        click.echo("\n".join(f"nodeagent: {line}" for line in lines) or _trace(), err=True)
    sys.exit(int(status or 0))


def _refused(error: click.ClickException) -> int:
    """Print a usage error in one line, with the way to the help; the help itself where no command was given."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return Exit.USAGE
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "nodeagent"
    message = error.format_message().strip().removesuffix(".")
    click.echo(f"{path}: {message[:1].lower()}{message[1:]} (see '{path} --help')", err=True)
    return Exit.USAGE


def _trace() -> str:
    return Redactor().text(traceback.format_exc())
