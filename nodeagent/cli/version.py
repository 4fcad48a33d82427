"""`nodeagent version`."""

import platform

import click

import nodeagent


@click.command(short_help="Print the version.")
def version() -> None:
    """Print the version of nodeagent and of Python."""
    click.echo(f"nodeagent {nodeagent.__version__} (Python {platform.python_version()})")
