"""Images that a pool may name (spec/rest.md §2.1, §3.9).

A node here is what its machine is: no image is ever put onto it. The list names the Linux images that the agent is
tried on and that clients look for before they make a pool; a pool that names another one is taken, too.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from nodeagent.service.rest.call import Call
from nodeagent.service.rest.handlers.listing import Listing, Page
from nodeagent.service.rest.reply import Reply
from nodeagent.service.store.columns import Column, ColumnType, condition
from nodeagent.service.store.database import Transaction

Image = Mapping[str, Any]


def _image(release: str, publisher: str, offer: str, sku: str) -> Image:
    return {
        "nodeAgentSKUId": f"batch.node.{release}",
        "imageReference": {"publisher": publisher, "offer": offer, "sku": sku, "version": "latest"},
        "osType": "linux",
        "capabilities": [],
        "verificationType": "verified",
    }


_IMAGES = (
    _image("debian 12", "debian", "debian-12", "12"),
    _image("ubuntu 22.04", "canonical", "0001-com-ubuntu-server-jammy", "22_04-lts"),
    _image("ubuntu 22.04", "microsoft-dsvm", "ubuntu-hpc", "2204"),
    _image("ubuntu 24.04", "canonical", "ubuntu-24_04-lts", "server"),
    _image("ubuntu 24.04", "microsoft-dsvm", "ubuntu-hpc", "2404"),
)
_NUMBERED = orjson.dumps(_IMAGES).decode()

_ENUM = ColumnType.ENUM
IMAGES: Listing[tuple[int, Image]] = Listing(
    "supportedimages",
    frozenset(_IMAGES[0]),
    {
        "osType": Column("json_extract(i.value, '$.osType')", _ENUM),
        "verificationType": Column("json_extract(i.value, '$.verificationType')", _ENUM),
        "nodeAgentSKUId": Column("json_extract(i.value, '$.nodeAgentSKUId')", _ENUM),
    },
    lambda numbered: str(numbered[0]),
)


async def list_images(call: Call) -> Reply:
    """List the images; the filter is the one of all lists, so it is a condition of the store here, too."""

    def fetch(tx: Transaction, page: Page) -> list[tuple[int, Image]]:
        sql, parameters = condition(page.where)
        rows = tx.execute(
            f"SELECT i.key FROM json_each(?) i WHERE i.key > ?{sql} ORDER BY i.key LIMIT ?",  # noqa: S608 - no user text
            (
                _NUMBERED,
                -1 if page.after is None or not page.after.isdigit() else int(page.after),
                *parameters,
                page.limit,
            ),
        )
        return [(int(row[0]), _IMAGES[int(row[0])]) for row in rows]

    return await IMAGES.reply(call, f"{call.links.base}/supportedimages", fetch, lambda numbered: numbered[1])


async def list_usage_metrics(call: Call) -> Reply:
    """Show that no use of cores is billed here: the list is empty."""
    return Reply(200, {"odata.metadata": call.links.metadata("poolusagemetrics"), "value": []})
