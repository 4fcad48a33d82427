"""File patterns of outputFiles: what they match, decided without a look at any file (spec/node.md §5).

    *       any characters of one name, also none        ?      one character
    [a-c]   one of these, [!a-c] none of these           a[*]   a class of one character is that character
    **      any depth of directories, also none; at the end: every file below

A name that begins with a dot is matched only where the pattern has that dot. A literal name never is a wildcard.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_REFERENCE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_ANY_DEPTH = "**"

States = frozenset[int]
"""Which parts of a pattern may come next: see `FilePattern.start`."""


class FilePatternError(ValueError):
    """A pattern that can't be used; its text says what would be right."""


@dataclass(frozen=True, slots=True)
class _Class:
    """One character out of some ranges, or out of all others."""

    ranges: tuple[tuple[str, str], ...]
    negated: bool = False

    def accepts(self, character: str) -> bool:
        """Tell whether it is one of them."""
        return any(first <= character <= last for first, last in self.ranges) is not self.negated


_Token = _Class | None
"""None is a star."""
_ANY_CHARACTER = _Class((), negated=True)


@dataclass(frozen=True, slots=True)
class Part:
    """One component of a pattern. Neither tokens nor literal: `**`."""

    literal: str | None = None
    """The one name that it matches."""
    tokens: tuple[_Token, ...] = ()
    names_dot: bool = False
    """It begins with a dot of its own, so hidden names are meant."""

    @property
    def is_any_depth(self) -> bool:
        """It is `**`."""
        return self.literal is None and not self.tokens

    def matches(self, name: str) -> bool:
        """Tell whether one name is matched. Takes at most as many steps as name times pattern are long."""
        if self.literal is not None:
            return name == self.literal
        if _is_hidden(name) and not self.names_dot:
            return False
        return _fits(self.tokens, name)


@dataclass(frozen=True, slots=True)
class FilePattern:
    """A pattern, parsed: the directory before its first wildcard, and what is matched below."""

    text: str
    """After the expansion of variables."""
    base: str
    """Directory before the first wildcard, or of the one file: absolute, or relative to wd (empty: wd itself)."""
    parts: tuple[Part, ...]
    """At least one; the last is never `**`."""

    @property
    def has_wildcard(self) -> bool:
        """It may match more than one file; else `parts` is the file's name."""
        return len(self.parts) > 1 or self.parts[0].literal is None

    def start(self) -> States:
        """Return where matching begins, in the base directory."""
        return self._closed({0})

    def step(self, states: States, name: str, *, through_link: bool = False) -> States:
        """Return where matching is after one more component; nothing left means that nothing there can match.

        A link to a directory (`through_link`) is followed only where the pattern names it: what wildcards find
        is a tree, and ends.
        """
        following: set[int] = set()
        for state in states:
            if state == len(self.parts):
                continue
            part = self.parts[state]
            if part.is_any_depth:
                if not through_link and not _is_hidden(name):
                    following.add(state)
            elif part.matches(name) and (part.literal is not None or not through_link):
                following.add(state + 1)
        return self._closed(following)

    def is_match(self, states: States) -> bool:
        """Tell whether a file found there is matched."""
        return len(self.parts) in states

    def goes_deeper(self, states: States) -> bool:
        """Tell whether something below a directory found there can be matched."""
        return any(state < len(self.parts) for state in states)

    def matches(self, components: Sequence[str]) -> bool:
        """Tell whether a file is matched: its path relative to the base directory, without links on the way."""
        states = self.start()
        for name in components:
            states = self.step(states, name)
        return self.is_match(states)

    def _closed(self, states: Iterable[int]) -> States:
        """Add what follows each `**`: it may stand for no directory at all."""
        closed = set(states)
        for state in sorted(closed):
            if state < len(self.parts) and self.parts[state].is_any_depth:
                closed.add(state + 1)  # two of them never stand side by side
        return frozenset(closed)


def expanded(text: str, environment: Mapping[str, str]) -> str:
    """Replace `$NAME` and `${NAME}`; unknown names are left as they are."""
    return _REFERENCE.sub(lambda found: environment.get(found[1] or found[2], found[0]), text)


def file_pattern(text: str, environment: Mapping[str, str]) -> FilePattern:
    """Parse a `filePattern` with the task's environment. Raises FilePatternError."""
    text = expanded(text, environment)
    if "\0" in text:
        raise FilePatternError("filePattern must not contain a NUL character")
    names = [name for name in text.split("/") if name not in ("", ".")]
    if not names:
        raise FilePatternError("filePattern must name a file, not only a directory")
    parts = [_part(name) for name in names]
    wild = [number for number, part in enumerate(parts) if part.literal is None]
    first = wild[0] if wild else len(parts) - 1
    if ".." in names[first:]:
        raise FilePatternError("filePattern must have '..' only before its first wildcard and its file name")
    base = "/".join(part.literal or "" for part in parts[:first])
    return FilePattern(text, f"/{base}" if text.startswith("/") else base, _without_repeats(parts[first:]))


def _without_repeats(parts: Sequence[Part]) -> tuple[Part, ...]:
    kept: list[Part] = []
    for part in parts:
        if not (part.is_any_depth and kept and kept[-1].is_any_depth):
            kept.append(part)
    if kept[-1].is_any_depth:
        kept.append(Part(tokens=(None,)))
    return tuple(kept)


def _part(name: str) -> Part:
    if name == _ANY_DEPTH:
        return Part()
    tokens: list[_Token] = []
    position = 0
    while position < len(name):
        token, position = _token(name, position)
        if token is not None or not tokens or tokens[-1] is not None:  # several stars are one
            tokens.append(token)
    characters = [_single(token) for token in tokens]
    if all(character is not None for character in characters):
        return Part(literal="".join(character or "" for character in characters))
    return Part(tokens=tuple(tokens), names_dot=characters[0] == ".")


def _token(name: str, position: int) -> tuple[_Token, int]:
    character = name[position]
    if character == "*":
        return None, position + 1
    if character == "?":
        return _ANY_CHARACTER, position + 1
    if character == "[":
        negated = name[position + 1 : position + 2] == "!"
        begins = position + 1 + negated
        ends = name.find("]", begins + 1)  # a bracket that comes first is one of the class
        if ends > 0:
            return _Class(_ranges(name[begins:ends]), negated), ends + 1
    return _Class(((character, character),)), position + 1


def _ranges(text: str) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        if text[position + 1 : position + 2] == "-" and position + 2 < len(text):
            found.append((text[position], text[position + 2]))
            position += 3
        else:
            found.append((text[position], text[position]))
            position += 1
    return tuple(found)


def _single(token: _Token) -> str | None:
    """Return the one character that a token stands for."""
    if token is None or token.negated or len(token.ranges) != 1:
        return None
    ((first, last),) = token.ranges
    return first if first == last else None


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _fits(tokens: Sequence[_Token], name: str) -> bool:
    """Match with the last star only taken back: no pattern takes more than len(tokens) * len(name) steps."""
    at_token = at_name = 0
    star, resumed = -1, 0
    while at_name < len(name):
        token = tokens[at_token] if at_token < len(tokens) else _END
        if token is None:
            star, resumed = at_token, at_name
            at_token += 1
        elif token.accepts(name[at_name]):
            at_token += 1
            at_name += 1
        elif star >= 0:
            resumed += 1
            at_token, at_name = star + 1, resumed
        else:
            return False
    return all(token is None for token in tokens[at_token:])


_END = _Class(())
"""Accepts nothing."""
