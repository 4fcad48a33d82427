"""`nodeagent completion`."""

import click
from click.shell_completion import get_completion_class


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Examples:
      nodeagent completion bash > ~/.local/share/bash-completion/completions/nodeagent
      nodeagent completion zsh > "${fpath[1]}/_nodeagent"
      nodeagent completion fish > ~/.config/fish/completions/nodeagent.fish
    """  # noqa: D301 - \b is click's mark for text that keeps its lines
    script = get_completion_class(shell)
    if script is None:
        raise click.UsageError(f"there is no completion for '{shell}'")
    click.echo(script(ctx.find_root().command, {}, "nodeagent", "_NODEAGENT_COMPLETE").source())
