"""Boundary providers on this machine's kernel: the probe, nesting, sweeping with proof, and removal."""

import asyncio
import contextlib
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeagent.boundary import probe
from nodeagent.boundary.base import Boundary, BoundaryError, BoundaryProvider
from nodeagent.shim import kernel


def available() -> list[str]:
    """The kinds of boundary that this machine has; a unified one has no cgroup1, a plain user often neither."""
    kinds = []
    for kind in ("cgroup2", "cgroup1", "process_group"):
        with contextlib.suppress(BoundaryError):
            asyncio.run(probe.choose(f"test-{uuid.uuid4().hex}", kind).provider.close())
            kinds.append(kind)
    return kinds


KINDS = available()
CGROUPS = [kind for kind in KINDS if kind != "process_group"]


@pytest.fixture(params=KINDS)
async def provider(request: pytest.FixtureRequest) -> AsyncIterator[BoundaryProvider]:
    """A provider of each kind; at the end it has taken away what it made."""
    provider = probe.choose(f"test-{uuid.uuid4().hex}", request.param).provider
    yield provider
    await provider.close()


@contextmanager
def inside(boundary: Boundary, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process within a boundary, as the shim would have started it."""
    env = {kernel.BOUNDARY_VARIABLE: boundary["marker"], "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(argv, env=env, start_new_session=True) as process:
        if "path" in boundary:
            Path(boundary["path"], "cgroup.procs").write_text(str(process.pid))
        try:
            yield process
        finally:
            process.kill()


def test_probe_picks_the_strongest_that_works() -> None:
    """Left to itself it takes the first that works; asked for a kind, that kind; root always gets a cgroup."""
    assert probe.choose(f"test-{uuid.uuid4().hex}").provider.kind == KINDS[0]
    assert probe.choose("x", "process_group").provider.kind == "process_group"
    assert CGROUPS or os.geteuid() != 0


def test_probe_names_what_does_not_work(tmp_path: Path) -> None:
    """A wrong kind, or one that cannot be had, is refused with the reason; auto falls back and tells why."""
    with pytest.raises(BoundaryError, match="must be one of auto, cgroup2"):
        probe.choose("x", "jail")
    with pytest.raises(BoundaryError, match="no such hierarchy"):
        probe.choose("x", "cgroup2", parent=tmp_path)
    assert probe.choose("x", parent=tmp_path).provider.kind == "process_group"
    occupied = Path("/sys/fs/cgroup/unified" if Path("/sys/fs/cgroup/unified").exists() else "/sys/fs/cgroup")
    choice = probe.choose("x", parent=occupied / "cgroup.procs")
    assert choice.provider.kind == "process_group"
    assert "cannot make the cgroup" in choice.passed_over[0]


async def test_sweep_of_a_session_takes_what_is_nested_and_nothing_else(provider: BoundaryProvider) -> None:
    """Sweeping a session kills the processes of its attempts, leaves a neighbour's alone, and proves itself."""
    session, neighbour = provider.create("session"), provider.create("session2")
    attempt = provider.create("attempt", session)
    with (
        inside(session, "sleep", "600") as one,
        inside(attempt, "sh", "-c", "trap '' TERM; sleep 600 & wait") as two,
        inside(neighbour, "sleep", "600") as other,
    ):
        swept = await provider.sweep(session)
        assert swept.killed in (2, 3)  # the shell may not have forked yet
        assert swept.remaining == 0
        assert one.wait(5) == two.wait(5) == -9
        assert other.poll() is None
        assert (await provider.sweep(session)).killed == 0
        assert (await provider.sweep(neighbour)).killed == 1
    for boundary in (session, neighbour):
        provider.remove(boundary)
        provider.remove(boundary)


@pytest.mark.parametrize("kind", CGROUPS)
async def test_cgroup_in_use_is_not_removed(kind: str) -> None:
    """Removal of a boundary in which something lives is an error that names it; close waits, then says who is left."""
    provider = probe.choose(f"test-{uuid.uuid4().hex}", kind).provider
    boundary = provider.create("busy")
    assert provider.create("busy") == boundary
    with inside(boundary, "sleep", "600") as process:
        with pytest.raises(BoundaryError, match="busy"):
            provider.remove(boundary)
        with pytest.raises(BoundaryError, match=str(process.pid)):
            await provider.close(seconds=0.05)
    await provider.close()
    assert kernel.is_empty(boundary)
    with pytest.raises(OSError, match="No such file"):
        kernel.enter(boundary["path"])


@pytest.mark.parametrize("kind", CGROUPS)
async def test_home_of_the_shims_is_no_boundary(kind: str) -> None:
    """No session can be named like the cgroup in which the shims sit."""
    provider = probe.choose(f"test-{uuid.uuid4().hex}", kind).provider
    with pytest.raises(BoundaryError, match="shims"):
        provider.create("shims")
    await provider.close()
