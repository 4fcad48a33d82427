"""The listing of blob containers, page by page, through the storage SDK (spec/node.md §4)."""

import asyncio
import logging
import random
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

import aiohttp
import structlog

from nodeagent.model.failure import FailureInfo
from nodeagent.model.values import NodeIdentityReference
from nodeagent.rules import transfer_retry
from nodeagent.rules.failures import failure_of
from nodeagent.rules.resource_files import ContainerSource, is_folder
from nodeagent.rules.transfer_retry import Trouble
from nodeagent.rules.urls import shown
from nodeagent.transfer import http_trouble
from nodeagent.transfer.base import IdentityError, Tokens, TransferFailedError, TransferSettings
from nodeagent.transfer.http_trouble import HttpTroubleError

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken
    from azure.core.exceptions import HttpResponseError
    from azure.storage.blob import BlobProperties
    from azure.storage.blob.aio import ContainerClient

log = structlog.get_logger(__name__)

Pages = AsyncIterator[AsyncIterator["BlobProperties"]]

PAGE_BLOBS = 200
"""Blobs of a page: what is in memory of a listing at a time. The SDK reads a page in one go on the event loop, which
takes some tens of milliseconds for so many, and five times as long for 1000; storage gives up to 5000."""
CONNECT_SECONDS = 30.0
TOKEN_SECONDS = 360
"""How long the SDK may keep a token: little more than the 5 minutes that it renews one before its end, because the
identity's own tokens are kept elsewhere."""
_NO_LISTING = "the storage's answer is not a whole listing"
_DENIED_CODES = frozenset({"PublicAccessNotPermitted", "NoAuthenticationInformation", "AuthenticationFailed"})
"""StorageErrorCodes that mean "no access" whatever the status: storage answers 409 and 400 to some."""
_TIMED_OUT_CODES = frozenset({"OperationTimedOut"})
_TIMED_OUT = frozenset({408, 504})


@dataclass(frozen=True, slots=True)
class ListedBlob:
    """A blob that is a file."""

    name: str
    size: int | None
    """Bytes."""


class BlobListings:
    """Lists containers, with one pool of connections for all listings of a task."""

    def __init__(self, tokens: Tokens, settings: TransferSettings) -> None:
        self._tokens = tokens
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["BlobListings"]:
        """Hold the connections open."""
        # The SDK takes long to import, and most tasks list nothing. Certificates are read for each task anew: a
        # node's may be renewed, and SSL_CERT_FILE counts.
        context = await asyncio.to_thread(_prepared)
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        ) as session:
            self._session = session
            try:
                yield self
            finally:
                self._session = None

    async def pages(self, source: ContainerSource) -> AsyncGenerator[tuple[ListedBlob, ...], None]:
        """List the blobs that are files, in the order of their names; nothing that matches is no page at all.

        A page is asked for when the one before has been dealt with. Raises TransferFailedError.
        """
        async with self._client(source) as client:
            listed = client.list_blobs(
                name_starts_with=source.prefix or None, include=["metadata"], results_per_page=PAGE_BLOBS
            )
            pages = listed.by_page()
            while (page := await self._page(pages, source.url)) is not None:
                if page:
                    yield page

    @asynccontextmanager
    async def _client(self, source: ContainerSource) -> AsyncIterator["ContainerClient"]:
        from azure.core.pipeline.transport import AioHttpTransport  # noqa: PLC0415 - slow, see `connected`
        from azure.storage.blob.aio import ContainerClient  # noqa: PLC0415 - the same

        if source.identity is not None and not source.url.lower().startswith("https:"):
            # The SDK would not show a token to whoever listens either, but does not say so in a way of its own.
            plain = HttpTroubleError(Trouble.ADDRESS, "a managed identity can only be used with an https:// URL")
            raise TransferFailedError(_failure(plain, source.url, 0))
        idle = self._settings.transfer_idle_seconds
        try:
            client = ContainerClient.from_container_url(
                source.url,
                credential=None if source.identity is None else _Credential(self._tokens, source.identity),
                transport=AioHttpTransport(
                    session=self._session,
                    session_owner=False,
                    connection_timeout=min(CONNECT_SECONDS, idle),
                    read_timeout=idle,
                ),
                # Tries are counted here: the SDK's pause for long, and do not know Retry-After.
                retry_total=0,
                permit_redirects=False,
            )
        except ValueError:
            # Not told why: the SDK's text has the URL in it.
            trouble = HttpTroubleError(Trouble.ADDRESS, "storageContainerUrl is not the URL of a container")
            raise TransferFailedError(_failure(trouble, source.url, 0)) from None
        async with client:
            yield client

    async def _page(self, pages: Pages, url: str) -> tuple[ListedBlob, ...] | None:
        """Return the next page, None after the last; with tries and a deadline."""
        tries, seconds = transfer_retry.Tries(self._settings.transfer_tries), self._settings.transfer_seconds
        last: HttpTroubleError | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        return await _try_page(pages)
                    except HttpTroubleError as trouble:
                        last = trouble
                    if not tries.failed_once(progress=False) or not last.may_pass:
                        break
                    pause = transfer_retry.pause(tries.failed, random.random(), last.retry_after)  # noqa: S311 - jitter
                    log.info("a listing is tried again", url=shown(url), why=str(last), retry_seconds=round(pause, 1))
                    await asyncio.sleep(pause)
        except TimeoutError:
            why = "" if last is None else f"; what was last: {last}"
            late = HttpTroubleError(Trouble.SILENCE, f"the container was not listed within {seconds:g} s{why}")
            raise TransferFailedError(_failure(late, url, tries.failed + 1)) from None
        raise TransferFailedError(_failure(last, url, tries.failed))


