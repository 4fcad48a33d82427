"""No SAS, token, key or password is in anything that transfers say: logs, failures, errors, files (invariant I7).

Logs are looked at before they are redacted: redaction is the second line of defence, not the first.
"""

import asyncio
import io
import logging
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit
from uuid import uuid4

import pytest
import structlog
from aiohttp import web

from nodeagent.agent.database import Database
from nodeagent.agent.upload_ledger import UploadLedgers
from nodeagent.model.files import ResourceFile
from nodeagent.model.protocol import ApplicationPackage, TransferPhase
from nodeagent.model.values import NodeIdentityReference
from nodeagent.transfer.base import IdentityError, Meter, Place, TransferFailedError, TransferSettings
from nodeagent.transfer.cache import CachingFetcher
from nodeagent.transfer.fetch import DirectFetcher
from nodeagent.transfer.http_download import Downloads
from nodeagent.transfer.identity import Identities
from nodeagent.transfer.output_files import OutputFiles
from nodeagent.transfer.packages import PackageInstaller
from nodeagent.transfer.resource_files import ResourceFiles
from nodeagent.transfer.upload_plan import Uploads
from tests.integration.azurite import Container, free_port
from tests.integration.faulty_server import Answer, Asked, Reply, faulty_server
from tests.integration.identity_endpoint import Endpoint, running_endpoint, write_certificate
from tests.integration.listing_server import serving
from tests.integration.output_files import rule

pytest_plugins = ["tests.integration.storage_fixtures"]

SIGNATURE = "c0rpus+Signature/Of/A/Sas="
PASSWORD = "c0rpusPassw0rd"
NODE_KEY = "c0rpusN0deKey"
SAS = f"sv=2023-11-03&se=2030-01-01&sr=c&sp=rwl&sig={quote(SIGNATURE, safe='')}"
IDENTITY = NodeIdentityReference(resource_id="/subscriptions/s/resourceGroups/g/userAssignedIdentities/mine")
SETTINGS = TransferSettings(transfer_tries=2, transfer_idle_seconds=0.5, transfer_seconds=20)


@dataclass
class Said:
    """Everything that was said."""

    logs: io.StringIO
    folder: Path
    secrets: set[str] = field(default_factory=lambda: {SIGNATURE, quote(SIGNATURE, safe=""), PASSWORD, NODE_KEY})
    texts: list[str] = field(default_factory=list)
    failures: int = 0

    def hide(self, url: str) -> str:
        """Have the signature of a URL be a secret; return the URL."""
        for signature in parse_qs(urlsplit(url).query).get("sig", []):
            self.secrets |= {signature, quote(signature, safe="")}
        return url

    def failed(self, error: BaseException) -> None:
        """Take down all that an error can show, with those that led to it."""
        self.failures += 1
        self.texts += [str(error), repr(error), "".join(traceback.format_exception(error))]
        if isinstance(error, TransferFailedError):
            self.texts += [error.failure.to_json(), repr(error.failure)]

    def check(self, caplog: pytest.LogCaptureFixture) -> None:
        """Look everywhere."""
        everything = {"logs": self.logs.getvalue(), "errors": "\n".join(self.texts), "logging": caplog.text}
        for path in self.folder.rglob("*"):
            if path.is_file():
                everything[str(path)] = path.read_bytes().decode("latin-1")
        for where, text in everything.items():
            for secret in self.secrets:
                assert secret not in text, f"{secret} is in {where}: {text}"


@pytest.fixture
def said(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Said]:
    """Listen to all logs; look through them, and through all that was taken down, at the end. Nobody pauses."""
    monkeypatch.setattr("nodeagent.rules.transfer_retry.pause", lambda *_: 0.0)
    said = Said(io.StringIO(), tmp_path / "node")
    said.folder.mkdir()
    before = structlog.get_config()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file=said.logs),
        cache_logger_on_first_use=False,
    )
    caplog.set_level(logging.DEBUG)
    try:
        yield said
    finally:
        structlog.configure(**before)
    said.check(caplog)


def meter() -> Meter:
    """Return a meter that nobody listens to."""
    return Meter("a1", TransferPhase.DOWNLOADING)


@dataclass
class Node:
    """All that transfers, in one folder."""

    said: Said
    direct: ResourceFiles
    cached: ResourceFiles
    output_files: OutputFiles
    ledgers: UploadLedgers
    packages: PackageInstaller

    async def bring(self, *files: ResourceFile) -> None:
        """Bring files, with the cache and without it."""
        for resources in (self.direct, self.cached):
            wd = self.said.folder / "wd"
            wd.mkdir(exist_ok=True)
            try:
                await resources.bring(files, Place(wd), meter())
            except TransferFailedError as error:
                self.said.failed(error)

    async def upload(self, container_url: str, identity: str | None = None) -> None:
        """Upload a file."""
        root = self.said.folder / f"task-{uuid4().hex}"
        (root / "wd").mkdir(parents=True)
        (root / "wd" / "result").write_bytes(b"result")
        uploads = Uploads(
            execution_id=root.name,
            output_files=(rule("result", container_url, identity=identity),),
            exit_code=0,
            root=root,
            wd=root / "wd",
            environment={},
            run_as=None,
            log_owner=None,
        )
        failure = await self.output_files.upload(uploads, self.ledgers.of(root.name), meter())
        if failure is not None:
            self.said.failed(TransferFailedError(failure))

    async def install(self) -> None:
        """Install a package."""
        package = ApplicationPackage(application_id="app", version="1", sha256=sha256(b"zip").hexdigest(), size=3)
        try:
            await self.packages.install(package, meter())
        except TransferFailedError as error:
            self.said.failed(error)


