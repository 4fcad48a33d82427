"""Records are whole or absent: what was written is read again, and anything else is named as damage."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.shim import records
from nodeagent.shim.records import (
    Deadline,
    ExecError,
    ExitRecord,
    OutputCap,
    RecordError,
    ShimRecord,
    Spec,
    StartedRecord,
    StopRecord,
    SweptRecord,
    Usage,
    User,
)

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
COUNT = st.integers(0, 2**40)
SECONDS = st.floats(0, 1e10, allow_nan=False)
PATH = TEXT.map(lambda text: f"/{text}")

SPECS = st.builds(
    Spec,
    attempt_id=TEXT,
    argv=st.lists(TEXT, min_size=1, max_size=4).map(tuple),
    env=st.dictionaries(TEXT.filter(lambda name: bool(name) and "=" not in name), TEXT, max_size=4),
    cwd=PATH,
    stdout=PATH,
    stderr=PATH,
    boundary=st.dictionaries(TEXT, TEXT, max_size=3),
    user=st.none() | st.builds(User, COUNT, COUNT, st.lists(COUNT, max_size=3).map(tuple)),
    limits=st.dictionaries(TEXT, COUNT, max_size=3),
    grace_seconds=SECONDS,
    deadline=st.none() | st.builds(Deadline, SECONDS, TEXT),
    output_cap=st.none() | st.builds(OutputCap, COUNT, COUNT),
    durability=st.sampled_from(["process", "power"]),
)
EXITS = st.builds(
    ExitRecord,
    attempt_id=TEXT,
    ended_at=SECONDS,
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    core=st.booleans(),
    exec_error=st.none() | st.builds(ExecError, COUNT, TEXT, TEXT, TEXT, TEXT, st.none() | COUNT, TEXT),
    never_started=st.booleans(),
    started_at=st.none() | SECONDS,
    usage=st.none() | st.builds(Usage, SECONDS, SECONDS, COUNT, COUNT, COUNT),
    stop_reason=st.none() | TEXT,
)
RECORDS: st.SearchStrategy[Any] = st.one_of(
    SPECS,
    EXITS,
    st.builds(ShimRecord, TEXT, COUNT, COUNT, TEXT),
    st.builds(StartedRecord, TEXT, COUNT, COUNT, SECONDS),
    st.builds(SweptRecord, TEXT, COUNT, COUNT, TEXT, st.booleans()),
    st.builds(StopRecord, TEXT, SECONDS, SECONDS),
)


@given(RECORDS)
def test_what_is_encoded_is_decoded_again(record: Any) -> None:  # noqa: ANN401 - a union does not fit decode
    """Encoding and decoding any record gives the same record, and what is on disk is JSON."""
    data = records.encode(record)
    assert records.decode(type(record), data, "here") == record
    assert json.loads(data)["version"] == records.VERSION


@given(EXITS, st.data())
def test_any_change_of_a_byte_is_damage(record: ExitRecord, data: st.DataObject) -> None:
    """One byte changed, or any tail cut off, is told from a whole record."""
    good = records.encode(record)
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[at] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(flipped), good[:at]):
        with pytest.raises(RecordError, match=r"exit\.json"):
            records.decode(ExitRecord, bad, "exit.json")


def test_records_are_files_written_whole(tmp_path: Path) -> None:
    """A written record is read back, an absent one is None, and no temporary file stays."""
    folder = str(tmp_path)
    record = StopRecord("user_terminate", 10, 1.5)
    assert records.read(folder, StopRecord) is None
    assert not records.exists(folder, StopRecord.FILE)
    records.write(folder, record, durable=True)
    assert records.read(folder, StopRecord) == record
    assert [path.name for path in tmp_path.iterdir()] == ["stop.json"]
    assert (tmp_path / "stop.json").stat().st_mode & 0o777 == 0o600


def test_a_crash_before_the_rename_leaves_no_record(tmp_path: Path) -> None:
    """A torn temporary file is not a record, and the next write replaces it."""
    (tmp_path / ".stop.json.tmp").write_bytes(b'{"version":1,"rea')
    assert records.read(str(tmp_path), StopRecord) is None
    records.write(str(tmp_path), StopRecord("x", 1, 1))
    assert records.read(str(tmp_path), StopRecord) == StopRecord("x", 1, 1)


def test_damage_names_the_file(tmp_path: Path) -> None:
    """Who reads a damaged record learns which file it is."""
    (tmp_path / "stop.json").write_bytes(b"{}")
    with pytest.raises(RecordError, match=str(tmp_path / "stop.json")):
        records.read(str(tmp_path), StopRecord)


def test_newer_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of a later layout is not guessed at."""
    monkeypatch.setattr(records, "VERSION", 2)
    later = records.encode(StopRecord("x", 1, 1))
    monkeypatch.undo()
    with pytest.raises(RecordError, match="version 2, this program knows 1"):
        records.decode(StopRecord, later, "stop.json")


def test_record_of_another_kind_is_damage() -> None:
    """Members that the kind does not have are named."""
    with pytest.raises(RecordError, match="'reason'"):
        records.decode(ExitRecord, records.encode(StopRecord("x", 1, 1)), "exit.json")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"argv": ()}, "argv"),
        ({"cwd": "relative"}, "cwd"),
        ({"stdout": "stdout.txt"}, "stdout"),
        ({"env": {"A=B": "c"}}, "env"),
        ({"env": {"": "c"}}, "env"),
        ({"argv": ("a\0b",)}, "NUL"),
        ({"durability": "never"}, "durability"),
        ({"output_cap": OutputCap(1, 1), "sweep": False}, "output_cap"),
    ],
)
def test_spec_that_no_kernel_would_take_is_refused(changes: dict[str, Any], named: str) -> None:
    """A bad spec is refused where it is made, and the property is named."""
    good: dict[str, Any] = {
        "attempt_id": "a",
        "argv": ("true",),
        "env": {},
        "cwd": "/",
        "stdout": "/o",
        "stderr": "/e",
        "boundary": {},
    }
    assert Spec(**good).durability == "process"
    with pytest.raises(ValueError, match=named):
        Spec(**good | changes)
