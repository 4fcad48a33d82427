"""Output files against a real storage: which files, which blobs, which conditions, and what is told of it."""

import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest

from nodeagent.model.enums import UploadCondition
from nodeagent.transfer.base import TransferSettings
from tests.integration.azurite import Azurite, Container
from tests.integration.output_files import Task, details, rule

pytest_plugins = ["tests.integration.storage_fixtures"]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """A task's directory."""
    return Task(tmp_path / "task")


async def test_blobs_are_named_as_batch_names_them(task: Task, container: Container) -> None:
    """With a wildcard `path` is a directory before the path below the pattern's base, without one the whole name."""
    task.file("out/a/b.csv")
    task.file("out/c.csv")
    task.file("single.txt")
    task.file("ünï ☃ #?%.txt", "odd")
    task.file("out/.hidden.csv")
    (task.root / "stdout.txt").write_text("said\n")
    (task.root / "stderr.txt").write_text("")
    url = container.url_with_sas("cw")
    task.rules = [
        rule("out/**/*.csv", url, "p"),
        rule("out/**/*.csv", url),
        rule("single.txt", url),
        rule("single.txt", url, "named/other"),
        rule("../std*.txt", url, "$AZ_BATCH_TASK_ID/"),
        rule(f"{task.wd}/[!a-t]*.txt", url, "odd/"),
    ]
    assert await task.upload() is None
    assert container.names() == sorted(
        [
            "p/a/b.csv",
            "p/c.csv",
            "a/b.csv",
            "c.csv",
            "single.txt",
            "named/other",
            "$AZ_BATCH_TASK_ID/stdout.txt",
            "$AZ_BATCH_TASK_ID/stderr.txt",
            "odd/ünï ☃ #?%.txt",
        ]
    )
    assert container.content("$AZ_BATCH_TASK_ID/stdout.txt") == b"said\n"
    assert container.content("$AZ_BATCH_TASK_ID/stderr.txt") == b""
    assert container.content("odd/ünï ☃ #?%.txt") == b"odd"
    progress = task.meter.progress()
    assert (progress.files_done, progress.files_total) == (9, 9)
    assert progress.bytes_done == progress.bytes_total == 6 * 7 + 5 + 3


async def test_variables_are_expanded_before_a_pattern_is_matched(task: Task, container: Container) -> None:
    """Also where they make the base directory."""
    task.file("task-1/result.txt")
    task.rules = [rule("$AZ_BATCH_TASK_ID/*.txt", container.url_with_sas("cw"))]
    assert await task.upload() is None
    assert container.names() == ["result.txt"]


@pytest.mark.parametrize(
    ("exit_code", "names"),
    [(0, ["completion", "success"]), (1, ["completion", "failure"]), (-9, ["completion", "failure"])],
)
async def test_conditions_look_at_the_exit_code(
    task: Task, container: Container, exit_code: int, names: list[str]
) -> None:
    """A signal is a failure, too."""
    task.file("a")
    url = container.url_with_sas("cw")
    task.rules = [
        rule("a", url, "success", UploadCondition.TASK_SUCCESS),
        rule("a", url, "failure", UploadCondition.TASK_FAILURE),
        rule("a", url, "completion", UploadCondition.TASK_COMPLETION),
    ]
    assert await task.upload(exit_code) is None
    assert container.names() == names


async def test_where_no_rule_applies_nothing_is_attempted_and_no_log_is_made(task: Task, container: Container) -> None:
    """A task that succeeds sees no upload logs because of a rule for failures."""
    task.rules = [rule("a", container.url_with_sas("cw"), condition=UploadCondition.TASK_FAILURE)]
    assert await task.upload(0) is None
    assert os.listdir(task.root) == ["wd"]  # noqa: PTH208


async def test_a_pattern_without_a_match_is_told_and_no_error(task: Task, container: Container) -> None:
    """A rule may match no file; a directory is none."""
    (task.wd / "directory").mkdir()
    url = container.url_with_sas("cw")
    task.rules = [rule("nothing/*.txt", url), rule("directory", url)]
    assert await task.upload() is None
    assert "nothing/*.txt: matches no file" in task.log()
    assert "directory: not uploaded: it is a directory" in task.log("fileuploaderr.txt")
    assert container.names() == []


