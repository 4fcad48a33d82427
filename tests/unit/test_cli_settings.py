"""Settings: sources in their order, origins, secrets, and complaints that name the place."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from nodeagent.cli.options import sections
from nodeagent.cli.settings import SettingsError, read_sources

SHIPPED = Path(__file__).parents[2] / "config" / "nodeagent.toml"


class Oven(BaseModel):
    """A small model of settings."""

    model_config = {"extra": "forbid"}

    heat: int = 180
    name: str
    key: SecretStr | None = None
    shelf: Path = Path("/shelf")
    tags: tuple[str, ...] = ()


SECTIONS: dict[str, type[BaseModel]] = {"oven": Oven}


def test_later_sources_win_and_are_named(tmp_path: Path) -> None:
    """Default, file, environment, flag: the last that gives a key has it, and its origin is told."""
    file = tmp_path / "n.toml"
    file.write_text('[oven]\nheat = 1\nname = "file"\nshelf = "~/x"\n')
    found = read_sources(SECTIONS, {"NODEAGENT_OVEN_HEAT": "2", "NODEAGENT_OVEN_TAGS": '["a", "b"]'}, file)
    section = found.section("oven", Oven, {"name": "flag", "key": None})
    oven = section.build()
    assert (oven.heat, oven.name, oven.tags, oven.shelf) == (2, "flag", ("a", "b"), Path.home() / "x")
    origins = {key: setting.origin for key, setting in section.effective().items()}
    assert origins == {
        "heat": "NODEAGENT_OVEN_HEAT",
        "name": "--name",
        "key": "default",
        "shelf": f"{file} [oven]",
        "tags": "NODEAGENT_OVEN_TAGS",
    }


def test_the_file_is_found_by_variable(tmp_path: Path) -> None:
    """NODEAGENT_CONFIG names the file; --config is stronger."""
    first, second = tmp_path / "1.toml", tmp_path / "2.toml"
    first.write_text('[oven]\nname = "one"\n')
    second.write_text('[oven]\nname = "two"\n')
    environment = {"NODEAGENT_CONFIG": str(first)}
    assert read_sources(SECTIONS, environment).section("oven", Oven).build().name == "one"
    assert read_sources(SECTIONS, environment, second).section("oven", Oven).build().name == "two"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[oven]\nhaet = 1\n", "oven.haet is no setting; did you mean 'heat'?"),
        ("[ofen]\nheat = 1\n", "[ofen] is no section; did you mean 'oven'?"),
        ("oven = 1\n", "oven must be a section: [oven]"),
        ("[oven\n", "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_the_file(tmp_path: Path, text: str, told: str) -> None:
    """Unknown sections and keys get the nearest known name."""
    file = tmp_path / "n.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_sources(SECTIONS, {}, file)
    assert str(caught.value).startswith(f"{file}: ")
    assert told in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """A file that was named must be there."""
    with pytest.raises(SettingsError, match=r"no\.toml: cannot be read: No such file"):
        read_sources(SECTIONS, {}, tmp_path / "no.toml")


def test_bad_values_name_their_source(tmp_path: Path) -> None:
    """The variable, flag or file that gave the value is named, and what would be right."""
    found = read_sources(SECTIONS, {"NODEAGENT_OVEN_HEAT": "hot"})
    with pytest.raises(SettingsError, match=r"NODEAGENT_OVEN_HEAT: oven\.heat is 'hot': input should be a valid int"):
        found.section("oven", Oven, {"name": "x"}).build()
    with pytest.raises(SettingsError, match=r"oven\.name is required: give --name, NODEAGENT_OVEN_NAME or a settings"):
        read_sources(SECTIONS, {}).section("oven", Oven).build()


def test_a_misspelt_variable_is_refused() -> None:
    """A variable of a known section that is no key would otherwise be silently without effect."""
    with pytest.raises(SettingsError, match="NODEAGENT_OVEN_HAET is no setting; did you mean 'NODEAGENT_OVEN_HEAT'"):
        read_sources(SECTIONS, {"NODEAGENT_OVEN_HAET": "1"})


def test_other_variables_are_left_alone() -> None:
    """Variables of tasks (NODEAGENT_ATTEMPT, NODEAGENT_JOB_DIR) are no settings."""
    found = read_sources(SECTIONS, {"NODEAGENT_ATTEMPT": "x", "NODEAGENT_JOB_DIR": "/x", "HOME": "/"})
    assert found.environment == {}


def test_secrets_are_known_and_never_told() -> None:
    """A bad secret is complained about without its value, and a good one is marked."""
    found = read_sources(SECTIONS, {"NODEAGENT_OVEN_KEY": "hunter2"})
    assert found.section("oven", Oven, {"name": "x"}).effective()["key"].secret
    section = read_sources(SECTIONS, {"NODEAGENT_OVEN_KEY": '["hunter2"]'}).section("oven", Oven, {"name": "x"})
    with pytest.raises(SettingsError) as caught:
        section.build()
    assert "hunter2" not in str(caught.value)
    assert "NODEAGENT_OVEN_KEY" in str(caught.value)


def _shipped() -> dict[str, dict[str, object]]:
    """Return the shipped file with every commented key switched on."""
    text = re.sub(r"^#(?=[a-z_]+ = )", "", SHIPPED.read_text(), flags=re.MULTILINE)
    return tomllib.loads(text)


def test_the_shipped_file_has_every_key_and_no_other() -> None:
    """config/nodeagent.toml and the models of the settings have the same keys."""
    assert {name: list(table) for name, table in _shipped().items()} == {
        name: list(model.model_fields) for name, model in sections().items()
    }


def test_the_shipped_file_tells_the_true_defaults() -> None:
    """Where a key has a fixed default, the file shows it."""
    depends_on_the_machine = {"slots"}
    for name, table in _shipped().items():
        for key, shown in table.items():
            info = sections()[name].model_fields[key]
            if info.is_required() or key in depends_on_the_machine or info.default_factory is not None:
                continue
            if info.default is None:
                continue
            default = info.default.get_secret_value() if isinstance(info.default, SecretStr) else info.default
            assert json.loads(json.dumps(default, default=str)) == shown, f"{name}.{key}"


def test_every_key_of_the_shipped_file_has_a_comment() -> None:
    """A line of words stands above each key."""
    lines = SHIPPED.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#[a-z_]+ = ", line):
            assert re.match(r"# \S", lines[number - 1]), line
