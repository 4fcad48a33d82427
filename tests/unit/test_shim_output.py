"""A capped output file keeps exactly the first and the last bytes, however they come."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.shim.output import CappedFile, Pump
from nodeagent.shim.records import OutputCap


def kept(folder: Path, cap: OutputCap, chunks: list[bytes]) -> tuple[bytes, bytes]:
    """What is in the file before and after it is finished."""
    path = folder / "out"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    capped = CappedFile(file, cap)
    for chunk in chunks:
        capped.take(chunk)
    running = path.read_bytes()
    capped.finish()
    return running, path.read_bytes()


@given(chunks=st.lists(st.binary(max_size=40), max_size=12), head=st.integers(0, 50), tail=st.integers(0, 50))
def test_head_and_tail_of_any_output(
    chunks: list[bytes], head: int, tail: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whole output if it fits; else its head, a note of how much is missing, and its tail; never more on disk."""
    everything = b"".join(chunks)
    running, finished = kept(tmp_path_factory.getbasetemp(), OutputCap(head, tail), chunks)
    assert len(running) <= head + tail
    omitted = len(everything) - head - tail
    if omitted <= 0:
        assert finished == everything
    else:
        note = f"\n[{omitted} bytes left out: the output is capped]\n".encode()
        assert finished == everything[:head] + note + everything[len(everything) - tail :]


def test_a_full_disk_loses_output_and_not_the_task() -> None:
    """The pump goes on reading: a task must not get SIGPIPE because its output has no room."""
    pump = Pump(os.open("/dev/full", os.O_RDWR), OutputCap(4, 4))
    writer = os.dup(pump.sink)
    pump.start()
    for _ in range(100):
        os.write(writer, b"x" * 65536)  # more than a pipe holds
    os.close(writer)
    assert pump.finish(5)


def test_pump_moves_what_is_written_until_the_last_writer_is_gone(tmp_path: Path) -> None:
    """The pump says whether the pipe has ended, and by then everything is in the file."""
    file = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    pump = Pump(file, OutputCap(4, 4))
    holder = os.dup(pump.sink)
    os.write(pump.sink, b"0123456789abcdef")
    pump.start()
    assert not pump.finish(0.01)
    os.close(holder)
    assert pump.finish(5)
    assert (tmp_path / "out").read_bytes().startswith(b"0123\n[8 bytes left out")
    assert (tmp_path / "out").read_bytes().endswith(b"\ncdef")