@asynccontextmanager
async def node(said: Said, service: str, identity_endpoint: str) -> AsyncIterator[Node]:
    """Run all that transfers."""
    folder = said.folder
    database = Database(folder / "agent.db", synchronous="NORMAL")
    await database.open()
    identities = Identities(identity_endpoint, SETTINGS, lambda *_: None)
    downloads = Downloads(SETTINGS, folder / "staging", identities.token)
    output_files = OutputFiles(SETTINGS, identities.token)
    packages = PackageInstaller(SETTINGS, folder / "applications", service, NODE_KEY, 1 << 20)
    cache = CachingFetcher(downloads, folder / "cache", 1 << 20, "stat")
    async with identities.connected(), downloads.connected(), output_files.connected(), packages.connected():
        await cache.open()
        await packages.keep_only(frozenset())
        try:
            yield Node(
                said,
                ResourceFiles(DirectFetcher(downloads), identities.token, SETTINGS),
                ResourceFiles(cache, identities.token, SETTINGS),
                output_files,
                UploadLedgers(database),
                packages,
            )
        finally:
            await cache.close()
            await database.close()


def echo(asked: Asked) -> bytes:
    """Return all that was asked, secrets included: careless servers put it into their errors."""
    headers = "\n".join(f"{name}: {value}" for name, value in asked.headers.items())
    return f"<Error><Code>Bad</Code><Message>{asked.target}\n{headers}</Message></Error>".encode()


def echoing(status: int) -> Answer:
    """Return an answer that repeats what was asked: in its text and in its headers."""

    async def answer(asked: Asked, reply: Reply) -> None:
        await reply.all(
            status,
            echo(asked),
            Content_Type="application/xml",
            x_ms_error_code=asked.target,
            x_ms_request_id=asked.target,
            Retry_After=asked.target,
        )

    return answer


async def hanging(_asked: Asked, _reply: Reply) -> None:
    """Say nothing."""
    await asyncio.Event().wait()


async def resetting(_asked: Asked, reply: Reply) -> None:
    """Cut the connection."""
    reply.reset()


async def cutting(asked: Asked, reply: Reply) -> None:
    """Announce more than comes."""
    await reply.head(200, Content_Length="100000", Content_Type="application/xml")
    await reply.body(echo(asked))


async def lying(asked: Asked, reply: Reply) -> None:
    """Send what does not have its checksum."""
    await reply.all(200, echo(asked), Content_MD5="AAAAAAAAAAAAAAAAAAAAAA==")


async def babbling(asked: Asked, reply: Reply) -> None:
    """Send what is not HTTP."""
    await reply.body(asked.target.encode() + b"\r\n\r\n")


def redirecting(target: str) -> Answer:
    """Return an answer that leads elsewhere, with the SAS."""

    async def answer(asked: Asked, reply: Reply) -> None:
        query = asked.target.partition("?")[2]
        await reply.all(302, Location=f"{target}?{query}")

    return answer


