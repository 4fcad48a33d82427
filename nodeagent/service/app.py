"""The service as a whole: store, REST, node API, events and background work, on one event loop."""

import asyncio
import ssl
import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from aiohttp import web

from nodeagent.model.pool import PoolCreate
from nodeagent.model.times import utc_now
from nodeagent.service import event_log
from nodeagent.service.app_keys import (
    AUTO_STORAGE,
    DATABASE,
    NODE_KEY,
    PACKAGES,
    SETTINGS,
    SIGNALS,
    STOPPING,
    TASK_TOKENS,
    TRANSFERS,
)
from nodeagent.service.auto_storage import AutoStorage
from nodeagent.service.background import purge_deleted_jobs, watch_deadlines
from nodeagent.service.lifecycle import placement, pools
from nodeagent.service.lifecycle.names import SCHEDULE
from nodeagent.service.nodeapi import routes as node_routes
from nodeagent.service.packages import PackageFiles
from nodeagent.service.pool_scaling import scale_pools
from nodeagent.service.rest import routes as rest_routes
from nodeagent.service.rest.dispatch import protected
from nodeagent.service.rest.handlers import applications, explain, transfers
from nodeagent.service.rest.trace import add_request_id, trace
from nodeagent.service.settings import ServiceSettings
from nodeagent.service.signals import STOPPING_SIGNAL, Signals
from nodeagent.service.state_dir import DATABASE_NAME, open_state_dir, read_node_key
from nodeagent.service.store.database import Database, Hooks, Transaction
from nodeagent.service.store.pools import PoolRow
from nodeagent.service.task_tokens import TaskTokens, read_key
from nodeagent.service.tls import Tls
from nodeagent.service.transfers import Transfers

_BODY_LIMIT = 32 * 1024 * 1024
_SHUTDOWN_SECONDS = 5.0
_SWITCH_SECONDS = 0.0002
"""The store's threads let go of the interpreter at every statement and must not wait 5 ms, the default, to have it
back while the event loop is busy: measured, a node with 16 slots gets twice as many tasks per second."""
_EVENTS_NAME = "events.jsonl"
_log = structlog.get_logger()


def _place_tasks(tx: Transaction) -> None:
    placement.place_tasks(tx, utc_now())


HOOKS: Hooks = {SCHEDULE: _place_tasks}
"""What runs in the transaction that raised a signal."""


