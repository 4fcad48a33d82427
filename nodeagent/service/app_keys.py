"""What the handlers find in the aiohttp application."""

import asyncio

from aiohttp import web

from nodeagent.service.auto_storage import AutoStorage
from nodeagent.service.packages import PackageFiles
from nodeagent.service.settings import ServiceSettings
from nodeagent.service.signals import Signals
from nodeagent.service.store.database import Database
from nodeagent.service.task_tokens import TaskTokens
from nodeagent.service.transfers import Transfers

DATABASE = web.AppKey("database", Database)
SETTINGS = web.AppKey("settings", ServiceSettings)
SIGNALS = web.AppKey("signals", Signals)
STOPPING = web.AppKey("stopping", asyncio.Event)
"""Set when the service stops: whoever waits shall answer."""
TRANSFERS = web.AppKey("transfers", Transfers)
TASK_TOKENS = web.AppKey("task_tokens", TaskTokens)
AUTO_STORAGE = web.AppKey("auto_storage", AutoStorage)
"""Only there if the settings name a storage account."""
PACKAGES = web.AppKey("packages", PackageFiles)
NODE_KEY = web.AppKey("node_key", str)
