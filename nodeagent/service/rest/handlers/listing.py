"""Pages of entities: filter, select, limit, and the link to what follows (spec/rest.md §4)."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from nodeagent.service.rest.call import Call
from nodeagent.service.rest.odata.request import filter_where
from nodeagent.service.rest.paging import decode_token, next_link
from nodeagent.service.rest.reply import Reply
from nodeagent.service.rest.select import expands_stats, parse_select, select
from nodeagent.service.store.columns import Columns, Where
from nodeagent.service.store.database import Transaction

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page:
    """What a list request asks for."""

    after: str | None
    limit: int
    where: Where | None


@dataclass(frozen=True, slots=True)
class Listing(Generic[Item]):
    """How one kind of entity is listed.

    `cursor` gives the position of an item: what the next page comes after. The shape of an item is made on a thread.
    """

    fragment: str
    properties: frozenset[str]
    columns: Columns
    cursor: Callable[[Item], str]

    async def reply(
        self,
        call: Call,
        url: str,
        fetch: Callable[[Transaction, Page], Sequence[Item]],
        shape: Callable[[Item], Mapping[str, Any]],
    ) -> Reply:
        """Answer 200 with one page; `fetch` runs in a reading transaction and may raise BatchError."""
        query = call.query
        expands_stats(query)
        selection = parse_select(query, self.properties)
        limit = query.max_results
        # one more than the page tells whether another page follows
        page = Page(decode_token(self.fragment, query), limit + 1, filter_where(query, self.columns))
        items = await call.database.read(lambda tx: fetch(tx, page))
        body: dict[str, Any] = {
            "odata.metadata": call.links.metadata(self.fragment),
            # a thousand entities take tens of milliseconds: not on the loop that answers the nodes
            "value": await asyncio.to_thread(lambda: [select(shape(item), selection) for item in items[:limit]]),
        }
        if len(items) > limit:
            body["odata.nextLink"] = next_link(self.fragment, url, query, self.cursor(items[limit - 1]))
        return Reply(200, body)


def entity_reply(call: Call, fragment: str, entity: Mapping[str, Any], properties: frozenset[str]) -> Mapping[str, Any]:
    """Return the body of one entity, as `$select` wants it."""
    expands_stats(call.query)
    selection = parse_select(call.query, properties)
    return {"odata.metadata": call.links.metadata(f"{fragment}/@Element")} | dict(select(entity, selection))
