"""Reboot and reimage, as the service commands them (docs/node-protocol.md): between two lives of the agent.

Where the settings name a command, the machine does it: the command is run, and the agent waits for its own end. Where
they name none, the node is a process on somebody's machine, and a reboot means: everything that runs on the node is
killed, `volatile` is emptied, and another boot begins; a reimage takes all files of the node as well. Each step may be
done again, so that a kill in between only means that the next life begins here.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import structlog

from nodeagent.agent import failpoints, trees
from nodeagent.agent.boot import BootFile
from nodeagent.agent.errors import CommandFailedError
from nodeagent.agent.identity import StateDirectory
from nodeagent.agent.node_sweep import end_everything
from nodeagent.agent.settings import AgentSettings
from nodeagent.model.protocol import NodeCommand
from nodeagent.rules.layout import NodeLayout
from nodeagent.runtime.base import RuntimeFailure

log = structlog.get_logger(__name__)

COMMAND_SECONDS = 120.0
"""A configured command that has not returned by then has failed."""


async def obey(settings: AgentSettings, state: StateDirectory, command: NodeCommand, stop: asyncio.Event) -> None:
    """Reboot or reimage the node; returns when another boot has begun, or `stop` is set.

    Raises CommandFailedError, and what BootFile raises. The agent does nothing else meanwhile.
    """
    boots = BootFile(state.boot)
    boots.begin(command)
    failpoints.hit("after_node_command_begun")
    configured = settings.reboot_command if command.command == "reboot" else settings.reimage_command
    log.warning("node command", command=command.command, id=command.command_id, simulated=not configured)
    if configured:
        await _run(configured, command.command)
        await stop.wait()
        return
    try:
        await end_everything(state.attempts)
    except RuntimeFailure as error:
        raise CommandFailedError(f"the node cannot {command.command}: {error}") from error
    failpoints.hit("after_node_command_ended")
    layout = NodeLayout(settings.root.absolute())
    if command.command == "reboot":
        await asyncio.to_thread(_empty, layout.volatile)
    else:
        await asyncio.to_thread(_forget_node, layout, state)
    failpoints.hit("before_node_command_done")
    boots.done(command)
    failpoints.hit("after_node_command_done")


async def _run(argv: Sequence[str], verb: str) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise CommandFailedError(f"{verb}_command cannot be run: {argv[0]}: {error.strerror}") from error
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            _, told = await process.communicate()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise CommandFailedError(f"{verb}_command did not return within {COMMAND_SECONDS:g} s") from error
    if process.returncode != 0:
        words = told.decode(errors="replace").strip().rpartition("\n")[2][:200]
        raise CommandFailedError(f"{verb}_command ended with {process.returncode}: {words}")


def _forget_node(layout: NodeLayout, state: StateDirectory) -> None:
    """Take away all files of the node, and all that the agent knows but who it is."""
    _empty(layout.root)
    for path in state.path.glob(f"{state.database.name}*"):
        path.unlink(missing_ok=True)
    for directory in (state.attempts, state.quarantine):
        if directory.exists():
            _empty(directory)


def _empty(path: Path) -> None:
    """Delete everything in a directory, never through a link."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        trees.empty_bin(handle)
    finally:
        os.close(handle)
