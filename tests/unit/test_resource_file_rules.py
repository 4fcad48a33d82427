"""What a resource file asks for, and where the blobs of a container go."""

from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.model.files import ResourceFile
from nodeagent.rules.resource_files import ContainerSource, FileSource, blob_url, destination, is_folder, source_of

CONTAINER = "https://account.blob.core.windows.net/data?sv=2023&sig=a%2Fb%3D"
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=300)


def test_a_file_has_a_path_and_the_default_mode() -> None:
    """Batch's default is 0770, and a path is told in its simplest form."""
    source = source_of(ResourceFile(http_url="https://host/a", file_path="./bin//tool"))
    assert source == FileSource("https://host/a", "bin/tool", 0o770, None)


@pytest.mark.parametrize(
    ("file_path", "directory"), [(None, ""), ("", ""), (".", ""), ("data", "data"), ("data/", "data"), ("a//b", "a/b")]
)
def test_the_path_of_a_container_is_a_directory(file_path: str | None, directory: str) -> None:
    """No path means the working directory itself."""
    file = ResourceFile(storage_container_url=CONTAINER, file_path=file_path, blob_prefix="in/", file_mode="0644")
    assert source_of(file) == ContainerSource(CONTAINER, "in/", directory, 0o644, None)


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up", "a/../../b", "a\0b", "dir/", "x" * 256, "."])
def test_a_file_cannot_go_where_no_file_of_the_task_can_be(path: str) -> None:
    """The node refuses what the service should have refused."""
    with pytest.raises(ValueError, match=r"must|may"):
        source_of(ResourceFile(http_url="https://host/a", file_path=path))


@pytest.mark.parametrize("path", ["/data", "..", "data/..", "/"])
def test_a_container_cannot_go_outside_either(path: str) -> None:
    """The same for the directory of a container's blobs."""
    with pytest.raises(ValueError, match="must"):
        source_of(ResourceFile(storage_container_url=CONTAINER, file_path=path))


def test_what_is_asked_for_can_be_printed_without_its_sas() -> None:
    """The text of a source ends in tracebacks and logs."""
    file = ResourceFile(storage_container_url=CONTAINER)
    assert "sig" not in repr(source_of(file))
    assert "sig" not in repr(source_of(ResourceFile(http_url=CONTAINER, file_path="a")))


@pytest.mark.parametrize(
    ("name", "metadata", "folder"),
    [
        ("a/", {}, True),
        ("a", {"hdi_isfolder": "true"}, True),
        ("a", {"Hdi_isFolder": "True"}, True),
        ("a", {"hdi_isfolder": "false"}, False),
        ("a", {}, False),
    ],
)
def test_what_stands_for_a_directory_is_no_file(name: str, metadata: dict[str, str], *, folder: bool) -> None:
    """Tools mark directories in two ways."""
    assert is_folder(name, metadata) is folder


def test_a_blob_keeps_its_full_name_below_the_directory() -> None:
    """The prefix that was asked for is a part of it."""
    assert destination("data", "in/x y/ä.txt") == "data/in/x y/ä.txt"
    assert destination("", "in/a") == "in/a"


@pytest.mark.parametrize(
    "name", ["/a", "a//b", "..", "../a", "a/../b", "./a", "a/.", "a\0b", "x" * 256, "d/" * 2100 + "x", "é" * 128]
)
def test_a_blob_whose_name_no_file_can_have_is_named(name: str) -> None:
    """Nothing is guessed: two blobs might become one file."""
    with pytest.raises(ValueError, match="blob name"):
        destination("data", name)


@given(NAMES)
def test_whatever_a_blob_is_called_it_stays_below_the_directory(name: str) -> None:
    """The path ends with the whole name, and no part of it goes up."""
    try:
        path = destination("data", name)
    except ValueError:
        return
    assert path == f"data/{name}"
    assert not {"", ".", ".."} & set(path.split("/"))


@given(NAMES)
def test_the_url_of_a_blob_says_its_name_and_nothing_else(name: str) -> None:
    """Question marks, number signs and percents of a name are no syntax, and the SAS stays as it was."""
    parts = urlsplit(blob_url(CONTAINER, name))
    assert unquote(parts.path) == f"/data/{name}"
    assert parts.query == urlsplit(CONTAINER).query
    assert not parts.fragment


def test_the_url_of_a_container_may_end_with_a_slash() -> None:
    """Storage takes both."""
    assert blob_url("http://127.0.0.1:10000/account/c/?sig=x", "a b") == "http://127.0.0.1:10000/account/c/a%20b?sig=x"
