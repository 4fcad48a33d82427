"""What the handlers find in the aiohttp application."""

import asyncio

from aiohttp import web

from nodeagent.service.settings import ServiceSettings
from nodeagent.service.signals import Signals
from nodeagent.service.store.database import Database

DATABASE = web.AppKey("database", Database)
SETTINGS = web.AppKey("settings", ServiceSettings)
SIGNALS = web.AppKey("signals", Signals)
STOPPING = web.AppKey("stopping", asyncio.Event)
"""Set when the service stops: whoever waits shall answer."""
NODE_KEY = web.AppKey("node_key", str)
