"""Options that several commands share, and the settings that they lead to."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import BaseModel

from nodeagent.cli.settings import Sources, read_sources
from nodeagent.observe.log import LogFormat, LogLevel, LogSettings

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.Path(path_type=Path, file_okay=False)


def sections() -> dict[str, type[BaseModel]]:
    """Return the sections of the settings file and the models of their keys."""
    # imported here, so that help and completion need not load everything
    from nodeagent.agent.settings import AgentSettings  # noqa: PLC0415
    from nodeagent.local.settings import LocalSettings  # noqa: PLC0415
    from nodeagent.service.settings import ServiceSettings  # noqa: PLC0415

    return {"service": ServiceSettings, "agent": AgentSettings, "local": LocalSettings, "log": LogSettings}


def sources(config: Path | None) -> Sources:
    """Read the settings file and the environment. Raises SettingsError."""
    return read_sources(sections(), os.environ, config)


def common(command: F) -> F:
    """Add `--config`, `--log-level` and `--log-format`."""
    for option in (
        click.option("--log-format", type=click.Choice([item.value for item in LogFormat]), help="How log lines look."),
        click.option("--log-level", type=click.Choice([item.value for item in LogLevel]), help="Least level logged."),
        click.option(
            "--config",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Settings file (TOML); else $NODEAGENT_CONFIG, else /etc/nodeagent/nodeagent.toml.",
        ),
    ):
        command = option(command)
    return command


def log_settings(found: Sources, level: str | None, form: str | None, default: str) -> LogSettings:
    """Return how to log; `default` is the command's own level where nothing was said."""
    section = found.section("log", LogSettings, _named(level=level, format=form))
    derived: Mapping[str, object] = {} if "level" in section.given else {"level": default}
    return section.build(**derived)


def _named(**flags: object) -> Mapping[str, object]:
    return flags
