"""Applications (spec/rest.md §2.7), and the calls with which their packages come and go (docs/applications.md).

Azure manages packages through its management API; here the calls below `PATH` do it.
"""

from functools import partial
from typing import Any

import structlog
from aiohttp import web

from nodeagent.model.application import Application, ApplicationUpdate, ManagedApplication, PackageInfo
from nodeagent.model.times import utc_now
from nodeagent.service.app_keys import DATABASE, PACKAGES
from nodeagent.service.errors import refusal
from nodeagent.service.lifecycle import applications as lifecycle
from nodeagent.service.packages import body_of
from nodeagent.service.rest.call import Call
from nodeagent.service.rest.dispatch import protected
from nodeagent.service.rest.handlers.listing import Listing, Page, entity_reply
from nodeagent.service.rest.reply import Reply
from nodeagent.service.rest.shapes.entity import property_names
from nodeagent.service.rest.validate import json_object, parse
from nodeagent.service.store import applications
from nodeagent.service.store.applications import ApplicationRow, PackageRow
from nodeagent.service.store.database import Transaction

PATH = "/nodeagent/v1/applications"
"""Where packages are managed."""

_PROPERTIES = property_names(Application)
_LARGEST_UPDATE = 65536
_log = structlog.get_logger()
APPLICATIONS: Listing[ApplicationRow] = Listing("applications", _PROPERTIES, {}, lambda row: row.id)


async def list_applications(call: Call) -> Reply:
    """List the applications of the account."""

    def fetch(tx: Transaction, page: Page) -> list[ApplicationRow]:
        return applications.page(tx, after=page.after, limit=page.limit)

    return await APPLICATIONS.reply(call, f"{call.links.base}/applications", fetch, _shape)


async def get_application(call: Call) -> Reply:
    """Show one application."""
    row = await call.database.read(partial(lifecycle.require, application_id=call.variables["application_id"]))
    return Reply(200, entity_reply(call, "applications", _shape(row), _PROPERTIES))


def _shape(row: ApplicationRow) -> dict[str, Any]:
    versions = tuple(package.version for package in row.packages)
    return Application(id=row.id, display_name=row.display_name or row.id, versions=versions).to_wire()


def add_routes(app: web.Application) -> None:
    """Serve the calls that manage packages; `app` must have DATABASE and PACKAGES."""
    version = f"{PATH}/{{application_id}}/versions/{{version}}"
    app.router.add_get(PATH, protected(_list_managed))
    app.router.add_patch(f"{PATH}/{{application_id}}", protected(_change))
    app.router.add_put(version, protected(_add_version))
    app.router.add_delete(version, protected(_remove_version))


async def _list_managed(request: web.Request) -> web.Response:
    """Answer with all applications, their default versions, and the size and digest of each package."""
    found = await request.app[DATABASE].read(partial(applications.page, limit=-1))
    return web.json_response({"value": [_managed(row).to_wire() for row in found]})


async def _change(request: web.Request) -> web.Response:
    """Change the display name or the default version."""
    application_id = request.match_info["application_id"]
    update = parse(ApplicationUpdate, json_object(await _small_body(request)))
    change = partial(
        lifecycle.change,
        application_id=application_id,
        display_name=update.display_name,
        default_version=update.default_version,
    )
    return web.json_response(_managed(await request.app[DATABASE].write(change)).to_wire())


async def _add_version(request: web.Request) -> web.Response:
    """Take a zip file as a version of an application: 201 if it is new, 200 if it was there with this content."""
    application_id, version = request.match_info["application_id"], request.match_info["version"]
    lifecycle.check_names(application_id, version)
    files, database = request.app[PACKAGES], request.app[DATABASE]
    async with files.received(body_of(request)) as received:
        add = partial(
            lifecycle.add_package,
            application_id=application_id,
            version=version,
            sha256=received.sha256,
            size=received.size,
            now=utc_now(),
        )
        row, is_new = await files.keep(received, database, add)
    if is_new:
        _log.info("package_added", application=row.application_id, version=row.version, size=row.size)
    return web.json_response(_package(row).to_wire(), status=201 if is_new else 200)


async def _remove_version(request: web.Request) -> web.Response:
    """Remove a version that no pool and no open task refers to."""
    application_id, version = request.match_info["application_id"], request.match_info["version"]
    files, database = request.app[PACKAGES], request.app[DATABASE]
    found = await database.read(partial(lifecycle.require_package, application_id=application_id, version=version))
    remove = partial(lifecycle.remove_package, application_id=application_id, version=version)
    await files.drop(found.sha256, database, remove)
    _log.info("package_removed", application=found.application_id, version=found.version)
    return web.Response(status=204)


async def _small_body(request: web.Request) -> bytes:
    body = bytearray()
    async for chunk in body_of(request):
        body += chunk
        if len(body) > _LARGEST_UPDATE:
            raise refusal("RequestBodyTooLarge", ("MaxLimit", str(_LARGEST_UPDATE)))
    return bytes(body)


def _managed(row: ApplicationRow) -> ManagedApplication:
    return ManagedApplication(
        id=row.id,
        display_name=row.display_name,
        default_version=row.default_version,
        packages=tuple(_package(package) for package in row.packages),
    )


def _package(row: PackageRow) -> PackageInfo:
    return PackageInfo(version=row.version, sha256=row.sha256, size=row.size, added=row.added)
