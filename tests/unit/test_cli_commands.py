"""The commands' faces: help, completion, version, config show, and the table of exit statuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodeagent.cli.exits import STATUS_HELP, Exit
from nodeagent.cli.main import COMMANDS, cli

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_a_summary_sentence(command: str) -> None:
    """`--help` begins with the usage and one sentence; commands with options show examples."""
    result = CliRunner().invoke(cli, [command, "--help"], prog_name="nodeagent")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: nodeagent {command}")
    assert re.search(r"\n\n  [A-Z][^\n]+", result.output)


@pytest.mark.parametrize("command", ["run", "up", "service", "agent", "events", "explain"])
def test_help_has_examples_and_exit_statuses(command: str) -> None:
    """What a person needs first is in the help itself."""
    output = CliRunner().invoke(cli, [command, "--help"], prog_name="nodeagent").output
    assert f"nodeagent {command}" in output.partition("Examples:")[2]
    assert "Exit status:" in output


def test_exit_statuses_are_told_alike_everywhere() -> None:
    """The help and docs/cli.md list exactly the statuses that exist."""
    statuses = {int(status) for status in Exit}
    assert {int(number) for number in re.findall(r"^  (\d+) ", STATUS_HELP, re.MULTILINE)} == statuses
    assert {int(number) for number in re.findall(r"^\| (\d+) \|", DOCUMENT.read_text(), re.MULTILINE)} == statuses


def test_every_command_and_option_is_documented() -> None:
    """docs/cli.md names each command and each option."""
    text = DOCUMENT.read_text()
    for name in COMMANDS:
        assert f"nodeagent {name}" in text, name
        help_text = CliRunner().invoke(cli, [name, "--help"], prog_name="nodeagent").output
        for option in re.findall(r"^  (?:-\w, )?(--[a-z-]+)", help_text, re.MULTILINE):
            assert f"`{option}" in text or option == "--help", f"{name} {option}"


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete ")])
def test_completion_prints_the_shells_script(shell: str, word: str) -> None:
    """The script names our command and the variable by which it asks it."""
    output = CliRunner().invoke(cli, ["completion", shell], prog_name="nodeagent").output
    assert word in output
    assert "_NODEAGENT_COMPLETE" in output


def test_completion_completes_commands_and_options() -> None:
    """The shell's question is answered with commands, and behind a command with its options."""

    def asked(words: str, position: int) -> list[str]:
        environment = {"_NODEAGENT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
        script = "from nodeagent.cli.main import main; main()"
        found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
        return [line.partition(",")[2] for line in found.stdout.decode().splitlines()]

    assert asked("nodeagent co", 1) == ["config", "completion"]
    assert "--ephemeral" in asked("nodeagent up --ep", 2)


def test_version_is_one_line() -> None:
    """Both spellings tell it."""
    for arguments in (["version"], ["--version"]):
        output = CliRunner().invoke(cli, arguments, prog_name="nodeagent").output
        assert re.fullmatch(r"nodeagent \d+\.\d+\.\d+( \(Python [\d.]+\))?\n", output)


def test_config_show_masks_secrets_and_tells_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key of every section is there, with its origin; keys are masked, required ones that are missing told."""
    monkeypatch.setenv("NODEAGENT_SERVICE_KEY", "c2VjcmV0")
    monkeypatch.setenv("NODEAGENT_LOCAL_NODES", "3")
    output = CliRunner().invoke(cli, ["config", "show"], prog_name="nodeagent").output
    assert re.search(r"^service\.key +\*\*\*  \(NODEAGENT_SERVICE_KEY\)$", output, re.MULTILINE)
    assert re.search(r"^service\.state_dir +\(not set\)  \(default\)$", output, re.MULTILINE)
    assert re.search(r"^local\.nodes +3  \(NODEAGENT_LOCAL_NODES\)$", output, re.MULTILINE)
    assert "c2VjcmV0" not in output
    shown = json.loads(CliRunner().invoke(cli, ["config", "show", "local", "--json"], prog_name="nodeagent").output)
    assert shown["local"]["nodes"] == {"value": 3, "origin": "NODEAGENT_LOCAL_NODES"}
    assert shown["local"]["key"]["value"] == "***"
