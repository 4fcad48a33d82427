"""`GET /packages/<sha256>`: the zip file of an application package, for nodes (docs/node-protocol.md)."""

import asyncio
import re

from aiohttp import web

from nodeagent.service.app_keys import PACKAGES
from nodeagent.service.lifecycle.nodes import NodeRefusedError

_DIGEST = re.compile(r"[0-9a-f]{64}")


async def send_package(request: web.Request) -> web.StreamResponse:
    """Stream a package; `Range` goes on where a download was cut. Raises NodeRefusedError: PackageNotFound."""
    sha256 = request.match_info["sha256"]
    path = request.app[PACKAGES].path(sha256)
    if not _DIGEST.fullmatch(sha256) or not await asyncio.to_thread(path.is_file):
        raise NodeRefusedError(404, "PackageNotFound", "there is no package with this content (any more)")
    return web.FileResponse(path, headers={"Content-Type": "application/zip", "Cache-Control": "no-store"})
