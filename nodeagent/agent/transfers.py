"""All that moves files for the attempts of a node: one of each, made from the settings, open while the agent lives."""

import asyncio
import os
import sqlite3
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from nodeagent.agent import failpoints
from nodeagent.agent.database import Database
from nodeagent.agent.packages import Packages
from nodeagent.agent.progress import Progress
from nodeagent.agent.settings import AgentSettings
from nodeagent.agent.upload_ledger import UploadLedgers
from nodeagent.rules.layout import NodeLayout
from nodeagent.transfer.base import TransferSettings
from nodeagent.transfer.cache import CachingFetcher
from nodeagent.transfer.fetch import DirectFetcher, Fetcher
from nodeagent.transfer.http_download import Downloads
from nodeagent.transfer.identity import Identities
from nodeagent.transfer.live_logs import LiveLogs
from nodeagent.transfer.output_files import OutputFiles
from nodeagent.transfer.packages import PackageInstaller
from nodeagent.transfer.resource_files import ResourceFiles

log = structlog.get_logger(__name__)

CACHE_SHARE = 10
"""The cache takes one tenth of the file system, where the settings do not say its size."""


@dataclass(frozen=True, slots=True)
class Transfers:
    """What the attempts of a node share."""

    resource_files: ResourceFiles
    output_files: OutputFiles
    packages: Packages
    ledgers: UploadLedgers
    progress: Progress
    live_logs: LiveLogs | None
    """None: logs are not uploaded while a task runs."""
    pool_ready: asyncio.Event
    """The packages of the pool are installed, or cannot be."""
    cache: CachingFetcher | None
    """None: every file is downloaded each time."""


@asynccontextmanager
async def opened_transfers(
    settings: AgentSettings, layout: NodeLayout, database: Database, node_key: str, trust: ssl.SSLContext | None
) -> AsyncIterator[Transfers]:
    """Hold them open for the `with` block. Raises OSError for folders that cannot be made.

    `trust` says which certificates of the service are good; None means those that the system trusts.
    """
    limits = TransferSettings(
        transfers=settings.transfers,
        range_bytes=settings.range_bytes,
        transfer_tries=settings.transfer_tries,
        transfer_idle_seconds=settings.transfer_idle_seconds,
        transfer_seconds=settings.transfer_seconds,
    )
    identities = Identities(settings.identity_endpoint, limits)
    downloads = Downloads(limits, _private(layout.volatile / "staging"), identities.token)
    output_files = OutputFiles(limits, identities.token, hit=failpoints.hit)
    installer = PackageInstaller(
        limits,
        layout.applications,
        settings.service,
        node_key,
        settings.package_bytes,
        trust=trust,
        reached=failpoints.hit,
    )
    packages = Packages(database, installer)
    async with AsyncExitStack() as stack:
        for context in (identities.connected, downloads.connected, output_files.connected, installer.connected):
            await stack.enter_async_context(context())
        await packages.open()
        cache = await _opened_cache(settings, layout, downloads)
        if cache is not None:
            stack.push_async_callback(cache.close)
        every = settings.live_logs_seconds
        fetcher: Fetcher = DirectFetcher(downloads) if cache is None else cache
        yield Transfers(
            resource_files=ResourceFiles(fetcher, identities.token, limits),
            output_files=output_files,
            packages=packages,
            ledgers=UploadLedgers(database),
            progress=Progress(),
            live_logs=None if every is None else LiveLogs(output_files, every),
            pool_ready=asyncio.Event(),
            cache=cache,
        )


async def _opened_cache(settings: AgentSettings, layout: NodeLayout, downloads: Downloads) -> CachingFetcher | None:
    """Open the cache. On a disk that is too full for it the node goes on without: it may have to make room first."""
    size = settings.cache_bytes
    if size is None:
        found = os.statvfs(layout.root)
        size = found.f_blocks * found.f_frsize // CACHE_SHARE
    if not size:
        return None
    try:
        cache = CachingFetcher(downloads, _private(layout.volatile / "cache"), size, settings.cache_verify)
        await cache.open()
    except (OSError, sqlite3.Error) as error:
        log.warning("no cache of downloaded files in this life", why=str(error))
        return None
    log.info("cache of downloaded files", max_bytes=size, verify=settings.cache_verify)
    return cache


def _private(path: Path) -> Path:
    """Make a folder that only the agent gets into."""
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)
    return path