async def test_a_large_file_goes_in_blocks_and_has_the_checksum_of_the_whole(task: Task, container: Container) -> None:
    """Its content type is guessed, and its bytes are those of the file."""
    content = os.urandom(1 << 20) * 10 + b"the rest"
    task.file("large.json", content)
    task.settings = TransferSettings(transfers=3, range_bytes=1 << 20, transfer_tries=2)
    task.rules = [rule("*", container.url_with_sas("cw"))]
    assert await task.upload() is None
    blob = container.client.get_blob_client("large.json")
    assert container.content("large.json") == content
    assert len(blob.get_block_list()[0]) == 11
    settings = blob.get_blob_properties().content_settings
    assert settings.content_type == "application/json"
    assert settings.content_md5 is not None
    assert f"{container.url}/large.json: {len(content)} bytes, 1 attempt" in task.log()
    assert task.meter.progress().bytes_done == len(content)


@pytest.mark.parametrize("size", [10, 3 << 20])
async def test_upload_headers_come_with_the_blob(task: Task, container: Container, size: int) -> None:
    """Whether it goes in one request or in blocks: properties, metadata, tier."""
    task.file("a.txt", b"x" * size)
    given = {
        "Content-Type": "text/csv",
        "x-ms-blob-cache-control": "no-store",
        "Content-Encoding": "identity",
        "x-ms-meta-Origin": "node",
        "x-ms-access-tier": "Cool",
    }
    task.rules = [rule("a.txt", container.url_with_sas("cw"), headers=given)]
    assert await task.upload() is None
    found = container.client.get_blob_client("a.txt").get_blob_properties()
    assert found.content_settings.content_type == "text/csv"
    assert found.content_settings.cache_control == "no-store"
    assert found.content_settings.content_encoding == "identity"
    assert {name.lower(): value for name, value in found.metadata.items()} == {"origin": "node"}
    assert found.blob_tier == "Cool"


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({"Authorization": "Bearer x"}, "Authorization is set by the node"),
        ({"content-length": "3"}, "content-length is set by the node"),
        ({"x-ms-meta-a": "b\r\nx-ms-evil: 1"}, "'x-ms-meta-a' is not a header"),
        ({"bad name": "b"}, "'bad name' is not a header"),
    ],
)
async def test_headers_that_would_make_another_request_are_refused(
    task: Task, container: Container, headers: dict[str, str], text: str
) -> None:
    """By name, never with the value; the other rules are followed."""
    task.file("a")
    url = container.url_with_sas("cw")
    task.rules = [rule("a", url, "refused", headers=headers), rule("a", url, "taken")]
    failure = await task.upload()
    assert failure is not None
    assert failure.code == "FileUploadMiscError"
    assert text in details(failure)["Message"]
    assert "Bearer x" not in failure.to_json() + task.log("fileuploaderr.txt")
    assert container.names() == ["taken"]


async def test_a_blob_that_is_there_is_replaced(task: Task, container: Container) -> None:
    """As Batch does it."""
    container.put("a", b"old")
    task.file("a", "new")
    task.rules = [rule("a", container.url_with_sas("w"))]
    assert await task.upload() is None
    assert container.content("a") == b"new"


async def test_no_access_is_told_with_status_code_request_and_no_sas(
    task: Task, container: Container, azurite: Azurite
) -> None:
    """The other files are uploaded; the first failure gives the code."""
    task.file("a")
    task.file("b")
    other = azurite.container()
    task.rules = [
        rule("*", other.url_with_sas("r")),
        rule("*", container.url_with_sas("cw")),
        rule("a", container.url_with_sas("cw", expires=timedelta(hours=-1)), "expired"),
    ]
    failure = await task.upload()
    assert failure is not None
    assert failure.code == "FileUploadAccessDenied"
    found = details(failure)
    assert found["Failed"] == "3 of 5 files"
    assert found["HttpStatus"] == "403"
    assert found["StorageErrorCode"] == "AuthorizationPermissionMismatch"
    assert found["RequestId"]
    assert found["Attempts"] == "1"
    assert "File3" in found
    told = task.log("fileuploaderr.txt")
    assert f"{other.url}/a: the server answered with status 403" in told
    assert "1 attempt" in told
    assert "2 of 5 files uploaded" in task.log()
    assert container.names() == ["a", "b"]
    async with task.ledgers():
        kept = b"".join(path.read_bytes() for path in task.root.parent.glob("task-agent.db*"))
    for text in (failure.to_json(), told, task.log(), kept.decode(errors="replace")):
        assert "sig=" not in text
        assert "se=" not in text


