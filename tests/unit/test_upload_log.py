"""fileuploadout.txt and fileuploaderr.txt: whose they are, and what a task can't make of them."""

import os
from pathlib import Path

import structlog

from nodeagent.transfer.upload_log import UploadLog


async def written(root: Path, line: str, *, anew: bool) -> str:
    """Write a line, return what the file holds then."""
    async with UploadLog(root, None, anew=anew) as log:
        await log.told(line)
    return (root / "fileuploadout.txt").read_text()


async def test_a_second_life_goes_on_with_the_file(tmp_path: Path) -> None:
    """A new execution begins a new one."""
    await written(tmp_path, "one", anew=True)
    both = await written(tmp_path, "two", anew=False)
    assert [line.split()[1] for line in both.splitlines()] == ["one", "two"]
    assert [line.split()[1] for line in (await written(tmp_path, "three", anew=True)).splitlines()] == ["three"]


async def test_what_has_another_name_is_not_written_to(tmp_path: Path) -> None:
    """A task could have made it a second name of a file that it may not write."""
    other = tmp_path / "other"
    other.write_text("other")
    os.link(other, tmp_path / "fileuploadout.txt")
    assert (await written(tmp_path, "one", anew=False)).endswith(" one\n")
    assert other.read_text() == "other"


async def test_a_line_is_one_line(tmp_path: Path) -> None:
    """Surrogates of a name that is no UTF-8 do not stop it."""
    text = await written(tmp_path, os.fsdecode(b"\xff"), anew=True)
    assert text.endswith("\\udcff\n")


async def test_a_directory_that_is_gone_or_a_link_costs_only_the_log(tmp_path: Path) -> None:
    """The upload goes on; the agent's log says so."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for root in (tmp_path / "gone", tmp_path / "link"):
        with structlog.testing.capture_logs() as logs:
            async with UploadLog(root, None, anew=True) as log:
                await log.told("one")
        assert [line["event"] for line in logs] == ["upload logs can't be written"]
    assert list((tmp_path / "real").iterdir()) == []
