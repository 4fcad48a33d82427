"""What the node's cache saves when many tasks ask for one file, and what it costs: against fetching it each time.

200 tasks want the same 256 MiB, 16 at a time. From nginx with the cache and without, from Azurite with the cache and
with a download by azure-storage-blob for each task; `cp` of the same bytes is the limit. Each contestant runs in a
process of its own; CPU and memory (VmHWM) are that process's, and of `cp` those of its processes. A task's file is
removed when the next task begins unless `--keep` is given, because 50 GiB are a lot of disk. Bytes are those that came
over the loopback interface: let nothing else run. With root and mkfs.xfs all of it also runs on an XFS with reflinks.

    python -m benchmarks.cache                      (from the root of the repository)
    python -m benchmarks.cache --tasks 20 --mib 32 --output cache.md
"""

import argparse
import asyncio
import filecmp
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

# What serves, and what is measured, is imported where it is used: a contestant must not pay for another's imports.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    from nodeagent.transfer.http_download import Downloads

MIB = 1 << 20
_A_DAY = timedelta(days=1)
Bring = Callable[[Path], Awaitable[None]]
"""Brings the file to `f` in the task's directory."""


@dataclass(frozen=True)
class Job:
    """What a contestant has to do."""

    url: str
    original: str
    """The same bytes, on the file system that is measured."""
    tasks: int
    at_a_time: int
    keep: bool


@dataclass(frozen=True)
class Measured:
    """One run."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    received_bytes: int


def _received() -> int:
    """Bytes that came over the loopback interface since the machine started."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _cpu() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


async def _all_tasks(job: Job, folder: Path, bring: Bring) -> Measured:
    """Serve all tasks, so many at a time; the last file is compared when the time has been taken."""
    numbers = iter(range(job.tasks))
    size = Path(job.original).stat().st_size  # noqa: ASYNC240 - before the time is taken
    last: Path | None = None

    async def slot() -> None:
        nonlocal last
        for number in numbers:
            directory = folder / f"t{number}"
            directory.mkdir()
            await bring(directory)
            assert (directory / "f").stat().st_size == size
            if not job.keep and last is not None:
                (last / "f").unlink()
            last = directory

    start, cpu, received = time.perf_counter(), _cpu(), _received()
    await asyncio.gather(*(slot() for _ in range(job.at_a_time)))
    measured = Measured(time.perf_counter() - start, _cpu() - cpu, _peak(), _received() - received)
    if last is None or not filecmp.cmp(job.original, last / "f", shallow=False):
        raise RuntimeError(f"what came to {last} is not what it should be")
    return measured


@asynccontextmanager
async def _downloads(folder: Path) -> AsyncIterator["Downloads"]:
    from nodeagent.model.values import NodeIdentityReference
    from nodeagent.transfer.base import TransferSettings
    from nodeagent.transfer.http_download import Downloads

    async def no_tokens(_identity: NodeIdentityReference) -> str:
        raise RuntimeError("nobody asked for a token")

    async with Downloads(TransferSettings(), folder / "staging", no_tokens).connected() as downloads:
        yield downloads


async def _cached(job: Job, folder: Path) -> Measured:
    from nodeagent.transfer.cache import CachingFetcher

    async with _downloads(folder) as downloads:
        cache = CachingFetcher(downloads, folder / "cache", 4 * Path(job.original).stat().st_size, "stat")  # noqa: ASYNC240
        await cache.open()
        return await _all_tasks(job, folder, _by(cache, job))


async def _direct(job: Job, folder: Path) -> Measured:
    from nodeagent.transfer.fetch import DirectFetcher

    async with _downloads(folder) as downloads:
        return await _all_tasks(job, folder, _by(DirectFetcher(downloads), job))


def _by(fetcher: object, job: Job) -> Bring:
    from nodeagent.model.protocol import TransferPhase
    from nodeagent.transfer.base import Download, Meter, Place
    from nodeagent.transfer.cache import CachingFetcher
    from nodeagent.transfer.fetch import DirectFetcher

    assert isinstance(fetcher, CachingFetcher | DirectFetcher)

    async def bring(directory: Path) -> None:
        meter = Meter(directory.name, TransferPhase.DOWNLOADING)
        await fetcher.bring(Download(job.url, "f", 0o770), Place(directory), meter)

    return bring


async def _sdk(job: Job, folder: Path) -> Measured:
    from azure.storage.blob.aio import BlobClient

    async def bring(directory: Path) -> None:
        async with BlobClient.from_blob_url(job.url) as blob:
            download = await blob.download_blob(max_concurrency=4)
            with (directory / "f").open("wb") as file:
                await download.readinto(file)

    return await _all_tasks(job, folder, bring)


def _cp(*options: str) -> Callable[[Job, Path], Awaitable[Measured]]:
    async def run(job: Job, folder: Path) -> Measured:
        async def bring(directory: Path) -> None:
            process = await asyncio.create_subprocess_exec("cp", *options, job.original, str(directory / "f"))
            if await process.wait() != 0:
                raise RuntimeError("cp failed")

        measured = await _all_tasks(job, folder, bring)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return Measured(measured.seconds, measured.cpu_seconds, peak, measured.received_bytes)

    return run


CONTESTANTS: dict[str, Callable[[Job, Path], Awaitable[Measured]]] = {
    "cp": _cp("--reflink=never"),
    "cp-reflink": _cp("--reflink=always"),
    "cached": _cached,
    "direct": _direct,
    "sdk": _sdk,
}