FAULTS: dict[str, Answer] = {
    **{f"echoing {status}": echoing(status) for status in (206, 304, 400, 401, 403, 404, 409, 412, 416, 500, 503)},
    "hanging": hanging,
    "resetting": resetting,
    "cutting": cutting,
    "lying": lying,
    "babbling": babbling,
    "redirecting to nobody": redirecting("http://127.0.0.1:1/c/blob"),
    "redirecting to nonsense": redirecting("http://127.0.0.1:99999/c/blob"),
    "redirecting to another scheme": redirecting(f"ftp://user:{PASSWORD}@host/c"),
    "redirecting to itself": redirecting(""),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_whatever_a_server_does_no_secret_of_the_request_is_shown(said: Said, fault: str) -> None:
    """Files, containers, uploads and packages, from one that repeats, cuts, hangs, lies or leads away."""
    async with faulty_server(FAULTS[fault]) as server:
        url = server.url(f"/account/c?{SAS}")
        async with node(said, f"http://127.0.0.1:{server.port}", f"http://127.0.0.1:{server.port}/token") as moving:
            await moving.bring(ResourceFile(http_url=server.url(f"/account/c/blob?{SAS}"), file_path="blob"))
            await moving.bring(ResourceFile(storage_container_url=url))
            await moving.upload(url)
            await moving.install()
    assert len(server.asked) > 3
    assert said.failures >= 3
    if "503" in fault:
        assert "tried again" in said.logs.getvalue()  # there are logs to look at


URLS = [
    f"http://127.0.0.1:{{port}}/account/c?{SAS}",
    f"http://user:{PASSWORD}@127.0.0.1:{{port}}/account/c?{SAS}",
    f"http://no-such-account.invalid/c?{SAS}",
    f"http://user:{PASSWORD}@127.0.0.1:99999/account/c?{SAS}",
    f"http://[::1/c?{SAS}",
    f"http:///c?{SAS}",
    f"http://host name/c?{SAS}",
    f"ftp://user:{PASSWORD}@host/c?{SAS}",
    f"nonsense?{SAS}",
    f"http://{'x' * 300}.example/c?{SAS}",
    f"http://127.0.0.1:{{port}}/account/c\n?{SAS}",
]


@pytest.mark.parametrize("url", URLS, ids=range(len(URLS)))
async def test_a_url_that_leads_nowhere_is_shown_without_its_secrets(said: Said, url: str) -> None:
    """Neither its SAS nor its password; in a hurry, people write all sorts of URLs."""
    there = url.format(port=free_port())
    async with node(said, f"http://127.0.0.1:{free_port()}", "http://127.0.0.1:1/token") as moving:
        await moving.bring(ResourceFile(http_url=there, file_path="a"))
        await moving.bring(ResourceFile(storage_container_url=there))
        await moving.upload(there)
        await moving.install()
        await moving.bring(ResourceFile(http_url=there, file_path="../a"))
        await moving.bring(ResourceFile(storage_container_url=there, file_path="/a"))
    assert said.failures == 10


async def test_what_storage_refuses_is_shown_without_the_sas(said: Said, container: Container) -> None:
    """Storage explains in its answers which text it has signed."""
    container.put("a", b"A")
    expired, wrong = timedelta(hours=-1), "sig=AAAA"
    for url in (
        container.url_with_sas("rwl", expires=expired),
        container.url_with_sas("rwl").replace("sig=", wrong),
        container.url_with_sas("d"),
        container.url_with_sas("rwl").replace(container.name, "missing-container"),
    ):
        said.hide(url)
        base, _, sas = url.partition("?")
        async with node(said, "http://127.0.0.1:1", "http://127.0.0.1:1/token") as moving:
            await moving.bring(ResourceFile(http_url=f"{base}/a?{sas}", file_path="a"))
            await moving.bring(ResourceFile(storage_container_url=url))
            await moving.upload(url)
    assert said.failures == 4 * 5


async def test_what_goes_well_says_nothing_secret(said: Said, container: Container) -> None:
    """Nor do the cache, the ledger of uploads and the logs of uploads keep it."""
    container.put("in/a", b"A")
    url, blob = said.hide(container.url_with_sas("rwl")), said.hide(container.blob_url("in/a"))
    async with node(said, "http://127.0.0.1:1", "http://127.0.0.1:1/token") as moving:
        await moving.bring(ResourceFile(http_url=blob, file_path="a"), ResourceFile(storage_container_url=url))
        await moving.upload(url)
    assert said.failures == 0
    assert container.content("result") == b"result"


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def repeating(status: int) -> Handler:
    """Return an answer that repeats the headers of the request, the token among them."""

    async def answer(request: web.Request) -> web.StreamResponse:
        text = "".join(f"{name}: {value}\n" for name, value in request.headers.items())
        return web.Response(status=status, text=text, headers={"WWW-Authenticate": "Bearer error=x"})

    return answer


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 500])
async def test_a_token_is_shown_to_the_storage_only(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Even if the storage repeats it."""
    certificate, key = write_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    async with running_endpoint() as endpoint, serving(repeating(status), tls=tls) as (url, asked):
        endpoint.known.add(IDENTITY.resource_id)
        plain = url.partition("?")[0]
        async with node(said, "http://127.0.0.1:1", endpoint.url) as moving:
            if status != 200:  # it would be the content of the file
                await moving.bring(
                    ResourceFile(http_url=f"{plain}/a", file_path="a", identity_reference=IDENTITY),
                )
            await moving.bring(ResourceFile(storage_container_url=plain, identity_reference=IDENTITY))
            await moving.upload(plain, IDENTITY.resource_id)
        said.secrets |= set(endpoint.given)
    assert {request.headers.get("Authorization") for request in asked} == {f"Bearer {endpoint.given[0]}"}
    assert said.failures >= 2


async def test_an_endpoint_that_breaks_shows_no_token(said: Said) -> None:
    """It gives one in an answer that makes no sense, in an error, or over a cut connection."""

    def giving(endpoint: Endpoint, template: str, status: int) -> Handler:
        async def answer(_request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, text=template % SIGNATURE)

        return answer

    async with running_endpoint() as endpoint:
        for template, status in (
            ('{"access_token": ["%s"]}', 200),
            ('{"access_token": "\\n%s"}', 200),
            ("%s", 200),
            ("%s", 500),
            ('{"token": "%s"}', 400),
        ):
            endpoint.script.append(giving(endpoint, template, status))
            async with Identities(endpoint.url, SETTINGS, lambda *_: None).connected() as identities:
                with pytest.raises(IdentityError) as failed:
                    await identities.token(IDENTITY)
            said.failed(failed.value)
    assert said.failures == 5
