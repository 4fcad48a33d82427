"""How packages are named (spec/node.md §6), and what their zip may hold."""

import io
import stat
import struct
import warnings
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nodeagent.model.protocol import ApplicationPackage, Assignment, AttemptKind, Work, WorkConstraints
from nodeagent.model.task import DEFAULT_RETENTION
from nodeagent.model.values import DEFAULT_USER_IDENTITY, EnvironmentSetting
from nodeagent.rules import package_zip
from nodeagent.rules.environment import NodeFacts, task_environment
from nodeagent.rules.layout import NodeLayout
from nodeagent.rules.package_zip import Kind, PackageZipError
from nodeagent.rules.packages import directory_name, id_problem, reference, variables, version_problem
from tests.unit.package_zips import Made, folder, link, zipped

NASTY = {
    "parent": (Made("../x"), "leads out of the package"),
    "parent inside": (Made("a/../../x"), "leads out of the package"),
    "parent that stays": (Made("a/../x"), "leads out of the package"),
    "absolute": (Made("/etc/passwd"), "has an absolute name"),
    "backslash": (Made("a\\..\\x"), "has a backslash in its name"),
    "drive": (Made("C:/x"), "has a name with a drive letter"),
    "long component": (Made("x" * 256), "has a name of more than 255 bytes"),
    "long component in UTF-8": (Made("ä" * 128), "has a name of more than 255 bytes"),
    "long path": (Made("/".join(["x" * 99] * 41)), "has a name of more than 4095 bytes"),
    "deep": (Made("x/" * 100 + "y"), "lies more than 100 directories deep"),
    "no name": (Made("./."), "is no name of a file"),
    "fifo": (Made("x", mode=stat.S_IFIFO | 0o644), "is a special file"),
    "device": (Made("x", mode=stat.S_IFBLK | 0o644), "is a special file"),
    "socket": (Made("x", mode=stat.S_IFSOCK | 0o644), "is a special file"),
    "directory with content": (Made("x/", b"text"), "is a directory with content"),
    "encrypted": (Made("x", b"text", flags=0x1), "is encrypted"),
    "strongly encrypted": (Made("x", b"text", flags=0x40), "is encrypted"),
    "another method": (Made("x", b"text", method=zipfile.ZIP_LZMA), "is compressed by method 14"),
    "absolute link": (link("x", "/etc/passwd"), "is a link that could lead out of the package"),
    "climbing link": (link("a/x", "../../y"), "is a link that could lead out of the package"),
    "link that climbs late": (link("a/x", "y/../../z"), "is a link that could lead out of the package"),
    "empty link": (link("x", ""), "is a link that could lead out of the package"),
    "long link": (link("x", "y" * 5000), "is a link with a target of more than 4095 bytes"),
}


def look(*entries: Made) -> list[package_zip.Entry]:
    """Return the entries of a package."""
    with package_zip.package_zip(io.BytesIO(zipped(entries))) as package:
        return list(package.entries)


@pytest.mark.parametrize("name", NASTY)
def test_what_no_package_may_hold_is_refused_by_name(name: str) -> None:
    """The refusal names the entry and says what is wrong with it."""
    entry, reason = NASTY[name]
    with pytest.raises(PackageZipError) as caught:
        look(Made("fine", b"text"), entry)
    assert str(caught.value).startswith("entry '")
    assert reason in str(caught.value)


def test_a_nul_hides_nothing() -> None:
    """Zipfile cuts names at a NUL: the whole name counts."""
    data = zipped([Made("fine.txt"), Made("evilXtxt")]).replace(b"evilXtxt", b"evil\0txt")
    with pytest.raises(PackageZipError, match="NUL"), package_zip.package_zip(io.BytesIO(data)):
        pass


@pytest.mark.parametrize(
    "entries",
    [
        (Made("a"), Made("a")),
        (Made("a"), Made("./a")),
        (Made("a"), link("a", "b")),
        (Made("a"), Made("a/b")),
        (Made("a/b"), Made("a")),
        (link("a", "b"), Made("a/c")),
        (folder("a/"), Made("a")),
    ],
)
def test_entries_in_each_others_way_are_refused(entries: tuple[Made, ...]) -> None:
    """Two entries of one name, or something below what is no directory: there is no right answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of the duplicates that this test wants
        data = zipped(entries)
    with pytest.raises(PackageZipError), package_zip.package_zip(io.BytesIO(data)):
        pass


def test_what_an_entry_becomes() -> None:
    """Everybody may read, and execute what somebody may; setuid goes; links come last."""
    found = look(
        link("bin/python", "../lib/./python3"),
        Made("bin/tool", b"x", mode=stat.S_IFREG | 0o4700),
        Made("doc.txt", b"x", mode=0),
        folder("empty/"),
        folder("./"),
    )
    assert [(entry.path, entry.kind, entry.mode) for entry in found] == [
        (("empty",), Kind.DIRECTORY, 0o755),
        (("bin", "tool"), Kind.FILE, 0o755),
        (("doc.txt",), Kind.FILE, 0o644),
        (("bin", "python"), Kind.LINK, 0o777),
    ]


def test_a_size_that_deflate_cannot_reach_is_a_lie() -> None:
    """The claim is refused before a byte is unpacked."""
    data = bytearray(zipped([Made("x", b"text")]))
    at = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 24, 1 << 30)
    with pytest.raises(PackageZipError, match="more than 1100 times"), package_zip.package_zip(io.BytesIO(data)):
        pass


def test_entries_that_share_their_bytes_are_refused() -> None:
    """Many names for the same deflated bytes make a small file unpack to any size."""
    data = bytearray(zipped([Made("a", b"first" * 99), Made("b", b"second" * 99)]))
    first = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, data.index(b"PK\x01\x02", first + 4) + 42, 0)  # b's header is a's
    with pytest.raises(PackageZipError, match="shares its bytes"), package_zip.package_zip(io.BytesIO(data)):
        pass


def test_too_many_entries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries count, and so do the directories that names imply."""
    monkeypatch.setattr(package_zip, "MAX_ENTRIES", 10)
    look(*(Made(f"f{number}") for number in range(10)))
    with pytest.raises(PackageZipError, match="has 11 entries"):
        look(*(Made(f"f{number}") for number in range(11)))
    with pytest.raises(PackageZipError, match="more than 10 directories"):
        look(Made("a/b/c/d/e/f"), Made("g/h/i/j/k/l/m"))


