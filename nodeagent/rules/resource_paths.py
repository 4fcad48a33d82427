"""Where a resource file may go, and with which permissions: the words of `filePath` and `fileMode` (spec/node.md §4).

These are the rules that can be checked before anything is there. That no link leads out of the task's directory is
seen to where files are put in place: with directory file descriptors, not with strings.
"""

COMPONENT_BYTES = 255
"""NAME_MAX of Linux."""
PATH_BYTES = 4095
"""PATH_MAX of Linux without the byte that ends it."""
DEFAULT_MODE = 0o770


def checked(path: str) -> tuple[str, ...]:
    """Return the components of a path below the task's working directory: `a//./b/` is `("a", "b")`.

    Every byte but `/` and NUL is allowed in a name, as on Linux. Raises ValueError with a sentence that says what
    would be right.
    """
    if "\0" in path:
        raise ValueError("the path must not contain a NUL character")
    if path.startswith("/"):
        raise ValueError("the path must be relative to the task's working directory: it must not begin with '/'")
    components = tuple(part for part in path.split("/") if part not in ("", "."))
    if not components:
        raise ValueError("the path must name a file or a directory below the task's working directory")
    if ".." in components:
        raise ValueError("the path must not leave the task's working directory: '..' is not allowed in it")
    _check_lengths(path, components)
    return components


def _check_lengths(path: str, components: tuple[str, ...]) -> None:
    try:
        size = len(path.encode())
    except UnicodeEncodeError as error:
        raise ValueError(
            "the path must be text that can be written as UTF-8: it has half of a surrogate pair"
        ) from error
    if size > PATH_BYTES:
        raise ValueError(f"the path must not be longer than {PATH_BYTES} bytes of UTF-8: it has {size}")
    longest = max(len(part.encode()) for part in components)
    if longest > COMPONENT_BYTES:
        raise ValueError(f"no name in the path may be longer than {COMPONENT_BYTES} bytes of UTF-8: one has {longest}")


def file_mode(text: str | None) -> int:
    """Return the permission bits of `fileMode`, octal with or without `0o`; 0770 where there is none.

    Raises ValueError with a sentence that says what would be right.
    """
    if text is None:
        return DEFAULT_MODE
    digits = text.removeprefix("0o")
    if not digits or not set(digits) <= set("01234567"):
        raise ValueError("the mode must be octal, like 0755")
    mode = int(digits, 8)
    if mode > 0o7777:
        raise ValueError("the mode must not be greater than 07777")
    return mode
