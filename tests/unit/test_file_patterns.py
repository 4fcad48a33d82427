"""Patterns of outputFiles: the table of spec/node.md §5, and a matcher that is slow and plain as the reference."""

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.rules.file_patterns import FilePatternError, expanded, file_pattern

ENVIRONMENT = {"AZ_BATCH_TASK_ID": "t1", "OUT": "results", "WILD": "*.csv"}


def matches(pattern: str, path: str) -> bool:
    """Tell whether a pattern matches a path, both relative to wd."""
    parsed = file_pattern(pattern, ENVIRONMENT)
    base = f"{parsed.base.rstrip('/')}/" if parsed.base else ""
    return path.startswith(base) and parsed.matches(path.removeprefix(base).split("/"))


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*", "a.txt"),
        ("*.txt", "a.txt"),
        ("a*c", "ac"),
        ("a*c", "abbbc"),
        ("a*b*c", "a1b2b3c"),
        ("?", "é"),
        ("a?c", "abc"),
        ("[abc].txt", "b.txt"),
        ("[a-c].txt", "b.txt"),
        ("[!a-c].txt", "d.txt"),
        ("[]x].txt", "].txt"),
        ("[a-].txt", "-.txt"),
        ("abc[*]", "abc*"),
        ("abc[?]d", "abc?d"),
        ("a[b", "a[b"),
        (".*.gif", ".a.gif"),
        ("[.]*.gif", ".a.gif"),
        ("**/*.txt", "a.txt"),
        ("**/*.txt", "x/y/a.txt"),
        ("out/**/*.csv", "out/a.csv"),
        ("out/**/*.csv", "out/a/b.csv"),
        ("out/**", "out/a/b/c"),
        ("**/x/**/z", "x/z"),
        ("**/x/**/z", "x/x/y/z"),
        ("**/**/a", "a"),
        (".git/*", ".git/config"),
        ("**/.git/*", "a/.git/config"),
        ("./a//b", "a/b"),
        ("$OUT/*", "results/a"),
        ("${OUT}/$AZ_BATCH_TASK_ID.txt", "results/t1.txt"),
        ("$WILD", "a.csv"),
        ("$NOT_THERE/a", "$NOT_THERE/a"),
        ("../std*.txt", "../stdout.txt"),
        ("../stdout.txt", "../stdout.txt"),
        ("/mnt/data/*.bin", "/mnt/data/a.bin"),
        ("/*", "/etc"),
        ("naïve ☃.txt", "naïve ☃.txt"),
    ],
)
def test_a_pattern_matches_what_its_documentation_says(pattern: str, path: str) -> None:
    """Each form of the table, and its corners."""
    assert matches(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*", "a/b"),
        ("*", ".a"),
        ("?a", ".a"),
        ("[!x]a", ".a"),
        ("*.gif", ".a.gif"),
        ("**/*.txt", ".x/a.txt"),
        ("**/*.txt", "x/.a.txt"),
        ("out/**", "out/.a"),
        ("a?c", "ac"),
        ("a?c", "a/c"),
        ("[abc]", "d"),
        ("[!abc]", "b"),
        ("abc[*]", "abcd"),
        ("a*c", "acd"),
        ("A.txt", "a.txt"),
        ("x/**/z", "z"),
        ("*/a", "a"),
        ("[b-a]", "b"),
    ],
)
def test_a_pattern_does_not_match_what_it_should_not(pattern: str, path: str) -> None:
    """Hidden names, separators, case."""
    assert not matches(pattern, path)


@pytest.mark.parametrize("pattern", ["", ".", "/", "./", "a\0b", "*/../a", "a/..", "$EMPTY"])
def test_a_pattern_that_names_no_file_is_refused(pattern: str) -> None:
    """The text says what would be right."""
    with pytest.raises(FilePatternError, match="filePattern must"):
        file_pattern(pattern, {"EMPTY": ""})


@pytest.mark.parametrize(
    ("pattern", "base", "wild"),
    [
        ("out/**/*.csv", "out", True),
        ("../std*.txt", "..", True),
        ("../stdout.txt", "..", False),
        ("/a/b/*", "/a/b", True),
        ("/a", "/", False),
        ("*", "", True),
        ("a/b[*]c/d", "a/b*c", False),
        ("a/[xy]/d", "a", True),
    ],
)
def test_the_base_is_what_comes_before_the_first_wildcard(pattern: str, base: str, *, wild: bool) -> None:
    """A class of one character is an escape, not a wildcard."""
    parsed = file_pattern(pattern, {})
    assert (parsed.base, parsed.has_wildcard) == (base, wild)


def test_variables_are_replaced_once_and_unknown_ones_stay() -> None:
    """What a value holds is not expanded again."""
    assert expanded("$A-${B}-$C-$$A-${", {"A": "$B", "B": "2"}) == "$B-2-$C-$$B-${"


def test_links_to_directories_are_followed_only_where_they_are_named() -> None:
    """So what wildcards find is a tree, and no circle of links is walked."""
    pattern = file_pattern("**/lib/*/a", {})
    start = pattern.start()
    named = pattern.step(start, "lib", through_link=True)
    assert pattern.goes_deeper(named)
    assert not pattern.goes_deeper(pattern.step(start, "other", through_link=True))
    assert not pattern.goes_deeper(pattern.step(named, "x", through_link=True))
    assert pattern.goes_deeper(pattern.step(named, "x"))


def test_no_pattern_makes_matching_slow() -> None:
    """With a naive matcher this takes longer than a life."""
    pattern = file_pattern("*a" * 60 + "b", {})
    began = time.process_time()
    assert not pattern.matches(["a" * 255])
    deep = file_pattern("/".join(["**", "*"] * 30) + "/b", {})
    assert not deep.matches(["a"] * 200)
    assert time.process_time() - began < 5


NAMES = st.text("ab.-*", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
COMPONENTS = st.one_of(st.just("**"), st.text("ab.*?[]!-", min_size=1, max_size=6)).filter(
    lambda name: name not in (".", "..")
)


def reference(pattern: list[str], path: list[str]) -> bool:
    """Match as the definition says, trying everything."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        if len(pattern) == 1:
            return bool(path) and not any(name.startswith(".") for name in path)
        deeper = bool(path) and not path[0].startswith(".") and reference(pattern, path[1:])
        return deeper or reference(pattern[1:], path)
    return bool(path) and one_name(pattern[0], path[0]) and reference(pattern[1:], path[1:])


def one_name(pattern: str, name: str) -> bool:
    """The standard library's matcher, which knows nothing of hidden names."""
    names_dot = pattern.startswith((".", "[.]"))
    return fnmatch.fnmatchcase(name, pattern) and (names_dot or not name.startswith(".") or literal(pattern) == name)


def literal(pattern: str) -> str | None:
    """Return the one name that a pattern stands for, found by trying: only for names of hidden files."""
    candidate = pattern.replace("[.]", ".").replace("[*]", "*")
    return candidate if not any(mark in candidate for mark in "*?[") else None


@given(st.lists(COMPONENTS, min_size=1, max_size=5), st.lists(NAMES, min_size=1, max_size=5))
def test_matching_agrees_with_the_definition(pattern: list[str], path: list[str]) -> None:
    """Against brute force with fnmatch for single names."""
    parsed = file_pattern("/".join(pattern), {})
    base = [part for part in parsed.base.split("/") if part]
    found = path[: len(base)] == base and parsed.matches(path[len(base) :])
    assert found == reference(pattern, path)
