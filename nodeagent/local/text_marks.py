"""Where in a JSON or YAML text a property stands: PyYAML's marks serve both, as JSON is (nearly) YAML."""

from collections.abc import Iterator

import yaml

Location = tuple[str | int, ...]
"""Steps from the document's root: names of properties and indices of lists."""


def loader() -> type[yaml.SafeLoader]:
    """Return the safe loader, the one in C where it was compiled."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Marks:
    """Finds lines and columns in one text.

    The text has been parsed before; what only PyYAML cannot read of it (JSON allows a few characters more) makes
    every place unknown rather than an error.
    """

    def __init__(self, text: str) -> None:
        try:
            # JSON may be indented by tabs, which YAML forbids; a blank keeps every column where it was.
            self._root = yaml.compose(text.replace("\t", " "), Loader=loader())
        except (yaml.YAMLError, ValueError, RecursionError):
            self._root = None

    def find(self, location: Location) -> tuple[int, int]:
        """Return line and column, from 1, of the deepest part of `location` that exists; (0, 0) if unknown."""
        if self._root is None:
            return (0, 0)
        node, mark = self._root, self._root.start_mark
        for step in location:
            found = _step(node, step)
            if found is None:
                break
            node, mark = found
        return (mark.line + 1, mark.column + 1)

    def duplicates(self) -> list[tuple[Location, str]]:
        """Return every key that a mapping has twice: the mapping's location with the key, and the key."""
        return [] if self._root is None else list(_duplicates(self._root, (), set()))


def _step(node: yaml.Node, step: str | int) -> tuple[yaml.Node, yaml.Mark] | None:
    """Return the node below `step`, and the mark to show: the key's for a property, the item's own in a list."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(key, value) for key, value in node.value if key.value == step]
        return (pairs[-1][1], pairs[-1][0].start_mark) if pairs else None
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return (node.value[step], node.value[step].start_mark)
    return None


def _duplicates(node: yaml.Node, location: Location, seen: set[int]) -> Iterator[tuple[Location, str]]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in keys:
                yield ((*location, name), name)
            keys.add(name)
            yield from _duplicates(value, (*location, name), seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _duplicates(value, (*location, index), seen)
