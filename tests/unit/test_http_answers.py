"""What headers say of a file."""

import base64
import hashlib

import pytest

from nodeagent.transfer.http_answers import Checksum, ContentRange, Validator, checksum, content_range, validator

MD5 = hashlib.md5(b"content", usedforsecurity=False).digest()
CODED = base64.b64encode(MD5).decode()


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("bytes 0-0/1", ContentRange(0, 1, 1)),
        ("bytes 8-15/100", ContentRange(8, 16, 100)),
        ("bytes 0-9/*", None),
        ("bytes */10", None),
        ("bytes 5-4/10", None),
        ("bytes 0-10/10", None),
        ("items 0-1/10", None),
        ("bytes \u0661-\u0662/\u0663", None),
        ("", None),
    ],
)
def test_content_range(text: str, meaning: ContentRange | None) -> None:
    """Content range."""
    assert content_range({"Content-Range": text}) == meaning


def test_only_strong_etags_join_parts() -> None:
    """Only strong ETags join parts."""
    assert Validator('"a"', None).strong == '"a"'
    assert Validator('W/"a"', None).strong is None
    assert Validator(None, "yesterday").strong is None


def test_the_etag_decides_whether_it_is_the_same_version() -> None:
    """The ETag decides whether it is the same version."""
    one = Validator('"a"', "yesterday")
    assert one.same(Validator('W/"a"', "today"))
    assert not one.same(Validator('"b"', "yesterday"))
    assert not one.same(Validator(None, "yesterday"))
    assert not one.same(None)
    assert Validator(None, "yesterday").same(Validator('"b"', "yesterday"))
    assert not Validator(None, None).same(Validator(None, None))


def test_conditions_and_validators() -> None:
    """Conditions and validators."""
    assert validator({}) is None
    assert validator({"ETag": '"a"'}) == Validator('"a"', None)
    assert Validator('"a"', "yesterday").conditions() == {"If-None-Match": '"a"'}
    assert Validator(None, "yesterday").conditions() == {"If-Modified-Since": "yesterday"}


def test_a_checksum_counts_where_it_is_that_of_the_whole_file() -> None:
    """A checksum counts where it is that of the whole file."""
    assert checksum({"Content-MD5": CODED}, whole=True) == Checksum("Content-MD5", MD5)
    assert checksum({"Content-MD5": CODED}, whole=False) is None
    assert checksum({"x-ms-blob-content-md5": CODED}, whole=False) == Checksum("x-ms-blob-content-md5", MD5)


@pytest.mark.parametrize("text", ["", "abc", "????", base64.b64encode(b"short").decode()])
def test_what_is_no_md5_is_no_checksum(text: str) -> None:
    """What is no md5 is no checksum."""
    assert checksum({"Content-MD5": text}, whole=True) is None
