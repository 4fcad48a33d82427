"""What an agent needs before it can begin: settings, its state directory, its epoch, the service manager."""

import json
import os
import socket
from pathlib import Path

import pytest
from pydantic import ValidationError

from nodeagent.agent.errors import DamagedStateError, NewerStateError, StateInUseError, UnwritableError, WrongNodeError
from nodeagent.agent.identity import StateDirectory
from nodeagent.agent.introduction import local_address
from nodeagent.agent.life import boundary_root
from nodeagent.agent.sd_notify import notify, watchdog_seconds
from nodeagent.agent.settings import AgentSettings


def test_each_life_has_a_higher_epoch(tmp_path: Path) -> None:
    """Stored before anybody hears of it."""
    for epoch in (1, 2, 3):
        with StateDirectory(tmp_path / "state") as state:
            assert state.begin_life("node-1").epoch == epoch
        assert json.loads((tmp_path / "state" / "node.json").read_text())["epoch"] == epoch


def test_the_state_directory_is_only_ours(tmp_path: Path) -> None:
    """0700, also for the records."""
    with StateDirectory(tmp_path / "state") as state:
        assert state.path.stat().st_mode & 0o777 == 0o700
        assert state.attempts.stat().st_mode & 0o777 == 0o700


def test_a_state_directory_serves_one_agent_at_a_time(tmp_path: Path) -> None:
    """The second one is told by whom it is held; when the first has gone, the next may come."""
    with (
        StateDirectory(tmp_path) as _,
        pytest.raises(StateInUseError, match=rf"pid {os.getpid()}"),
        StateDirectory(tmp_path),
    ):
        raise AssertionError("two agents on one state directory")
    with StateDirectory(tmp_path):
        pass


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ('{"version": 2, "nodeId": "node-1", "epoch": 1}', NewerStateError),
        ('{"version": 1, "nodeId": "another", "epoch": 1}', WrongNodeError),
        ('{"version": 1, "nodeId": "node-1"}', DamagedStateError),
        ('{"version": 1, "nodeId": "node-1", "epoch": "many"}', DamagedStateError),
        ("{", DamagedStateError),
        ("[]", DamagedStateError),
    ],
)
def test_an_identity_that_is_not_ours_is_refused(tmp_path: Path, content: str, error: type[Exception]) -> None:
    """Nothing is guessed, and nothing is overwritten."""
    (tmp_path / "node.json").write_text(content)
    with StateDirectory(tmp_path) as state, pytest.raises(error):
        state.begin_life("node-1")
    assert (tmp_path / "node.json").read_text() == content


def test_a_state_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """One line with the path."""
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError, match="file/state"), StateDirectory(tmp_path / "file" / "state"):
        pass


def settings(**given: object) -> AgentSettings:
    """Settings with a key."""
    return AgentSettings.model_validate({"node_key": "k"} | given)


@pytest.mark.parametrize(
    "given",
    [
        {"node_key": None},
        {"node_key_file": "/key"},
        {"state_dir": "/a", "root": "/a/b"},
        {"state_dir": "/a/b", "root": "/a"},
        {"state_dir": "/a", "root": "/a"},
        {"service": "ftp://host"},
        {"slots": 0},
        {"node": "no blanks"},
        {"poll_seconds": 61},
        {"no_such_key": 1},
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, object]) -> None:
    """Also a state directory that tasks could read."""
    with pytest.raises(ValidationError):
        settings(**given)


def test_the_key_is_not_shown() -> None:
    """Neither in a log nor in an error."""
    assert "k" not in repr(settings(node_key="kkkkk").node_key)


def test_boundaries_of_two_agents_of_one_machine_have_different_names(tmp_path: Path) -> None:
    """Also if both nodes have the same id; and the same in each life."""
    one, other = boundary_root("node-1", tmp_path / "a"), boundary_root("node-1", tmp_path / "b")

    assert one != other
    assert one == boundary_root("node-1", tmp_path / "a")


def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a datagram to the socket that the environment names."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        monkeypatch.chdir(tmp_path)
        listener.bind("notify")
        monkeypatch.setenv("NOTIFY_SOCKET", "notify")
        notify("READY=1", "STATUS=well")

        assert listener.recv(100) == b"READY=1\nSTATUS=well"


def test_a_service_manager_that_has_gone_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that never was."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")


def test_the_watchdog_is_fed_twice_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is meant for this process."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_seconds() == 10.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_seconds() is None


def test_the_address_is_the_one_towards_the_service() -> None:
    """And loopback where there is no way to it yet."""
    assert local_address("http://127.0.0.1:8190") == "127.0.0.1"
    assert local_address("http://no-such-host.invalid:8190") == "127.0.0.1"
