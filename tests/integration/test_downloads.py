"""Downloads from real servers: nginx, and Azurite as the storage of Azure."""

# ruff: noqa: ASYNC230, ASYNC240
# Nothing else runs on the loop of a test: its files are looked at as they are.

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.storage.blob import ContentSettings

from nodeagent.transfer.base import TransferFailedError, TransferSettings
from nodeagent.transfer.http_download import Downloads, Fetched, NotModified, Validator
from tests.integration.azurite import Container
from tests.integration.downloading import Connect, CountedMeter, details
from tests.integration.nginx import Nginx, running_nginx

pytest_plugins = ["tests.integration.storage_fixtures", "tests.integration.download_fixtures"]

MIB = 1 << 20
SMALL_RANGES = TransferSettings(range_bytes=MIB)


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """Return an nginx for all tests of this file."""
    with running_nginx(tmp_path_factory.mktemp("nginx")) as running:
        yield running


async def _fetched(downloads: Downloads, url: str, meter: CountedMeter) -> Fetched:
    fetched = await downloads.fetch(url, path="data/file", meter=meter)
    assert isinstance(fetched, Fetched)
    return fetched


async def test_a_file_in_one_range(nginx: Nginx, connect: Connect, meter: CountedMeter, staging: Path) -> None:
    """It is the agent's alone, and all that is in the staging folder."""
    (nginx.www / "small").write_bytes(b"content")
    async with connect() as downloads:
        fetched = await _fetched(downloads, nginx.url("small"), meter)
    assert fetched.path.read_bytes() == b"content"
    assert fetched.size == 7
    assert fetched.validator is not None
    assert fetched.validator.etag is not None
    assert fetched.path.stat().st_mode & 0o7777 == 0o600
    assert staging.stat().st_mode & 0o7777 == 0o700
    assert list(staging.iterdir()) == [fetched.path]
    assert meter.held == 7


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB + 17])
async def test_every_length_around_ranges(nginx: Nginx, connect: Connect, meter: CountedMeter, size: int) -> None:
    """Empty files have no range at all; the last range is short."""
    content = os.urandom(size)
    (nginx.www / f"length{size}").write_bytes(content)
    async with connect(SMALL_RANGES) as downloads:
        fetched = await _fetched(downloads, nginx.url(f"length{size}"), meter)
    assert fetched.path.read_bytes() == content
    assert (fetched.size, meter.held, meter.thrown_away) == (size, size, 0)


async def test_a_thousand_small_files(nginx: Nginx, connect: Connect, meter: CountedMeter) -> None:
    """All of them asked for at once."""
    contents = {f"small{number}": os.urandom(1000 + number) for number in range(1000)}
    for name, content in contents.items():
        (nginx.www / name).write_bytes(content)
    async with connect() as downloads:
        fetched = await asyncio.gather(*(_fetched(downloads, nginx.url(name), meter) for name in contents))
    assert [one.path.read_bytes() for one in fetched] == list(contents.values())
    assert meter.held == sum(map(len, contents.values()))


_MEASURED = """
import asyncio, hashlib, pathlib, resource, sys
from nodeagent.model.protocol import TransferPhase
from nodeagent.transfer.base import Meter, TransferSettings
from nodeagent.transfer.http_download import Downloads

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

async def main():
    async def no_token(identity):
        raise AssertionError
    async with Downloads(TransferSettings(), pathlib.Path(sys.argv[2]), no_token).connected() as downloads:
        meter = Meter("attempt", TransferPhase.DOWNLOADING)
        await downloads.fetch(sys.argv[1] + "small", path="p", meter=meter)
        before = peak()
        fetched = await downloads.fetch(sys.argv[1] + "large", path="p", meter=meter)
        print(peak() - before, fetched.size, fetched.path)

asyncio.run(main())
"""


async def test_memory_stays_flat(nginx: Nginx, tmp_path: Path) -> None:
    """A file of 300 MiB costs what is in flight: eight requests, less than 1 MiB each, and what libc keeps."""
    (nginx.www / "small").write_bytes(b"content")
    digest = hashlib.sha256()
    with (nginx.www / "large").open("wb") as file:
        for _ in range(300):
            content = os.urandom(MIB)
            digest.update(content)
            file.write(content)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _MEASURED, nginx.url(""), str(tmp_path / "staging")), stdout=subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    (nginx.www / "large").unlink()
    grown, size, path = output.decode().split()
    assert int(size) == 300 * MIB
    with Path(path).open("rb") as staged:
        assert hashlib.file_digest(staged, "sha256").digest() == digest.digest()
    Path(path).unlink()
    assert int(grown) < 48 * MIB


async def test_a_server_that_is_killed_and_comes_back(
    tmp_path: Path, connect: Connect, meter: CountedMeter, short_pauses: None
) -> None:
    """All ranges in flight are cut; none begins anew from its first byte, and the file from its own."""
    content = os.urandom(48 * MIB)
    settings = TransferSettings(range_bytes=4 * MIB, transfer_tries=200, transfers=4)
    with running_nginx(tmp_path / "nginx", "limit_rate 8m;") as slow:
        (slow.www / "file").write_bytes(content)
        async with connect(settings) as downloads:
            download = asyncio.create_task(_fetched(downloads, slow.url("file"), meter))
            while meter.held < 12 * MIB:
                await asyncio.wait([download], timeout=0.02)
                assert not download.done()
            slow.kill()
            await asyncio.to_thread(slow.start)
            fetched = await asyncio.wait_for(download, 60)
        logged = (slow.folder / "access.log").read_text().splitlines()
    assert fetched.path.read_bytes() == content
    assert (meter.held, meter.thrown_away) == (len(content), 0)
    sent = sum(int(line.split()[9]) for line in logged)
    assert sent < len(content)  # of both lives; what was cut is not logged