async def test_a_container_that_is_not_there_has_its_own_code(task: Task, azurite: Azurite) -> None:
    """As documented."""
    container = azurite.container()
    url = container.url_with_sas("cw")
    container.client.delete_container()
    task.file("a")
    task.rules = [rule("a", url)]
    failure = await task.upload()
    assert failure is not None
    assert failure.code == "FileUploadContainerNotFound"
    assert details(failure)["StorageErrorCode"] == "ContainerNotFound"


async def test_a_lease_of_somebody_else_is_a_conflict(task: Task, container: Container) -> None:
    """So is a condition that does not hold: 412 and 409."""
    container.put("leased", b"old")
    container.client.get_blob_client("leased").acquire_lease()
    container.put("there", b"old")
    task.file("a")
    url = container.url_with_sas("cw")
    task.rules = [rule("a", url, "leased"), rule("a", url, "there", headers={"If-None-Match": "*"})]
    failure = await task.upload()
    assert failure is not None
    assert failure.code == "FileUploadConflict"
    assert details(failure)["Failed"] == "2 of 2 files"
    assert container.content("leased") == container.content("there") == b"old"


@pytest.mark.parametrize("url", ["nonsense", "https://", "ftp://host/container", "https://host", "http://ho st/c"])
async def test_a_container_url_that_is_none_is_told(task: Task, url: str) -> None:
    """Nothing is asked, so there is nothing to try again."""
    task.file("a")
    task.rules = [rule("a", url)]
    failure = await task.upload()
    assert failure is not None
    assert failure.code == "FileUploadMiscError"
    assert "containerUrl is not the URL of a container" in details(failure)["Message"]


async def test_what_is_no_regular_file_is_skipped_and_named(task: Task, container: Container) -> None:
    """Nothing of it is opened, so nothing waits for a writer; a link in a circle ends."""
    task.file("regular")
    os.mkfifo(task.wd / "pipe")
    (task.wd / "nowhere").symlink_to("gone")
    (task.wd / "circle").symlink_to("circle")
    (task.wd / "null").symlink_to("/dev/null")
    (task.wd / "again").symlink_to(".")
    (task.wd / "linked").symlink_to("regular")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(task.wd / "socket"))
        task.rules = [rule("**", container.url_with_sas("cw")), rule("pipe", container.url_with_sas("cw"), "pipe")]
        assert await task.upload() is None
    assert container.names() == ["linked", "regular"]
    told = task.log("fileuploaderr.txt")
    for name, kind in [("pipe", "a named pipe"), ("socket", "a socket"), ("null", "a device"), ("nowhere", "a link")]:
        assert f"{task.wd}/{name}: not uploaded: it is {kind}" in told


async def test_names_that_no_blob_can_have_fail_and_the_others_go_on(task: Task, container: Container) -> None:
    """Bytes that are no UTF-8, and names that are too long."""
    task.file("good")
    (task.wd / os.fsdecode(b"bad\xff\n")).write_text("x")
    task.file("/".join(["d" * 200] * 6) + "/deep")
    task.rules = [rule("**", container.url_with_sas("cw"))]
    failure = await task.upload()
    assert failure is not None
    assert failure.code == "FileUploadMiscError"
    assert details(failure)["Failed"] == "2 of 3 files"
    told = task.log("fileuploaderr.txt")
    assert "bad\\xff\\n: the name has bytes or control characters" in told
    assert "would have 1210 characters; at most 1024" in told
    assert container.names() == ["good"]


