"""Measuring and taking away what a task wrote, whatever it put there."""

import os
from pathlib import Path

from nodeagent.agent.ballast import Ballast
from nodeagent.agent.disk_usage import KEPT_OUTPUT_BYTES, free_bytes, take_away, used_bytes

MIB = 1 << 20


def test_each_file_counts_once_and_links_are_not_followed(tmp_path: Path) -> None:
    """Hard links share their blocks, symbolic links lead elsewhere, holes take nothing; what is gone is 0."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "huge").write_bytes(b"x" * 8 * MIB)
    task = tmp_path / "task"
    (task / "wd" / "deep").mkdir(parents=True)
    (task / "wd" / "deep" / "f").write_bytes(b"x" * MIB)
    os.link(task / "wd" / "deep" / "f", task / "wd" / "same")
    (task / "wd" / "away").symlink_to(outside)
    with (task / "wd" / "hole").open("wb") as file:
        file.truncate(100 * MIB)
    assert MIB <= used_bytes(task) < 2 * MIB
    assert used_bytes(tmp_path / "none") == 0
    assert used_bytes(task / "wd" / "away") == 0


def test_a_tree_that_is_too_deep_is_counted_as_far_as_it_is_looked_into(tmp_path: Path) -> None:
    """It costs no more handles than allowed, and no error."""
    path = tmp_path
    for _ in range(300):
        path = path / "d"
    path.mkdir(parents=True)
    (tmp_path / "d" / "f").write_bytes(b"x" * MIB)
    assert used_bytes(tmp_path) >= MIB


def test_taking_away_leaves_an_empty_wd_and_the_beginning_of_the_output(tmp_path: Path) -> None:
    """All else goes into the bin; output that is a link or has another name is left alone."""
    task, bin_, precious = tmp_path / "task", tmp_path / "bin", tmp_path / "precious"
    (task / "wd" / "sub").mkdir(parents=True)
    bin_.mkdir()
    precious.write_bytes(b"p" * 2 * MIB)
    (task / "wd" / "big").write_bytes(b"x" * MIB)
    (task / "other").write_bytes(b"x")
    (task / "stdout.txt").write_bytes(b"o" * 3 * MIB)
    (task / "stderr.txt").symlink_to(precious)
    take_away(task, bin_)
    assert sorted(path.name for path in task.iterdir()) == ["stderr.txt", "stdout.txt", "wd"]
    assert list((task / "wd").iterdir()) == []
    assert len(list(bin_.iterdir())) == 3
    assert (task / "stdout.txt").stat().st_size == KEPT_OUTPUT_BYTES
    assert precious.stat().st_size == 2 * MIB
    take_away(task, bin_)  # again, after a restart
    (task / "stdout.txt").unlink()
    os.link(precious, task / "stdout.txt")
    take_away(task, bin_)
    assert precious.stat().st_size == 2 * MIB


def test_a_wd_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """The task may have put anything in its place."""
    task, bin_, precious = tmp_path / "task", tmp_path / "bin", tmp_path / "precious"
    for path in (task, bin_, precious):
        path.mkdir()
    (precious / "f").write_text("stays")
    (task / "wd").symlink_to(precious)
    take_away(task, bin_)
    assert (precious / "f").read_text() == "stays"


def test_ballast_takes_its_space_all_or_nothing(tmp_path: Path) -> None:
    """It is really allocated, is made once, goes at once, and what cannot be had leaves no trace."""
    ballast = Ballast(tmp_path, 2 * MIB)
    assert ballast.make()
    assert ballast.make()
    assert ballast.path.stat().st_blocks * 512 >= 2 * MIB
    ballast.release()
    ballast.release()
    assert not ballast.held
    too_much = Ballast(tmp_path, free_bytes(tmp_path) * 4)
    assert not too_much.make()
    assert list(tmp_path.iterdir()) == []
    assert not Ballast(tmp_path, 0).make()
