"""The options of commands that ask a running service: which one, and as which account."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path

import click

from nodeagent.cli.options import sources
from nodeagent.local.client import BatchClient
from nodeagent.local.folders import Folders
from nodeagent.local.settings import LocalSettings


def _client_of(local: LocalSettings, endpoint: str | None, trusted: Path | None) -> BatchClient:
    """Return a client of `endpoint`, or of the `nodeagent up` of this machine, whose authority is known."""
    if endpoint is None and local.tls:
        url = f"https://127.0.0.1:{local.port}"
        trusted = Folders(local.state_dir.absolute()).ca_file
    else:
        url = endpoint or f"http://127.0.0.1:{local.port}"
    return BatchClient(url, local.account, local.key.get_secret_value(), trusted)


def with_service(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which service, and hand the command a client as `client`."""

    @wraps(command)
    def decorated(
        endpoint: str | None,
        account: str | None,
        key: str | None,
        config: Path | None,
        ca_file: Path | None,
        **given: object,
    ) -> None:
        local = sources(config).section("local", LocalSettings, {"account": account, "key": key}).build()
        command(**given, client=_client_of(local, endpoint, ca_file))

    with_options: Callable[..., None] = decorated
    for option in (
        # the variable is the one that az and the Python SDK read
        click.option(
            "--ca-file",
            envvar="REQUESTS_CA_BUNDLE",
            type=click.Path(path_type=Path),
            help="Authorities (PEM) that an https service is signed by; else $REQUESTS_CA_BUNDLE.",
        ),
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
