"""Files of any name that Linux allows: listed, read, described, deleted, through the SDK and by their own URLs."""

import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from azure.batch import models

from nodeagent.local.signing import authorization
from nodeagent.model.times import http_date, utc_now
from tests.integration.batch_endpoint import BatchEndpoint, Sdk, completed, job

pytest_plugins = ["tests.integration.batch_fixtures"]

NAMES = [
    "plain.txt",
    "two words.txt",
    "100%.txt",
    "%41.txt",
    "%2F.txt",
    "a?b#c&d=e+f.txt",
    "back\\slash",
    "line\nbreak",
    "tab\tand\x01control",
    "quote'\"`$(x).txt",
    "-rf",
    " leading and trailing ",
    ".hidden",
    "...",
    "größe-日本-🙂.txt",
    "e\u0301 is not \u00e9",
    "semi;colon:comma,",
    "x" * 255,
    "~tilde",
]
RAW = [b"latin-\xe9.txt", b"\xff\xfe", b"cut-\xf0\x9f", b"overlong-\xc0\xaf", b"surrogate-\xed\xa0\x80"]
"""Names that are no UTF-8."""

SCRIPT = """
import os, sys
for name in sys.stdin.buffer.read().split(b"/")[:-1]:
    with open(name, "wb") as file: file.write(b"in " + name)
"""


def write(folder: Path) -> str:
    """Return a command line that makes all files in its working directory, each with its name as its content."""
    script = folder / "make.py"
    listing = folder / "names"
    script.write_text(SCRIPT.replace("sys.stdin.buffer", "open(sys.argv[1], 'rb')"))
    listing.write_bytes(b"".join(name + b"/" for name in [*(name.encode() for name in NAMES), *RAW]))
    return f"{sys.executable} {script} {listing}"


def signed(endpoint: BatchEndpoint, method: str, url: str) -> tuple[bytes, str]:
    """Send a request for a URL as it stands; return content and length header."""
    url = f"{url}?api-version=2025-06-01"
    headers = {"ocp-date": http_date(utc_now())}
    headers["Authorization"] = authorization(endpoint.account, endpoint.key, method, url, headers)
    with urlopen(Request(url, headers=headers, method=method), timeout=30) as answer:  # noqa: S310 - our own service
        return bytes(answer.read()), str(answer.headers["Content-Length"])


@pytest.fixture
def listed(client: Sdk, job_id: str, tmp_path: Path) -> dict[str, Sdk]:
    """Run the task that makes the files; return them by the last part of their encoded name."""
    client.create_job(job(job_id))
    tmp_path.chmod(0o755)
    client.create_task(job_id, models.BatchTaskCreateOptions(id="t", command_line=write(tmp_path)))
    assert completed(client, job_id, "t").execution_info.exit_code == 0
    files = client.list_task_files(job_id, "t", recursive=True, max_results=3)
    return {file.url.rpartition("/wd/")[2]: file for file in files if not file.is_directory and "/wd/" in file.url}


def test_every_name_is_listed_and_opened(
    client: Sdk, job_id: str, batch_endpoint: BatchEndpoint, listed: dict[str, Sdk]
) -> None:
    """Pages of three give each file once; the name opens it through the SDK, the URL opens it by itself."""
    names = [file.name.removeprefix("wd/") for file in listed.values()]
    assert len(listed) == len(NAMES) + len(RAW)
    assert sorted(name for name in names if "\ufffd" not in name) == sorted(NAMES)
    for file in listed.values():
        name = file.name.removeprefix("wd/")
        content, length = signed(batch_endpoint, "GET", file.url)
        assert content.startswith(b"in ")
        assert content[3:].decode(errors="replace") == name
        assert signed(batch_endpoint, "HEAD", file.url) == (b"", length)
        if name in NAMES:
            assert b"".join(client.download_task_file(job_id, "t", file.name)) == content
            assert int(client.get_task_file_properties(job_id, "t", file.name).content_length) == len(content)
    raw = {signed(batch_endpoint, "GET", file.url)[0][3:] for file in listed.values() if "\ufffd" in file.name}
    assert raw == set(RAW)


def test_names_are_filtered_and_deleted(
    client: Sdk, job_id: str, batch_endpoint: BatchEndpoint, listed: dict[str, Sdk]
) -> None:
    """`startswith` compares what is shown; a file goes by its name or by its URL, and nothing else goes with it."""
    for prefix in ("wd/100%", "wd/%2", "wd/größe", "wd/quote''", "wd/line\n"):
        found = list(client.list_task_files(job_id, "t", recursive=True, filter=f"startswith(name,'{prefix}')"))
        assert [file.name.startswith(prefix.replace("''", "'")) for file in found] == [True], prefix
    for name in ("100%.txt", "%2F.txt", "a?b#c&d=e+f.txt", "line\nbreak", "-rf"):
        client.delete_task_file(job_id, "t", f"wd/{name}")
    raw = [file.url for file in listed.values() if "\ufffd" in file.name]
    for url in raw:
        signed(batch_endpoint, "DELETE", url)
    left = [file.name for file in client.list_task_files(job_id, "t", recursive=True) if not file.is_directory]
    assert len(left) == 2 + len(NAMES) - 5
    assert not any("\ufffd" in name for name in left)
