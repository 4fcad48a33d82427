"""One life of the agent: who it is, what it finds, whom it talks to, until it is stopped or given a command."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path

import structlog

from nodeagent.agent import recovery, sd_notify
from nodeagent.agent.accounts import Accounts, check_reachable, claimed, uids_of
from nodeagent.agent.assignments import Assignments
from nodeagent.agent.attempts import Attempts
from nodeagent.agent.ballast import Ballast
from nodeagent.agent.boot import BootFile
from nodeagent.agent.correspondence import Correspondence
from nodeagent.agent.database import Database
from nodeagent.agent.directories import Directories
from nodeagent.agent.disk_usage import free_bytes
from nodeagent.agent.disk_watch import DiskRules, DiskWatch
from nodeagent.agent.errors import LimitsUnavailableError, UnwritableError
from nodeagent.agent.file_server import FileServer
from nodeagent.agent.heartbeat import beat, beat_once
from nodeagent.agent.identity import Identity, StateDirectory
from nodeagent.agent.introduction import Introduction
from nodeagent.agent.janitor import Janitor
from nodeagent.agent.job_sessions import JobSessions
from nodeagent.agent.joining import Joining
from nodeagent.agent.leaving import Leaving
from nodeagent.agent.limits import TaskLimits
from nodeagent.agent.membership import Membership
from nodeagent.agent.removal import Removals
from nodeagent.agent.reporter import Reporter
from nodeagent.agent.retention import Retention
from nodeagent.agent.service_client import ServiceClient
from nodeagent.agent.settings import AgentSettings
from nodeagent.agent.tools import Tools
from nodeagent.agent.transfers import Transfers, opened_transfers
from nodeagent.boundary import probe
from nodeagent.boundary.base import BoundaryError
from nodeagent.boundary.limits import LimitedBoundaries
from nodeagent.model.protocol import Heartbeat, HostStatistics, NodeCommand
from nodeagent.rules.accounts import UidRange
from nodeagent.rules.layout import NodeLayout
from nodeagent.runtime.base import Runtime
from nodeagent.runtime.process import ProcessRuntime
from nodeagent.runtime.zero import ZeroRuntime

log = structlog.get_logger(__name__)

READY_SECONDS = 5.0
"""How long the service manager waits for the first registration; a service that is down must not fail the unit."""

CLOSE_SECONDS = 2.0
"""How long idle shims may take to go when the agent ends, before their boundary is left where it is."""


class StopAsked(Exception):  # noqa: N818 - how a signal ends the task group
    """SIGTERM or SIGINT."""


class CommandGiven(Exception):  # noqa: N818 - how a command of the service ends the task group
    """The node is to be rebooted or reimaged."""

    def __init__(self, command: NodeCommand) -> None:
        super().__init__(command.command)
        self.command = command


async def live(settings: AgentSettings, state: StateDirectory, stop: asyncio.Event, given: Runtime | None) -> None:
    """One life: from the epoch to the end of all tasks of this process."""
    boots = BootFile(state.boot)
    boot = boots.read()
    key = _node_key(settings)
    layout = NodeLayout(settings.root.absolute())
    directories = Directories(layout)
    directories.make_node()
    ballast = _ballast(settings, state)
    identity = state.begin_life(settings.node)
    log.info("agent starts", node=identity.node_id, epoch=identity.epoch, state_dir=str(state.path), boot=boot.id)
    uids = _uids(settings, directories)
    files = FileServer(layout, settings.file_server_host, settings.file_server_port, settings.advertise_host)
    trust = await asyncio.to_thread(_service_trust, settings)
    client = ServiceClient(
        settings.service, key, call_seconds=settings.call_seconds, retry_seconds=settings.retry_seconds, trust=trust
    )
    attempts = Attempts()
    async with (
        claimed(uids),
        _opened_database(state, ballast) as database,
        _opened_runtime(settings, state, attempts, given) as (runtime, boundaries),
        files.serving() as address,
        client.connected(),
        opened_transfers(settings, layout, database, key, trust) as transfers,
        asyncio.TaskGroup() as tasks,
    ):
        stored = await database.write(recovery.load)
        if stored.command is not None and stored.command.command_id != boot.command_id:
            raise CommandGiven(stored.command)
        commanded: asyncio.Future[NodeCommand] = asyncio.get_running_loop().create_future()
        accounts = Accounts(database, directories, uids)
        await accounts.recover()
        introduction = Introduction(settings, identity, layout, address, stored.registered, boot)
        correspondence = Correspondence(database, attempts, introduction, tasks, boots.told)
        reporter = Reporter(
            lambda: _head(identity, assignments.cursor),
            correspondence.acknowledged,
            correspondence.disowned,
            lambda messages: assignments.take(messages),  # noqa: PLW0108 - made later, as it needs the tools
        )
        sessions = JobSessions(database, boundaries, attempts)
        removals = Removals(database, attempts, directories, state.attempts, tasks)
        disk = _disk_watch(settings, layout, ballast, database, attempts, removals, transfers)
        database.when_full = partial(asyncio.get_running_loop().call_soon_threadsafe, disk.met_full)
        await disk.begin()
        tools = Tools(
            database=database,
            accounts=accounts,
            runtime=runtime,
            boundaries=boundaries,
            directories=directories,
            sessions=sessions,
            reporter=reporter,
            attempts=attempts,
            tasks=tasks,
            node=lambda: introduction.facts,
            disk=disk,
            transfers=transfers,
            records=state.attempts,
            grace_seconds=settings.grace_seconds,
            durability=settings.durability,
            limits=TaskLimits.of(settings),
            stderr_tail=settings.stderr_tail,
            kept_log_bytes=settings.kept_log_bytes,
        )
        assignments = Assignments(
            tools, removals, stored.cursor, boot.command_id, lambda command: _settle(commanded, command)
        )
        await recovery.recover(tools, stored, removals, state, boot.id)
        joining = Joining(
            transfers.packages, transfers.pool_ready, lambda: beat_once(membership, heartbeat, layout.root)
        )
        leaving = Leaving(database, removals, sessions, attempts, tasks)
        client.when_pool_gone = leaving.pool_gone
        membership = Membership(
            client,
            lambda: introduction.register(assignments.cursor, attempts.ids()),
            leaving.after(joining.after(correspondence.registered)),
        )

        def heartbeat(host: HostStatistics) -> Heartbeat:
            return Heartbeat(
                node_id=identity.node_id,
                epoch=identity.epoch,
                cursor=assignments.cursor,
                live_attempts=attempts.ids(),
                host=host,
                errors=transfers.packages.errors,
            )

        async def work() -> None:
            await joining.run(stored.registered, registration, lambda: introduction.registered)
            tasks.create_task(joining.keep())
            await assignments.run(membership, identity.node_id, identity.epoch, settings.poll_seconds)

        registration = tasks.create_task(membership.register())
        for going in (
            reporter.run(membership),
            work(),
            transfers.progress.run(client.call, identity.node_id, identity.epoch),
            beat(membership, heartbeat, layout.root, lambda: introduction.heartbeat_seconds, correspondence.disowned),
            Retention(database, removals, settings.cleanup_seconds, tools.now).run(),
            disk.run(),
            _tell_service_manager(registration),
        ):
            tasks.create_task(going)
        await _first_of(stop, commanded)
        sd_notify.notify("STOPPING=1")
        raise StopAsked


def _settle(commanded: "asyncio.Future[NodeCommand]", command: NodeCommand) -> None:
    if not commanded.done():
        commanded.set_result(command)


async def _first_of(stop: asyncio.Event, commanded: "asyncio.Future[NodeCommand]") -> None:
    """Wait until the agent is to stop. Raises CommandGiven if the service gives a command before that."""
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((stopping, commanded), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    if commanded.done() and not stop.is_set():
        raise CommandGiven(commanded.result())


def _uids(settings: AgentSettings, directories: Directories) -> UidRange | None:
    uids = uids_of(settings)
    if uids is not None:
        directories.open_to_users()
        check_reachable(directories.layout.root)
    return uids


def _ballast(settings: AgentSettings, state: StateDirectory) -> Ballast:
    ballast = Ballast(state.path, settings.ballast_bytes)
    if free_bytes(state.path) < settings.ballast_bytes:
        ballast.release()  # this life has to write something before it can help
    else:
        ballast.make()
    return ballast


def _disk_watch(
    settings: AgentSettings,
    layout: NodeLayout,
    ballast: Ballast,
    database: Database,
    attempts: Attempts,
    removals: Removals,
    transfers: Transfers,
) -> DiskWatch:
    rules = DiskRules.of(settings)
    when, when_cache = DiskRules.cleanup_of(settings), rules.cache_cleanup_of(settings)
    janitor = Janitor(when, when_cache, layout.root, database, removals, transfers.cache)
    return DiskWatch(rules, ballast, database, attempts, layout.root, removals.empty_bin, janitor)


def _head(identity: Identity, cursor: int) -> str:
    # an id has no character that JSON would escape
    return f'"nodeId":"{identity.node_id}","epoch":{identity.epoch},"cursor":{cursor}'


async def _tell_service_manager(registration: "asyncio.Task[None]") -> None:
    await asyncio.wait((registration,), timeout=READY_SECONDS)
    sd_notify.notify("READY=1")
    seconds = sd_notify.watchdog_seconds()
    while seconds is not None:
        sd_notify.notify("WATCHDOG=1")
        await asyncio.sleep(seconds)


def _node_key(settings: AgentSettings) -> str:
    if settings.node_key is not None:
        return settings.node_key.get_secret_value()
    path = settings.node_key_file
    try:
        key = path.read_text().strip() if path is not None else ""
    except OSError as error:
        raise UnwritableError(f"the node key cannot be read from {path}: {error.strerror}") from error
    if not key:
        raise UnwritableError(f"the node key file {path} is empty")
    return key


def _service_trust(settings: AgentSettings) -> ssl.SSLContext | None:
    """Return which certificates of the service are good; None for those that the system trusts. Reads a file."""
    path = settings.service_ca_file
    if path is None or not settings.service.startswith("https:"):  # local mode may be http where the file says more
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        why = "it holds no certificate (PEM)" if isinstance(error, ssl.SSLError) else error.strerror
        raise UnwritableError(f"service_ca_file {path} cannot be used: {why}") from error


@asynccontextmanager
async def _opened_database(state: StateDirectory, ballast: Ballast) -> AsyncIterator[Database]:
    database = Database(state.database)
    try:
        await database.open()
    except UnwritableError:
        if not ballast.held:
            raise
        ballast.release()
        await database.open()
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def _opened_runtime(
    settings: AgentSettings, state: StateDirectory, attempts: Attempts, given: Runtime | None
) -> AsyncIterator[tuple[Runtime, LimitedBoundaries]]:
    parent = None if settings.cgroup_parent is None else Path(settings.cgroup_parent)
    root = boundary_root(settings.node, state.path)
    choice = await asyncio.to_thread(probe.choose, root, settings.boundary, parent)
    log.info("boundary chosen", kind=choice.provider.kind, passed_over=list(choice.passed_over))
    try:
        boundaries = LimitedBoundaries(choice.provider, root, TaskLimits.of(settings).of_boundary(1).controllers)
    except BoundaryError as error:
        raise LimitsUnavailableError(f"a limit of the settings cannot be kept here: {error}") from error
    runtime = given or _runtime(settings, state)
    await runtime.open()
    try:
        yield runtime, boundaries
    finally:
        await runtime.close()
        if not any(runner.attempt.executing for runner in attempts):
            with suppress(BoundaryError):  # what a job's preparation left running goes on in it
                await boundaries.close(CLOSE_SECONDS)


def _runtime(settings: AgentSettings, state: StateDirectory) -> Runtime:
    if settings.runtime == "zero":
        return ZeroRuntime(state.path)
    return ProcessRuntime(state.path, warm=settings.slots)


def boundary_root(node_id: str, state_dir: Path) -> str:
    """Return the name of the node's boundaries: the same in each life, another one for each agent of a machine."""
    return f"nodeagent-{node_id}-{sha256(str(state_dir).encode()).hexdigest()[:8]}"
