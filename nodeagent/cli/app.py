"""`nodeagent app`: the application packages of a running service (docs/applications.md)."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click

from nodeagent.cli.exits import STATUS_HELP
from nodeagent.cli.service_options import with_service
from nodeagent.local.client import BatchClient

T = TypeVar("T")

_ZIP = click.Path(path_type=Path, exists=True, dir_okay=False, readable=True)


def _done(client: BatchClient, work: Callable[[], Awaitable[T]]) -> T:
    async def run() -> T:
        async with client:
            return await work()

    return asyncio.run(run())


@click.group(epilog=STATUS_HELP, short_help="Add, list and remove application packages.")
def app() -> None:
    """Add, list and remove the application packages of a service.

    Without further options each command asks the `nodeagent up` of this machine.

    \b
    Examples:
      nodeagent app add blender 2.80 blender-2.80.zip --default
      nodeagent app list
    """  # noqa: D301 - \b is click's mark for text that keeps its lines


@app.command(epilog=STATUS_HELP, short_help="Add a zip file as a version of an application.")
@click.argument("name")
@click.argument("version")
@click.argument("file", type=_ZIP)
@click.option("--default", "is_default", is_flag=True, help="Make it what references without a version mean.")
@click.option("--display-name", help="Name of the application for people.")
@with_service
def add(
    name: str, version: str, file: Path, display_name: str | None, client: BatchClient, *, is_default: bool
) -> None:
    """Add FILE, a zip, as VERSION of the application NAME. The same file a second time changes nothing."""
    changes = {"defaultVersion": version} if is_default else {}
    if display_name is not None:
        changes["displayName"] = display_name

    async def work() -> bool:
        with file.open("rb") as opened:
            new = await client.add_package(name, version, opened)
        if changes:
            await client.change_application(name, changes)
        return new

    click.echo(f"{name} {version} {'added' if _done(client, work) else 'was there already'}")


@app.command("list", epilog=STATUS_HELP, short_help="List the applications and their versions.")
@with_service
def list_(client: BatchClient) -> None:
    """List the applications: name, version, size in bytes, and which version is the default."""
    for application in _done(client, client.applications):
        for package in application["packages"]:
            mark = " (default)" if package["version"] == application.get("defaultVersion") else ""
            click.echo(f"{application['id']} {package['version']} {package['size']}{mark}")


@app.command(epilog=STATUS_HELP, short_help="Remove a version of an application.")
@click.argument("name")
@click.argument("version")
@with_service
def remove(name: str, version: str, client: BatchClient) -> None:
    """Remove VERSION of the application NAME. Refused while a pool or a task that has not completed refers to it."""
    _done(client, lambda: client.remove_package(name, version))
    click.echo(f"{name} {version} removed")


@app.command(epilog=STATUS_HELP, short_help="Choose the default version of an application.")
@click.argument("name")
@click.argument("version")
@with_service
def default(name: str, version: str, client: BatchClient) -> None:
    """Make VERSION what references to the application NAME without a version mean from now on."""
    _done(client, lambda: client.change_application(name, {"defaultVersion": version}))
    click.echo(f"{name} {version} is the default")