class Service:
    """A running service, for the length of an `async with`.

    Entering raises StateInUseError, NewerDatabaseError, CertificateError, OSError (a port in use, a folder that
    cannot be written).
    If a background task fails, the task that entered is cancelled and leaving raises an ExceptionGroup.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.signals = Signals()
        self._stack = AsyncExitStack()
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._port = 0
        self._node_key = ""
        self._tls: Tls | None = None
        self._folder = settings.state_dir
        self._database: Database | None = None

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        return self._port

    @property
    def url(self) -> str:
        """The base URL of the Batch API and of the node API."""
        host = self.settings.host
        scheme = "https" if self.settings.serves_tls else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def ca_file(self) -> Path | None:
        """The certificate (PEM) of the authority that clients must trust; None unless the service made its own."""
        return None if self._tls is None else self._tls.ca

    @property
    def node_key(self) -> str:
        """The key that agents must show."""
        return self._node_key

    @property
    def folder(self) -> Path:
        """The folder with the state: a temporary one if the service is ephemeral."""
        return self._folder

    @property
    def database(self) -> Database:
        """The store."""
        if self._database is None:
            raise RuntimeError("the service is not running")
        return self._database

    async def ensure_pool(self, spec: PoolCreate) -> PoolRow:
        """Make a pool unless it is there: how local mode brings its own."""
        return await self.database.write(lambda tx: pools.ensure_pool(tx, spec, utc_now()))

    async def run(self) -> None:
        """Serve until cancelled."""
        async with self:
            await self._stopping.wait()

    async def __aenter__(self) -> Self:
        """Open the state, start listening and the background work."""
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))
        async with AsyncExitStack() as stack:
            self._folder = stack.enter_context(open_state_dir(self.settings))
            self._node_key = read_node_key(self.settings, self._folder)
            self._database = await stack.enter_async_context(
                Database(
                    self._folder / DATABASE_NAME,
                    synchronous=self.settings.synchronous,
                    hooks=HOOKS,
                    on_signals=self.signals.publish,
                )
            )
            packages = PackageFiles(self._folder, self.settings.package_bytes)
            await packages.open(self._database)
            context = await self._open_tls()
            group = await stack.enter_async_context(asyncio.TaskGroup())
            stack.callback(self._cancel_tasks)
            self._start_background(group)
            await self._listen(stack, packages, context)
            self._stack = stack.pop_all()
        _log.info("service_started", url=self.url, state_dir=str(self._folder))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Answer those who wait, finish what is queued, and close."""
        try:
            return await self._stack.__aexit__(kind, error, traceback)
        finally:
            self._database = None
            _log.info("service_stopped")

    def _start_background(self, group: asyncio.TaskGroup) -> None:
        database, signals, settings = self.database, self.signals, self.settings
        lease = timedelta(seconds=settings.lease_seconds)
        events_file = settings.events_file or self._folder / _EVENTS_NAME
        for work in (
            watch_deadlines(database, signals, lease),
            purge_deleted_jobs(database, signals),
            scale_pools(database, signals),
            event_log.write_events(database, signals, events_file, settings.events_kept),
        ):
            self._tasks.append(group.create_task(work))
        if self._tls is not None:
            self._tasks.append(group.create_task(self._tls.watch()))

    async def _open_tls(self) -> ssl.SSLContext | None:
        if not self.settings.serves_tls:
            return None
        self._tls = Tls(self.settings, self._folder, utc_now)
        return await self._tls.opened()

    def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _listen(self, stack: AsyncExitStack, packages: PackageFiles, context: ssl.SSLContext | None) -> None:
        runner = web.AppRunner(self._application(packages), access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        stack.callback(self._wake_waiters)
        site = web.TCPSite(runner, self.settings.host, self.settings.port, ssl_context=context, reuse_address=True)
        await site.start()
        address = runner.addresses[0]
        self._port = int(address[1])

    def _wake_waiters(self) -> None:
        self._stopping.set()
        self.signals.publish((STOPPING_SIGNAL,))

    def _application(self, packages: PackageFiles) -> web.Application:
        middlewares = (trace,) if self.settings.trace_http else ()
        app = web.Application(client_max_size=_BODY_LIMIT, middlewares=middlewares)
        app.on_response_prepare.append(add_request_id)
        app[DATABASE] = self.database
        app[SETTINGS] = self.settings
        app[SIGNALS] = self.signals
        app[PACKAGES] = packages
        app[STOPPING] = self._stopping
        app[NODE_KEY] = self._node_key
        app[TRANSFERS] = Transfers()
        app[TASK_TOKENS] = TaskTokens(read_key(self._folder))
        url, key = self.settings.auto_storage_url, self.settings.auto_storage_key
        if url is not None and key is not None:
            app[AUTO_STORAGE] = AutoStorage(url, key)
        app.router.add_get("/healthz", _healthz)
        app.router.add_get(event_log.PATH, protected(event_log.stream_events))
        app.router.add_get(transfers.PATH, protected(transfers.list_transfers))
        applications.add_routes(app)
        explain.add_routes(app)
        node_routes.add_routes(app)
        rest_routes.add_routes(app)
        return app


async def _healthz(request: web.Request) -> web.Response:
    """Tell that the service answers and its store too."""
    await request.app[DATABASE].read(lambda tx: tx.one("SELECT 1"))
    return web.json_response({"status": "ok"})
