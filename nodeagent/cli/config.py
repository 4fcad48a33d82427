"""`nodeagent config`: which settings hold, and why."""

import json
from enum import Enum
from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr

from nodeagent.cli.options import sections, sources
from nodeagent.cli.settings import Setting

NOT_SET = "(not set)"


@click.group(short_help="Say which settings hold, and why.")
def config() -> None:
    """Look at the settings."""


@config.command(short_help="Print every setting and where it came from.")
@click.argument("section", required=False, type=click.Choice(["service", "agent", "local", "log"]))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file (TOML); else $NODEAGENT_CONFIG, else /etc/nodeagent/nodeagent.toml.",
)
def show(section: str | None, file: Path | None, *, as_json: bool) -> None:
    """Print every setting, its value and where the value came from.

    Sources, weakest first: default, settings file, NODEAGENT_<SECTION>_<KEY> of the environment, flags (which only
    the command itself knows). Secrets are masked.

    \b
    Examples:
      nodeagent config show
      nodeagent config show service --config ./nodeagent.toml
    """  # noqa: D301 - \b is click's mark for text that keeps its lines
    found = sources(file)
    shown = {
        name: found.section(name, model).effective() for name, model in sections().items() if section in (None, name)
    }
    if as_json:
        document = {
            name: {key: {"value": _plain(item), "origin": item.origin} for key, item in keys.items()}
            for name, keys in shown.items()
        }
        click.echo(json.dumps(document, indent=2))
        return
    width = max(len(f"{name}.{key}") for name, keys in shown.items() for key in keys)
    for name, keys in shown.items():
        for key, item in keys.items():
            value = _plain(item)
            text = NOT_SET if value is None else value if isinstance(value, str) else json.dumps(value)
            click.echo(f"{f'{name}.{key}':<{width}}  {text}  ({item.origin})")


def _plain(item: Setting) -> Any:  # noqa: ANN401 - any JSON value
    """Return a value as JSON knows it, masked if it is a secret."""
    value = item.value
    if value is None:
        return None
    if item.secret or isinstance(value, SecretStr):
        return "***"
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, (bool, int, float, str)) else str(value)