async def test_a_file_that_is_known_is_not_sent(nginx: Nginx, connect: Connect, meter: CountedMeter) -> None:
    """Asked with what is known of it, the server says whether that is still so."""
    (nginx.www / "kept").write_bytes(b"one")
    async with connect() as downloads:
        known = (await _fetched(downloads, nginx.url("kept"), meter)).validator
        assert known is not None
        again = await downloads.fetch(nginx.url("kept"), path="p", meter=meter, known=known)
        by_date = Validator(None, known.last_modified)
        assert again == NotModified()
        assert await downloads.fetch(nginx.url("kept"), path="p", meter=meter, known=by_date) == NotModified()
        assert await downloads.authorize(nginx.url("kept"), path="p", known=known)
        assert await downloads.authorize(nginx.url("kept"), path="p", known=by_date)
        (nginx.www / "kept").write_bytes(b"another")
        assert not await downloads.authorize(nginx.url("kept"), path="p", known=known)
        other = await downloads.fetch(nginx.url("kept"), path="p", meter=meter, known=known)
        assert isinstance(other, Fetched)
        assert other.path.read_bytes() == b"another"
        (nginx.www / "kept").write_bytes(b"")
        assert not await downloads.authorize(nginx.url("kept"), path="p", known=known)


async def test_names_that_urls_write_in_other_ways(nginx: Nginx, connect: Connect, meter: CountedMeter) -> None:
    """A URL that is coded is sent as it is; one that is not is coded first."""
    names = {"a b": "a%20b", "ä+%": "%C3%A4+%25", "ö ü": "ö ü", 'q"<>^`{|}': 'q"<>^`{|}'}
    async with connect() as downloads:
        for name, written in names.items():
            (nginx.www / name).write_text(name)
            assert (await _fetched(downloads, nginx.url(written), meter)).path.read_text() == name


async def test_what_was_left_in_the_staging_folder_goes(staging: Path, connect: Connect) -> None:
    """Whoever was killed had not given those files to anyone."""
    staging.mkdir()
    (staging / "half").write_bytes(b"half")
    (staging / "folder").mkdir()
    (staging / "folder" / "file").write_bytes(b"x")
    (staging / "link").symlink_to("/")
    async with connect():
        assert list(staging.iterdir()) == []
    assert staging.exists()


async def test_a_blob_with_a_sas(container: Container, connect: Connect, meter: CountedMeter) -> None:
    """In ranges, with its checksum, and known afterwards."""
    content = os.urandom(3 * MIB + 5)
    md5 = bytearray(hashlib.md5(content, usedforsecurity=False).digest())
    container.client.upload_blob("a folder/ä", content, content_settings=ContentSettings(content_md5=md5))
    url = container.blob_url("a folder/ä")
    async with connect(SMALL_RANGES) as downloads:
        fetched = await _fetched(downloads, url, meter)
        assert fetched.path.read_bytes() == content
        assert fetched.validator is not None
        known = fetched.validator
        assert await downloads.fetch(url, path="p", meter=meter, known=known) == NotModified()
        assert await downloads.authorize(url, path="p", known=known)
        container.put("a folder/ä", b"other")
        assert not await downloads.authorize(url, path="p", known=known)
        container.put("empty", b"")
        assert (await _fetched(downloads, container.blob_url("empty"), meter)).size == 0


async def test_a_blob_that_is_not_what_its_checksum_says(
    container: Container, connect: Connect, meter: CountedMeter, staging: Path, short_pauses: None
) -> None:
    """The checksum of the whole blob comes with each range."""
    wrong = ContentSettings(content_md5=bytearray(16))
    container.client.upload_blob("b", os.urandom(2 * MIB))
    container.client.get_blob_client("b").set_http_headers(wrong)
    async with connect(TransferSettings(range_bytes=MIB, transfer_tries=2)) as downloads:
        with pytest.raises(TransferFailedError) as raised:
            await downloads.fetch(container.blob_url("b"), path="data/b", meter=meter)
    assert raised.value.failure.code == "BlobDownloadMiscError"
    found = details(raised.value)
    assert found["Checksum"] == "x-ms-blob-content-md5"
    assert found["Attempts"] == "2"
    assert (meter.held, meter.thrown_away) == (0, 4 * MIB)
    assert list(staging.iterdir()) == []


async def test_why_a_blob_cannot_be_had(container: Container, connect: Connect, meter: CountedMeter) -> None:
    """The storage's own word for it is told, and the SAS is not."""
    container.put("there", b"x")
    cases = {
        container.blob_url("missing"): ("BlobNotFound", "404", "BlobNotFound"),
        container.client.get_blob_client("there").url: ("BlobAccessDenied", "403", "AuthorizationFailure"),
        container.blob_url("there", "w"): ("BlobAccessDenied", "403", "AuthorizationPermissionMismatch"),
        container.blob_url("there")[:-6] + "AAA%3D": ("BlobAccessDenied", "403", "AuthorizationFailure"),
    }
    async with connect() as downloads:
        for url, (code, status, storage_code) in cases.items():
            for known in (None, Validator('"x"', None)):
                asked = (
                    downloads.fetch(url, path="data/b", meter=meter)
                    if known is None
                    else downloads.authorize(url, path="data/b", known=known)
                )
                with pytest.raises(TransferFailedError) as raised:
                    await asked
                found = details(raised.value)
                assert raised.value.failure.code == code
                assert (found["HttpStatus"], found["StorageErrorCode"]) == (status, storage_code)
                assert found["FilePath"] == "data/b"
                assert found["BlobSource"] == url.partition("?")[0]
                assert found["RequestId"]
                assert found["Attempts"] == "1"
