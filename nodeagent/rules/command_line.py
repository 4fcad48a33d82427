"""How a command line becomes an argument vector (spec/node.md §3): split like a POSIX shell, but never run by one."""

import shlex


class CommandLineError(ValueError):
    """The command line cannot be split; the text says why."""


def split(command_line: str) -> list[str]:
    """Split by POSIX quoting; no variable, glob, pipe or redirection is interpreted.

    Raises CommandLineError for an unclosed quotation, a trailing backslash, or nothing to run.
    """
    try:
        arguments = shlex.split(command_line, posix=True)
    except ValueError as error:
        raise CommandLineError(f"the command line cannot be split: {error}".lower()) from error
    if not arguments or not arguments[0]:
        raise CommandLineError("the command line names no program")
    return arguments
