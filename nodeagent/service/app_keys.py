"""What the handlers find in the aiohttp application."""

from aiohttp import web

from nodeagent.service.settings import ServiceSettings
from nodeagent.service.signals import Signals
from nodeagent.service.store.database import Database

DATABASE = web.AppKey("database", Database)
SETTINGS = web.AppKey("settings", ServiceSettings)
SIGNALS = web.AppKey("signals", Signals)
NODE_KEY = web.AppKey("node_key", str)
