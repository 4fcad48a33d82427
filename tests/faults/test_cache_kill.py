"""The cache is killed at each step of its work: the next life has whole files only, and nothing is left over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cache_world import Web, world

URL = "http://h/file"
OTHER = "http://h/other"
CONTENTS = {URL: bytes(range(256)) * 400, OTHER: bytes(reversed(range(256))) * 400}
POINTS = (
    "fsync:before",
    "fsync:after",
    "admit:before",
    "admit:after",
    "record:before",
    "record:after",
    "copy:before",
    "copy:after",
    "place:before",
    "place:after",
    "chown:after",
    "forget:before",
    "forget:after",
    "unlink:before",
    "unlink:after",
    "open:before",
    "open:after",
)

CHILD = '''
import asyncio, os, signal, sys
from pathlib import Path
from nodeagent.transfer import cache_store
from nodeagent.transfer.cache_index import CacheIndex
from tests.faults.test_cache_kill import CONTENTS, OTHER, URL
from tests.unit.cache_world import Web, world

folder, point = Path(sys.argv[1]), sys.argv[2]
name, _, moment = point.partition(":")


def killing(owner, attribute, when=lambda *_, **__: True):
    """Kill this process before or after the first call that is meant."""
    real = getattr(owner, attribute)

    def call(*arguments, **named):
        meant = when(*arguments, **named)
        if meant and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **named)
        if meant:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, attribute, call)


def arm():
    if name == "fsync":
        killing(os, "fsync")
    elif name == "admit":
        killing(Path, "rename", lambda _, target: Path(target).parent.name == "entries")
    elif name == "record":
        killing(CacheIndex, "add")
    elif name == "copy":
        killing(cache_store, "clone")
        killing(cache_store, "copy")
    elif name == "place":
        killing(os, "rename", lambda *_, **named: "dst_dir_fd" in named)
    elif name == "chown":
        killing(os, "fchmod", lambda _, mode: mode == 0o750)
    elif name == "forget":
        killing(CacheIndex, "remove", lambda _, names: bool(list(names)))
    elif name == "unlink":
        killing(cache_store, "_remove", lambda paths: bool(paths))
    elif name == "open":
        killing(CacheIndex, "open")


async def main():
    web = Web(folder / "staging", {url: (content, '"1"') for url, content in CONTENTS.items()})
    if name == "open":
        arm()
    async with world(folder, max_bytes=210_000, web=web) as there:
        await there.bring(OTHER, "before")
        await there.cache._store.settle()
        arm()
        await there.wave([URL] * 3)
        web.files[URL] = (CONTENTS[URL], '"2"')
        await there.bring(URL, "later")
    sys.exit(7)


asyncio.run(main())
'''


def killed(folder: Path, point: str) -> None:
    """Run the child until it is killed, and look at what tasks have of it."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, folder, point],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": "."},
        timeout=60,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    for file in folder.glob("tasks/*/in/f"):
        assert file.read_bytes() == CONTENTS[OTHER if file.parts[-3] == "before" else URL]
        assert file.stat().st_mode & 0o777 == 0o750
    for file in (folder / "staging").glob("*"):
        file.unlink()  # as `Downloads.connected` does


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at(tmp_path: Path, point: str) -> None:
    """A file of a task is whole or not there, a cached file is what was put there, and nothing else is left."""
    killed(tmp_path, point)
    web = Web(tmp_path / "staging", {url: (content, '"1"') for url, content in CONTENTS.items()})
    async with world(tmp_path, max_bytes=210_000, web=web) as there:
        there.assert_tidy()
        for number, (url, content) in enumerate(CONTENTS.items()):
            assert await there.bring(url, f"next{number}") == content
        there.assert_tidy()
        assert len(there.entries) == 2
        # What was cached before the kill is still there, unless that came before anything was.
        assert (OTHER in web.fetched) == point.startswith("open")
