"""What a handler is given: the request, taken apart and checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from aiohttp import web

from nodeagent.service.rest.auth import Authenticator
from nodeagent.service.rest.conditions import Condition
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.node_files import NodeFiles
from nodeagent.service.rest.query import Query
from nodeagent.service.store.database import Database
from nodeagent.service.transfers import Transfers


@dataclass(frozen=True, slots=True)
class RestContext:
    """What the REST API works with; `loose` accepts properties that this version does not support.

    `auto_storage` tells whether tasks may name containers without a URL.
    """

    database: Database
    authenticator: Authenticator
    node_files: NodeFiles
    clock: Callable[[], datetime]
    loose: bool = False
    auto_storage: bool = False
    transfers: Transfers = field(default_factory=Transfers)


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated request for one operation."""

    context: RestContext
    request: web.Request
    request_id: str
    variables: Mapping[str, str]
    """The decoded variable parts of the path."""
    query: Query
    condition: Condition
    links: Links
    body: bytes

    @property
    def database(self) -> Database:
        """The store."""
        return self.context.database
