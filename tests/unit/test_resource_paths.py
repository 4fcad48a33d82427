"""`filePath` and `fileMode`: what is taken, what is refused, and in which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.rules.resource_paths import checked, file_mode


@pytest.mark.parametrize(
    ("path", "components"),
    [
        ("a", ("a",)),
        ("a/b/c.txt", ("a", "b", "c.txt")),
        ("./a//b/./c/", ("a", "b", "c")),
        ("..a/b..", ("..a", "b..")),
        ("...", ("...",)),
        ("-rf", ("-rf",)),
        ("a b\n\t\x01\\c", ("a b\n\t\x01\\c",)),
        ("C:\\x", ("C:\\x",)),
        ("é" * 127, ("é" * 127,)),
        ("a" * 255, ("a" * 255,)),
        ("/".join(["d" * 204] * 20)[:4095], tuple(["d" * 204] * 19 + ["d" * 200])),
    ],
)
def test_every_name_that_linux_takes_is_taken(path: str, components: tuple[str, ...]) -> None:
    """Every name that linux takes is taken."""
    assert checked(path) == components


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "must name a file"),
        (".", "must name a file"),
        ("././/", "must name a file"),
        ("/etc/passwd", "must be relative"),
        ("//host/share", "must be relative"),
        ("..", "must not leave"),
        ("a/../b", "must not leave"),
        ("a/..", "must not leave"),
        ("../../x", "must not leave"),
        ("a\0b", "NUL"),
        ("a" * 256, "255 bytes"),
        ("é" * 128, "255 bytes"),
        ("a/" * 2048, "4095 bytes"),
        ("a\ud800", "UTF-8"),
    ],
)
def test_what_would_be_right_is_said(path: str, why: str) -> None:
    """What would be right is said."""
    with pytest.raises(ValueError, match=why):
        checked(path)


@given(st.text(st.sampled_from("ab./\0é\ud800 ~\\"), max_size=30) | st.text(max_size=300))
def test_what_is_taken_stays_below_and_is_taken_again(path: str) -> None:
    """What is taken stays below and is taken again."""
    try:
        components = checked(path)
    except ValueError:
        return
    assert components
    for component in components:
        assert component not in ("", ".", "..")
        assert not set(component) & {"/", "\0"}
        assert len(component.encode()) <= 255
    assert checked("/".join(components)) == components


@pytest.mark.parametrize(
    ("text", "mode"), [(None, 0o770), ("0755", 0o755), ("755", 0o755), ("0o644", 0o644), ("04755", 0o4755), ("000", 0)]
)
def test_modes(text: str | None, mode: int) -> None:
    """Modes."""
    assert file_mode(text) == mode


@pytest.mark.parametrize(
    "text", ["", "0o", "0x7", "789", "rwx", "+755", "-755", "7_5_5", "77777", "\u0667\u0665\u0665"]
)
def test_what_is_no_mode(text: str) -> None:
    """What is no mode."""
    with pytest.raises(ValueError, match="the mode must"):
        file_mode(text)
