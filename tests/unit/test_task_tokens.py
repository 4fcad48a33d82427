"""Tokens of tasks: made from the attempt's id, and from nothing that a task could know (spec/rest.md §6.4)."""

from pathlib import Path

import orjson
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.model.protocol import Assignment, AttemptKind, Work, WorkConstraints
from nodeagent.model.times import UNLIMITED
from nodeagent.model.values import DEFAULT_USER_IDENTITY
from nodeagent.observe.redaction import Redactor
from nodeagent.service.task_tokens import TaskTokens, read_key

TOKENS = TaskTokens(b"k" * 32)


@given(st.text(alphabet="0123456789abcdefABCDEF-_", min_size=1, max_size=64))
def test_a_token_leads_to_its_attempt(attempt_id: str) -> None:
    """And only with the key that it was made with."""
    token = TOKENS.of(attempt_id)
    assert TOKENS.attempt_of(token) == attempt_id
    assert TaskTokens(b"K" * 32).attempt_of(token) is None
    assert Redactor().text(f"token {token} of a task") == "token *** of a task"


@given(st.text(max_size=120), st.integers(0, 60), st.characters(codec="ascii"))
def test_what_was_not_made_here_opens_nothing(text: str, place: int, other: str) -> None:
    """Neither any text nor a token with another character."""
    assert TOKENS.attempt_of(text) is None
    token = TOKENS.of("00c0ffee")
    changed = token[:place] + other + token[place + 1 :]
    assert (TOKENS.attempt_of(changed) is None) == (changed != token)


def message(token: str | None, **more: str) -> str:
    """Return an assignment as it is stored."""
    work = Work(
        command_line=more.get("command_line", "true"),
        constraints=WorkConstraints(retention_time=UNLIMITED),
        user_identity=DEFAULT_USER_IDENTITY,
        authentication_token=token,
    )
    return Assignment(attempt_id="a1", attempt_kind=AttemptKind.USER, job_id="j", task_id="t", work=work).to_json()


def test_a_token_comes_into_the_message_on_the_way_to_the_node() -> None:
    """Of tasks that are to have one; a command line that looks like the mark changes nothing."""
    assert orjson.loads(TOKENS.resolved(message("")))["work"]["authenticationToken"] == TOKENS.of("a1")
    for untouched in (message(None), message(None, command_line='x "authenticationToken":"" y')):
        assert TOKENS.resolved(untouched) == untouched
    assert "secret" not in repr(Assignment.from_json(message("secret")))


def test_the_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    """Tokens outlive a restart of the service; a file that was cut short is made anew."""
    key = read_key(tmp_path)
    assert read_key(tmp_path) == key
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(key[:5])
    assert len(read_key(tmp_path)) == 32
