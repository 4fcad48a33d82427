"""The options of commands that ask a running service: which one, and as which account."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path

import click

from nodeagent.cli.options import sources
from nodeagent.local.client import BatchClient
from nodeagent.local.settings import LocalSettings


def with_service(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which service, and hand the command a client as `client`."""

    @wraps(command)
    def decorated(
        endpoint: str | None, account: str | None, key: str | None, config: Path | None, **given: object
    ) -> None:
        local = sources(config).section("local", LocalSettings, {"account": account, "key": key}).build()
        url = endpoint or f"http://127.0.0.1:{local.port}"
        command(**given, client=BatchClient(url, local.account, local.key.get_secret_value()))

    with_options: Callable[..., None] = decorated
    for option in (
        click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings file (TOML)."),
        click.option(
            "--key", envvar="AZURE_BATCH_ACCESS_KEY", help="Key of the account; else $AZURE_BATCH_ACCESS_KEY."
        ),
        click.option("--account", envvar="AZURE_BATCH_ACCOUNT", help="Name of the account; else $AZURE_BATCH_ACCOUNT."),
        click.option(
            "--endpoint", envvar="AZURE_BATCH_ENDPOINT", help="URL of the service; else $AZURE_BATCH_ENDPOINT."
        ),
    ):
        with_options = option(with_options)
    return with_options
