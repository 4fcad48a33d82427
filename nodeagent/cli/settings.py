"""Settings from their sources: a TOML file, `NODEAGENT_*` of the environment, flags; later ones win.

Every value remembers where it came from, and every complaint says where the bad value stands.
"""

import difflib
import json
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

CONFIG_VARIABLE = "NODEAGENT_CONFIG"
PREFIX = "NODEAGENT_"
SYSTEM_FILE = Path("/etc/nodeagent/nodeagent.toml")

_NO_FLAGS: Mapping[str, object] = MappingProxyType({})

M = TypeVar("M", bound=BaseModel)


class SettingsError(ValueError):
    """A setting that is unknown or has a bad value: source, key and what would be right, one line each."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("\n".join(self.lines))


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and where it came from: `default`, a file, a variable or a flag."""

    value: object
    origin: str
    secret: bool


@dataclass(frozen=True, slots=True)
class Sources:
    """The file and the environment, read and checked for unknown sections and keys.

    `sections` maps a section's name to the model of its keys.
    """

    sections: Mapping[str, type[BaseModel]]
    file: Path | None = None
    tables: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def section(self, name: str, model: type[M], flags: Mapping[str, object] = _NO_FLAGS) -> "Section[M]":
        """Merge the sources of one section; flags with the value None were not given."""
        settings: dict[str, Setting] = {}
        for key, value in self.tables.get(name, {}).items():
            settings[key] = Setting(_at_home(model, key, value), f"{self.file} [{name}]", _is_secret(model, key))
        for key in model.model_fields:
            variable = f"{PREFIX}{name.upper()}_{key.upper()}"
            if variable in self.environment:
                value = _from_text(self.environment[variable])
                settings[key] = Setting(_at_home(model, key, value), variable, _is_secret(model, key))
        for key, value in flags.items():
            if value is not None:
                settings[key] = Setting(value, f"--{key.replace('_', '-')}", _is_secret(model, key))
        return Section(name, model, settings)


@dataclass(frozen=True, slots=True)
class Section(Generic[M]):
    """The merged settings of one section."""

    name: str
    model: type[M]
    given: Mapping[str, Setting]

    def build(self, **derived: object) -> M:
        """Return the section's model; `derived` fills in what no source gave. Raises SettingsError."""
        values = derived | {key: setting.value for key, setting in self.given.items()}
        try:
            return self.model.model_validate(values)
        except ValidationError as error:
            raise SettingsError(self._complaints(error)) from None

    def without(self, *keys: str) -> "Section[M]":
        """Return the section as if nobody had given these keys."""
        return Section(self.name, self.model, {key: value for key, value in self.given.items() if key not in keys})

    def effective(self) -> dict[str, Setting]:
        """Return every key with its value after validation; a required key that nobody gave has the value None.

        Raises SettingsError for bad values.
        """
        try:
            model = self.model.model_validate({key: setting.value for key, setting in self.given.items()})
            values = {key: getattr(model, key) for key in self.model.model_fields}
        except ValidationError as error:
            if self._complaints(error, of_values=True):
                raise SettingsError(self._complaints(error, of_values=True)) from None
            values = {key: self._unvalidated(key) for key in self.model.model_fields}
        return {
            key: Setting(value, self.given[key].origin if key in self.given else "default", _is_secret(self.model, key))
            for key, value in values.items()
        }

    def _unvalidated(self, key: str) -> object:
        if key in self.given:
            return self.given[key].value
        info = self.model.model_fields[key]
        return None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})

    def _complaints(self, error: ValidationError, *, of_values: bool = False) -> list[str]:
        """Return a line for each error; with `of_values` only for values that are wrong in themselves."""
        lines = []
        for detail in error.errors(include_url=False):
            key = str(detail["loc"][0]) if detail["loc"] else ""
            missing = detail["type"] == "missing"
            if of_values and (missing or not key):
                continue
            lines.append(self._missing(key) if missing else self._complaint(key, detail))
        return lines

    def _missing(self, key: str) -> str:
        flag, variable = f"--{key.replace('_', '-')}", f"{PREFIX}{self.name.upper()}_{key.upper()}"
        return f"{self.name}.{key} is required: give {flag}, {variable} or a settings file"

    def _complaint(self, key: str, detail: ErrorDetails) -> str:
        message = str(detail.get("ctx", {}).get("error", detail["msg"]))
        if not key:
            return f"{self.name}: {message}"
        origin = self.given[key].origin if key in self.given else "default"
        shown = "" if _is_secret(self.model, key) else f" is {detail.get('input')!r}"
        return f"{origin}: {self.name}.{key}{shown}: {message[:1].lower()}{message[1:]}"


def read_sources(
    sections: Mapping[str, type[BaseModel]], environment: Mapping[str, str], config: Path | None = None
) -> Sources:
    """Find and read the settings file and pick the variables of the environment.

    The file is `config`, else `NODEAGENT_CONFIG`, else `/etc/nodeagent/nodeagent.toml` if there is one. Raises
    SettingsError for a file that cannot be read, and for unknown sections, keys and variables.
    """
    named = config or (Path(environment[CONFIG_VARIABLE]) if environment.get(CONFIG_VARIABLE) else None)
    file = named or (SYSTEM_FILE if SYSTEM_FILE.is_file() else None)
    tables = _read_file(file, sections) if file is not None else {}
    return Sources(sections, file, tables, _variables(sections, environment))


def _read_file(file: Path, sections: Mapping[str, type[BaseModel]]) -> dict[str, Mapping[str, object]]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError([f"{file}: cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError([f"{file}: is not TOML: {error}"]) from error
    problems = []
    for name, table in content.items():
        if name not in sections:
            problems.append(f"{file}: [{name}] is no section; {_suggest(name, sections)}")
        elif not isinstance(table, dict):
            problems.append(f"{file}: {name} must be a section: [{name}]")
        else:
            fields = sections[name].model_fields
            problems += [
                f"{file}: {name}.{key} is no setting; {_suggest(key, fields)}" for key in table if key not in fields
            ]
    if problems:
        raise SettingsError(problems)
    return content


def _variables(sections: Mapping[str, type[BaseModel]], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the known sections; a misspelt key of a known section is refused."""
    known = {f"{PREFIX}{name.upper()}_{key.upper()}" for name, model in sections.items() for key in model.model_fields}
    prefixes = tuple(f"{PREFIX}{name.upper()}_" for name in sections)
    ours = {name: value for name, value in environment.items() if name.startswith(prefixes)}
    problems = [f"{name} is no setting; {_suggest(name, known)}" for name in ours if name not in known]
    if problems:
        raise SettingsError(problems)
    return ours


def _suggest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"there is {', '.join(names)}"


def _from_text(text: str) -> object:
    """Return lists and tables written as JSON as such; everything else stays text, which the model converts."""
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _at_home(model: type[BaseModel], key: str, value: object) -> object:
    """Return a path below `~` with the home directory in its place: no shell has done it for a file."""
    if isinstance(value, str) and value.startswith("~/") and _holds(model, key, Path):
        return str(Path(value).expanduser())
    return value


def _is_secret(model: type[BaseModel], key: str) -> bool:
    return _holds(model, key, SecretStr)


def _holds(model: type[BaseModel], key: str, kind: type) -> bool:
    """Tell whether a key's type is `kind`, or `kind` or None."""
    info = model.model_fields.get(key)
    annotation: Any = info.annotation if info is not None else None
    return annotation is kind or kind in typing.get_args(annotation)
