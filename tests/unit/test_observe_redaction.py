"""The corpus of secrets: none of them may pass the redactor, and innocent text must."""

import base64
import io
import json
import logging

import pytest
import structlog
from hypothesis import assume, given
from hypothesis import strategies as st

from nodeagent.observe.log import LogFormat, LogLevel, LogSettings, configure
from nodeagent.observe.redaction import MASK, Redactor

ACCOUNT_KEY = base64.b64encode(bytes(range(64))).decode()
SIGNATURE = "dD80ihBh5jfNpymO5Hg1IdiJIEvHcJpCMiCMnN%2FRnbI%3D"

CORPUS = [
    (f"https://a.blob.core.windows.net/c/b?sv=2024&sp=r&sig={SIGNATURE}&se=2030", SIGNATURE),
    (f"https://a.blob.core.windows.net/c?sig={SIGNATURE}", SIGNATURE),
    (f"next=https%3A%2F%2Fa.b%2Fc%3Fsig%3D{SIGNATURE}", SIGNATURE),
    (f"Authorization: SharedKey myaccount:{ACCOUNT_KEY}", ACCOUNT_KEY),
    ("SharedKeyLite acc:c2hvcnRrZXk=", "c2hvcnRrZXk"),
    ("Authorization: Bearer abc.DEF-123_x", "abc.DEF-123_x"),
    ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl in a line", "eyJzdWIiOiIxIn0"),
    (f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={ACCOUNT_KEY};EndpointSuffix=x", ACCOUNT_KEY),
    (f"key is {ACCOUNT_KEY}.", ACCOUNT_KEY),
    ('{"username": "u", "password": "p4ss w0rd"}', "p4ss w0rd"),
    ("docker login -u me --password=s3cr3t registry", "s3cr3t"),
    ("pull https://me:s3cr3t@registry.example/v2/ failed", "s3cr3t"),
    ("SharedAccessSignature=sr=x&sig=QUJDREVGR0g=", "QUJDREVGR0g"),
    ("NODEAGENT_AGENT_NODE_KEY=abcdefgh", "abcdefgh"),
]


@pytest.mark.parametrize(("text", "secret"), CORPUS)
def test_no_secret_of_the_corpus_passes(text: str, secret: str) -> None:
    """Each is found in plain text, in a mapping's value, and inside lists."""
    redact = Redactor()
    assert secret not in redact.text(text)
    assert MASK in redact.text(text)
    assert secret not in json.dumps(redact.value({"event": [text, {"inner": text}]}))


@pytest.mark.parametrize(
    "name", ["password", "account_key", "accountKey", "node_key", "nodeKey", "token", "authorization", "key", "sas"]
)
def test_what_stands_under_a_secrets_name_goes_as_a_whole(name: str) -> None:
    """Structured values need no pattern."""
    assert Redactor().value({name: "plain words"}) == {name: MASK}


@pytest.mark.parametrize(
    "text",
    [
        "task t1 of job design=2 ended with exit code 3",
        "signal=9 sigterm",
        "https://a.blob.core.windows.net/c/b?sv=2024&sp=r",
        "workitems/job/job-1/monkey/stdout.txt",
        "0x8DBAE9D3C8B5A1F",
        "tokens: 3",
    ],
)
def test_innocent_text_passes(text: str) -> None:
    """A log that masks everything helps nobody."""
    assert Redactor().text(text) == text


@pytest.mark.parametrize("name", ["key_count", "monkey", "tokens", "keys", "design", "keyboard"])
def test_innocent_names_pass(name: str) -> None:
    """Names that merely contain the letters are no secrets."""
    assert Redactor().value({name: "x"}) == {name: "x"}


@given(st.text(min_size=6, max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_known_secrets_are_removed_wherever_they_stand(secret: str, before: str, after: str) -> None:
    """Exact secrets of the process go, whatever they look like."""
    assume(not set(secret) <= set(MASK))
    assert secret not in Redactor([secret]).text(before + secret + after)


def test_logs_of_structlog_and_logging_are_redacted() -> None:
    """Messages, fields and tracebacks of both roads end without secrets."""
    stream = io.StringIO()
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        configure(LogSettings(level=LogLevel.DEBUG, format=LogFormat.JSON), stream, secrets=["hunter22"])
        log = structlog.get_logger()
        log.info("calling", url=CORPUS[0][0], password="x", plain="hunter22")
        try:
            int("AccountKey=c2VjcmV0c2VjcmV0")
        except ValueError:
            log.exception("bad")
            logging.getLogger("library").exception("foreign %s", "Bearer abcdefgh")
    finally:
        structlog.reset_defaults()
        logging.getLogger().handlers[:] = handlers
        logging.getLogger().setLevel(level)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["calling", "bad", f"foreign Bearer {MASK}"]
    assert lines[0]["password"] == MASK
    for secret in (SIGNATURE, "hunter22", "c2VjcmV0c2VjcmV0", "abcdefgh"):
        assert secret not in stream.getvalue()
