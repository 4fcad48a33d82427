"""Which URLs ask for the same content."""

import pytest

from nodeagent.rules.cache_key import content_key, content_url

BLOB = "https://account.blob.core.windows.net/container/a%20b.bin"


@pytest.mark.parametrize(
    "url",
    [
        f"{BLOB}?sv=2022-11-02&sr=c&sig=abc%3D&se=2030-01-01T00%3A00%3A00Z&sp=rl",
        f"{BLOB}?sig=other&sv=2020-01-01&ss=b&srt=sco&spr=https&sip=10.0.0.1&st=2020-01-01&si=policy&sdd=2",
        f"{BLOB}?skoid=1&sktid=2&skt=3&ske=4&sks=b&skv=5&saoid=6&suoid=7&scid=8&sv=1&sig=2&SE=3",
        "HTTPS://Account.Blob.Core.Windows.Net/container/a%20b.bin#fragment",
    ],
)
def test_a_sas_does_not_make_other_content(url: str) -> None:
    """Every task may have a SAS of its own."""
    assert content_url(url) == BLOB
    assert content_key(url) == content_key(BLOB)


def test_other_parameters_stay_in_the_order_of_their_names() -> None:
    """They may choose the content; the order of two of one name may, too."""
    assert content_url(f"{BLOB}?versionid=1&sv=1&sig=2&a=2&a=1&snapshot=x") == f"{BLOB}?a=2&a=1&snapshot=x&versionid=1"
    assert content_url(f"{BLOB}?b=1&a=2") == content_url(f"{BLOB}?a=2&b=1")
    assert content_url(f"{BLOB}?a=2&a=1") != content_url(f"{BLOB}?a=1&a=2")


def test_what_is_no_sas_is_kept() -> None:
    """`st` and `sp` may mean anything to a server that knows no SAS; overrides of headers change the answer."""
    assert content_url("http://h/f?st=1&sp=2") == "http://h/f?sp=2&st=1"
    assert content_url("http://h/f?sig=1&st=1") == "http://h/f?sig=1&st=1"
    assert content_url(f"{BLOB}?sv=1&sig=2&rsce=gzip") == f"{BLOB}?rsce=gzip"


def test_users_paths_and_hosts_are_kept_apart() -> None:
    """Paths keep their case, and nobody knows that two users of a server see the same."""
    urls = ["http://h/f", "http://h/F", "http://u:p@h/f", "http://v:p@h/f", "https://h/f", "http://h:81/f"]
    assert len({content_key(url) for url in urls}) == len(urls)


def test_the_key_holds_nothing_of_the_url() -> None:
    """It is written to disk, so it is a hash."""
    key = content_key("http://user:password@host/f?sv=1&sig=secret&token=secret")
    assert len(key) == 40
    assert "secret" not in key


def test_no_url() -> None:
    """The caller must know."""
    with pytest.raises(ValueError, match="Invalid IPv6"):
        content_key("http://[half/f")