def _prepared() -> ssl.SSLContext:
    import azure.storage.blob.aio  # noqa: F401, PLC0415 - see `connected`

    # What the SDK has to say of requests is told by the failures, and its lines would be one or more for each.
    logging.getLogger("azure").setLevel(logging.ERROR)
    return ssl.create_default_context()


async def _try_page(pages: Pages) -> tuple[ListedBlob, ...] | None:
    """Make one request for the next page; None after the last. Raises HttpTroubleError."""
    from azure.core.exceptions import AzureError, HttpResponseError  # noqa: PLC0415 - slow, see `connected`

    # `from None` everywhere: the texts of the SDK and of the HTTP client may have the URL in them.
    try:
        page = await anext(pages)
    except StopAsyncIteration:
        return None
    except IdentityError as error:
        raise HttpTroubleError(Trouble.IDENTITY, str(error), status=error.status) from None
    except HttpResponseError as error:
        raise _of_answer(error) from None
    except (AzureError, aiohttp.ClientError, OSError) as error:
        raise _of_exception(error) from None
    except (AttributeError, TypeError, ValueError):
        # How the SDK meets XML that is no listing, or one that lacks what it expects in it (a proxy's page, say).
        raise HttpTroubleError(Trouble.INCOMPLETE, _NO_LISTING) from None
    return tuple(
        [ListedBlob(str(blob.name), blob.size) async for blob in page if not is_folder(blob.name, blob.metadata or {})]
    )


def _of_answer(error: "HttpResponseError") -> HttpTroubleError:
    """Return what an answer means that is no page."""
    status = error.status_code
    if status is None or status == 200:
        return HttpTroubleError(Trouble.INCOMPLETE, _NO_LISTING)
    headers = getattr(error.response, "headers", {})
    given = getattr(error, "error_code", None) or headers.get("x-ms-error-code")
    text = str(getattr(given, "value", given) or "")
    storage_code = text if text.isascii() and text.isalnum() else ""
    return HttpTroubleError(
        Trouble.STATUS,
        f"the storage answered with status {status}" + (f" ({storage_code})" if storage_code else ""),
        status=status,
        evidence=(("StorageErrorCode", storage_code), ("RequestId", http_trouble.request_id(headers))),
        retry_after=transfer_retry.retry_after(headers.get("Retry-After"), datetime.now(UTC)),
    )


def _of_exception(error: Exception) -> HttpTroubleError:
    """Return why there was no answer."""
    cause = getattr(error, "inner_exception", None) or error
    if isinstance(cause, aiohttp.ClientError | OSError):
        return http_trouble.of_exception(cause)
    return HttpTroubleError(Trouble.RESET, f"the listing broke off ({type(cause).__name__})")


def _failure(trouble: HttpTroubleError, url: str, tries: int) -> FailureInfo:
    """Return what the task's failureInfo shows (spec/node.md §4)."""
    return failure_of(
        _code(trouble),
        ("Message", str(trouble)),
        ("ContainerUrl", shown(url)),
        ("HttpStatus", None if trouble.status is None else str(trouble.status)),
        *trouble.evidence,
        ("Attempts", str(tries) if tries else None),
    )


def _code(trouble: HttpTroubleError) -> str:
    storage_code = dict(trouble.evidence).get("StorageErrorCode")
    if trouble.kind is Trouble.SILENCE:
        return "ResourceContainerListTimedOut"
    if trouble.kind is Trouble.STATUS:
        if trouble.status in (401, 403) or storage_code in _DENIED_CODES:
            return "ResourceContainerAccessDenied"
        if trouble.status == 404:
            return "ResourceContainerNotFound"
        if trouble.status in _TIMED_OUT or storage_code in _TIMED_OUT_CODES:
            return "ResourceContainerListTimedOut"
    return "ResourceContainerListMiscError"


class _Credential:
    """The tokens of an identity, as the SDK asks for them."""

    def __init__(self, tokens: Tokens, identity: NodeIdentityReference) -> None:
        self._tokens = tokens
        self._identity = identity

    async def get_token(self, *_scopes: str, **_options: object) -> "AccessToken":
        """Return a token for storage; the scope is always storage's."""
        from azure.core.credentials import AccessToken  # noqa: PLC0415 - slow, see `BlobListings.connected`

        return AccessToken(await self._tokens(self._identity), int(time.time()) + TOKEN_SECONDS)

    async def close(self) -> None:
        """Nothing is held."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        return None
