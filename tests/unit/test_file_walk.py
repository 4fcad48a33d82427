"""What a pattern finds on a disk: each file once, and an end whatever the tree looks like."""

import os
from pathlib import Path

import pytest

from nodeagent.rules.file_patterns import file_pattern
from nodeagent.transfer.file_walk import find, identity_of, size_in


def found(pattern: str, wd: Path) -> list[str]:
    """Return the files that a pattern finds, relative to its base."""
    return [file.relative for file in find(file_pattern(pattern, {}), str(wd)).files]


def make(wd: Path, *names: str) -> None:
    """Make files."""
    for name in names:
        (wd / name).parent.mkdir(parents=True, exist_ok=True)
        (wd / name).write_text(name)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**", ["a.txt", "x/b.txt", "x/y/c.txt"]),
        ("**/*.txt", ["a.txt", "x/b.txt", "x/y/c.txt"]),
        ("*/*.txt", ["x/b.txt"]),
        ("x/**/c.*", ["y/c.txt"]),
        ("**/.*", [".h"]),
        ("**/x/**", ["x/b.txt", "x/y/c.txt"]),
        ("../wd/*.txt", ["a.txt"]),
        ("gone/*", []),
        ("a.txt/*", []),
        ("a.txt", ["a.txt"]),
        ("x", []),
    ],
)
def test_files_below_the_base(tmp_path: Path, pattern: str, names: list[str]) -> None:
    """The same as the pure matcher says, found by looking only where something can match."""
    wd = tmp_path / "wd"
    make(wd, "a.txt", "x/b.txt", "x/y/c.txt", ".h", ".hidden/d.txt")
    assert found(pattern, wd) == names
    assert found(f"{wd}/{pattern}", tmp_path) == names


def test_links_to_directories_are_followed_only_by_name(tmp_path: Path) -> None:
    """So a circle is no trap; a file that two names lead to is found under both."""
    make(tmp_path, "real/a")
    for name in ("one", "two", "three"):
        (tmp_path / "real" / name).symlink_to("..")
    (tmp_path / "link").symlink_to("real")
    assert found("**", tmp_path) == ["real/a"]
    assert found("*/*", tmp_path) == ["real/a"]
    assert found("link/*", tmp_path) == ["a"]
    assert found("real/one/real/*", tmp_path) == ["a"]
    assert found("re?l/one/real/a", tmp_path) == ["real/one/real/a"]


def test_fifty_thousand_files_and_a_deep_tree(tmp_path: Path) -> None:
    """Each is found once; handles do not pile up with the depth."""
    for directory in range(50):
        (tmp_path / str(directory)).mkdir()
        for number in range(1000):
            os.close(os.open(tmp_path / str(directory) / str(number), os.O_CREAT | os.O_WRONLY))
    make(tmp_path, "/".join(["d"] * 300) + "/deep")
    before = len(list(Path("/proc/self/fd").iterdir()))
    names = found("**", tmp_path)
    assert len(names) == len(set(names)) == 50_001
    assert names == sorted(names)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_identity_tells_contents_apart(tmp_path: Path) -> None:
    """By inode, size and time to the nanosecond."""
    file = tmp_path / "a"
    file.write_text("12345")
    first = file.stat()
    assert size_in(identity_of(first)) == 5
    os.utime(file, ns=(first.st_atime_ns, first.st_mtime_ns + 1))
    assert identity_of(file.stat()) != identity_of(first)