@dataclass(frozen=True)
class Row:
    """One line of the table: who, under which name, and whose server is asked."""

    name: str
    contestant: str
    server: str


ROWS = (
    Row("`cp` (the limit)", "cp", "nginx"),
    Row("`cp --reflink` (the limit)", "cp-reflink", "nginx"),
    Row("nodeagent with its cache, nginx", "cached", "nginx"),
    Row("nodeagent without, nginx", "direct", "nginx"),
    Row("nodeagent with its cache, Azurite", "cached", "azurite"),
    Row("nodeagent without, Azurite", "direct", "azurite"),
    Row("azure-storage-blob for each task, Azurite", "sdk", "azurite"),
)
CACHED = ROWS[2]


def _run(contestant: str, job: Job, root: Path) -> Measured:
    """Run it once in a process and a folder of its own."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        (folder / "job.json").write_text(json.dumps(asdict(job)))
        command = [sys.executable, "-m", "benchmarks.cache", "--contestant", contestant, str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return Measured(**json.loads(done.stdout.splitlines()[-1]))
    finally:
        shutil.rmtree(folder)


def table(title: str, rows: Sequence[Row], jobs: dict[str, Job], root: Path, repeats: int) -> str:
    """Measure all in turns, return a table in markdown: medians."""
    runs: dict[Row, list[Measured]] = {row: [] for row in rows}
    for _ in range(repeats):
        for row in rows:
            runs[row].append(_run(row.contestant, jobs[row.server], root))
            print(f"{row.name}: {runs[row][-1].seconds:.2f} s", file=sys.stderr, flush=True)
    reference = statistics.median(run.seconds for run in runs[CACHED])
    lines = [title, "", "| | wall s | to the cache | CPU s | received MiB | peak MiB |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row, measured in runs.items():
        wall = statistics.median(run.seconds for run in measured)
        cpu = statistics.median(run.cpu_seconds for run in measured)
        received = statistics.median(run.received_bytes for run in measured) / MIB
        peak = max(run.peak_bytes for run in measured) / MIB
        ratio = wall / reference
        lines.append(f"| {row.name} | {wall:.2f} | {ratio:.2f} | {cpu:.2f} | {received:.0f} | {peak:.0f} |")
    return "\n".join([*lines, ""])


@contextmanager
def _served(folder: Path, size: int) -> Iterator[tuple[Path, dict[str, str]]]:
    """A file, and its URL at nginx and at Azurite."""
    from tests.integration.azurite import running_azurite
    from tests.integration.nginx import running_nginx

    (folder / "azurite").mkdir()
    with running_nginx(folder / "nginx") as nginx, running_azurite(folder / "azurite") as azurite:
        original = nginx.www / "f"
        with original.open("wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
        container = azurite.container()
        with original.open("rb") as file:
            container.client.upload_blob("f", file, max_concurrency=2)
        yield original, {"nginx": nginx.url("f"), "azurite": container.blob_url("f", expires=_A_DAY)}


@contextmanager
def _xfs(folder: Path, size: int) -> Iterator[Path | None]:
    """An XFS with reflinks in a file, mounted by a loop device; None where that cannot be had."""
    program = shutil.which("mkfs.xfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if os.geteuid() != 0 or program is None:
        print("no XFS: that needs root and mkfs.xfs (Debian package xfsprogs)", file=sys.stderr)
        yield None
        return
    image, mount = folder / "xfs.image", folder / "xfs"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([program, "-q", "-m", "reflink=1", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        image.unlink()


def measure(root: Path, options: argparse.Namespace) -> Iterator[str]:
    """Yield one table after the other."""
    size = options.mib * MIB
    files = 4 + (options.tasks if options.keep else 2 * options.at_a_time)
    what = f"{options.tasks} tasks, {options.at_a_time} at a time, one file of {options.mib} MiB"
    with _served(root, size) as (served, urls), _xfs(root, files * size + 1024 * MIB) as xfs:
        for where, name in ((root, f"the file system of {options.root}"), (xfs, "XFS with reflinks")):
            if where is None:
                continue
            original = shutil.copyfile(served, where / "original")
            jobs = {
                server: Job(url, str(original), options.tasks, options.at_a_time, options.keep)
                for server, url in urls.items()
            }
            rows = [row for row in ROWS if where is xfs or row.contestant != "cp-reflink"]
            title = f"{what}, on {name}; median of {options.repeats}; {os.cpu_count()} cores"
            yield table(title, rows, jobs, where, options.repeats)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--mib", type=int, default=256, help="size of the file")
    parser.add_argument("--at-a-time", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep every task's file to the end of its contestant")
    parser.add_argument(
        "--root", type=Path, default=Path(tempfile.gettempdir()), help="folder on the file system to use"
    )
    parser.add_argument("--output", type=Path, help="file for the tables, in markdown")
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        folder = Path(options.contestant[1])
        job = Job(**json.loads((folder / "job.json").read_text()))
        work = CONTESTANTS[options.contestant[0]](job, folder)
        print(json.dumps(asdict(asyncio.run(_measured(work)))))
        return
    tables: list[str] = []
    with tempfile.TemporaryDirectory(prefix="nodeagent-bench-", dir=options.root) as root:
        for made in measure(Path(root), options):
            print(made, flush=True)
            tables.append(made)
    if options.output is not None:
        options.output.write_text("\n".join(tables))


async def _measured(work: Awaitable[Measured]) -> Measured:
    return await work


if __name__ == "__main__":
    main()