def test_a_table_of_contents_too_large_for_memory_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zipfile reads it whole: a file that announces a huge one is refused before."""
    monkeypatch.setattr(package_zip, "_MAX_TABLE_BYTES", 1000)
    with pytest.raises(PackageZipError, match="names that are far too long"):
        look(*(Made(f"file{number}") for number in range(50)))


@pytest.mark.parametrize("data", [b"", b"no zip at all", b"PK\x05\x06" + bytes(8) + b"\xff" + bytes(9)])
def test_what_is_no_zip_is_told(data: bytes) -> None:
    """Anything else than a zip is refused as such."""
    with pytest.raises(PackageZipError, match="not a zip file"), package_zip.package_zip(io.BytesIO(data)):
        pass


def package(application: str, version: str, *, default: bool = False) -> ApplicationPackage:
    """Return a package."""
    return ApplicationPackage(application_id=application, version=version, is_default=default, sha256="0" * 64, size=1)


def test_the_variables_of_a_package_have_all_spellings() -> None:
    """spec/node.md §6: case preserved and upper case, with and without version, `.` and `-` become `_`."""
    assert variables([(package("blender", "2.80-daily"), "/a/blender")]) == dict.fromkeys(
        (
            "AZ_BATCH_APP_PACKAGE_blender",
            "AZ_BATCH_APP_PACKAGE_BLENDER",
            "AZ_BATCH_APP_PACKAGE_blender_2_80_daily",
            "AZ_BATCH_APP_PACKAGE_BLENDER_2_80_DAILY",
        ),
        "/a/blender",
    )


@pytest.mark.parametrize("default", ["1", "2", None])
def test_the_variable_without_version_names_the_default_else_the_last(default: str | None) -> None:
    """Of several versions that are referred to, the default is meant."""
    found = variables([(package("a", number, default=number == default), f"/{number}") for number in ("1", "2")])
    assert found["AZ_BATCH_APP_PACKAGE_a"] == f"/{default or 2}"
    assert (found["AZ_BATCH_APP_PACKAGE_a_1"], found["AZ_BATCH_APP_PACKAGE_A_2"]) == ("/1", "/2")


def test_names_of_directories_and_references() -> None:
    """The directory has the form that Batch's nodes show."""
    at = datetime(2019, 1, 15, 9, 16, 59, tzinfo=UTC)
    assert directory_name(package("ffmpeg", "4.1"), at) == "ffmpeg4.12019-01-15-09-16"
    assert (reference("a", "1"), reference("a", None), reference("a", "")) == ("a:1", "a", "a")


@pytest.mark.parametrize("text", ["", "x" * 65, "a b", "a/b", "ä", "a\n"])
def test_ids_and_versions_that_batch_refuses(text: str) -> None:
    """1 to 64 of a small alphabet."""
    assert id_problem(text) is not None
    assert version_problem(text) is not None


def test_only_versions_have_dots() -> None:
    """And not only dots."""
    assert id_problem("a.b") is not None
    assert version_problem("1.2-rc_1") is None
    assert id_problem("Az09_-") is None
    assert version_problem("..") is not None


def test_nothing_of_the_task_replaces_the_variables_of_its_packages() -> None:
    """They are the service's, as all that begins with AZ_BATCH_; other settings may refer to them."""
    mine = {"AZ_BATCH_APP_PACKAGE_a": "/mine", "TOOL": "$AZ_BATCH_APP_PACKAGE_a/bin/tool"}
    assignment = Assignment(
        attempt_id="x",
        attempt_kind=AttemptKind.USER,
        job_id="j",
        task_id="t",
        work=Work(
            command_line="true",
            environment_settings=tuple(EnvironmentSetting(name=name, value=value) for name, value in mine.items()),
            constraints=WorkConstraints(retention_time=DEFAULT_RETENTION),
            user_identity=DEFAULT_USER_IDENTITY,
        ),
    )
    node = NodeFacts("account", "http://a/", "pool", "n", NodeLayout(Path("/r")), "someone")
    found = task_environment(node, assignment, {"AZ_BATCH_APP_PACKAGE_a": "/packages/a"})
    assert (found["AZ_BATCH_APP_PACKAGE_a"], found["TOOL"]) == ("/packages/a", "/packages/a/bin/tool")