async def test_of_files_for_one_blob_the_last_is_uploaded(task: Task, container: Container) -> None:
    """As if they had gone one after the other; which one did not go is told."""
    task.file("first/a", "1")
    task.file("second/a", "2")
    url = container.url_with_sas("cw")
    task.rules = [rule("first/a", url), rule("second/a", url)]
    assert await task.upload() is None
    assert container.content("a") == b"2"
    assert f"{task.wd}/first/a: not uploaded: {task.wd}/second/a goes to the same blob a" in task.log(
        "fileuploaderr.txt"
    )


async def test_a_task_cannot_lead_the_logs_astray(task: Task, container: Container, tmp_path: Path) -> None:
    """A link in their place is replaced; what it led to is not touched. A pipe does not hang."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (task.root / "fileuploadout.txt").symlink_to(victim)
    os.mkfifo(task.root / "fileuploaderr.txt")
    task.file("a")
    task.rules = [rule("a", container.url_with_sas("cw")), rule("*/../b", container.url_with_sas("cw"))]
    assert await task.upload() is not None
    assert victim.read_text() == "untouched"
    assert not (task.root / "fileuploadout.txt").is_symlink()
    assert f"{task.wd}/a -> {container.url}/a: 7 bytes, 1 attempt" in task.log()
    assert "filePattern must have '..' only before" in task.log("fileuploaderr.txt")
    assert sorted(path.name for path in task.root.iterdir()) == ["fileuploaderr.txt", "fileuploadout.txt", "wd"]


async def test_a_second_call_uploads_nothing_and_tells_the_same(task: Task, container: Container) -> None:
    """The end of an upload is known after a kill, too."""
    task.file("a", "1")
    task.rules = [rule("a", container.url_with_sas("cw")), rule("[a]b*/../c", container.url_with_sas("cw"))]
    first = await task.upload()
    lines = task.log()
    task.file("a", "2")
    task.file("new", "3")
    assert await task.upload() == first
    assert container.content("a") == b"1"
    assert container.names() == ["a"]
    assert task.log() == lines
    async with task.ledgers() as ledgers:
        await ledgers.forget(["a1-1"])
        assert await ledgers.of("a1-1").planned() is None


async def test_an_empty_plan_is_a_plan(task: Task, container: Container) -> None:
    """What appears after the task's end is not uploaded by a second life."""
    task.rules = [rule("*.txt", container.url_with_sas("cw"))]
    assert await task.upload() is None
    task.file("late.txt")
    assert await task.upload() is None
    assert container.names() == []


async def test_a_deep_tree_and_many_files_are_found_without_harm(task: Task, container: Container) -> None:
    """A directory chain deeper than any path can be is left where it ends, and said so; 300 files go."""
    handle = os.open(task.wd, os.O_RDONLY)
    for _ in range(30):  # 200 characters each: together more than the 4096 bytes that a path can have
        os.mkdir("deep" * 50, dir_fd=handle)
        below = os.open("deep" * 50, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)
    for number in range(300):
        task.file(f"many/{number}", str(number))
    task.rules = [rule("many/*", container.url_with_sas("cw")), rule("deep*/**", container.url_with_sas("cw"))]
    failure = await task.upload()
    assert len(container.names()) == 300
    assert container.content("299") == b"299"
    assert "File name too long" in details(failure)["Message"]
    assert details(failure)["Failed"] == "1 of 301 files"


async def test_a_storage_that_is_not_reached_is_not_tried_for_ever(task: Task, container: Container) -> None:
    """After some files that did not reach it the others are not tried, so a task does not wait for hours."""
    for number in range(30):
        task.file(f"{number:02}")
    task.settings = TransferSettings(transfers=8, transfer_tries=1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        task.rules = [rule("*", f"http://127.0.0.1:{port}/c"), rule("00", container.url_with_sas("cw"), "other")]
        failure = await task.upload()
    assert failure is not None
    assert failure.code == "FileUploadMiscError"
    told = task.log("fileuploaderr.txt")
    assert told.count("no connection to 127.0.0.1") == 30
    assert 1 <= told.count("not tried after 16 others had failed") <= 14
    assert container.names() == ["other"]
