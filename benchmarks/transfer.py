"""What it costs to bring files to a node: our downloads against others, and against `cp` of the same bytes.

A large file and many small ones from nginx, a large blob from Azurite. Each contestant runs in a process of its own,
in turns, and what it brought is compared with the original afterwards. For those in Python the time and the CPU are of
the transfer alone, since the agent is there already when a task comes; for programs they are of the whole process.
Memory is the process's peak (VmHWM). The numbers to compare are the ratios (docs/performance.md).

    python -m benchmarks.transfer                      (from the root of the repository)
    python -m benchmarks.transfer --quick --output transfer.md
"""

import argparse
import asyncio
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# What serves, and what is measured, is imported where it is used: a contestant must not pay for another's imports.
# ruff: noqa: PLC0415

MIB = 1 << 20
IN_FLIGHT = 8
POLL_SECONDS = 0.01
MEASURED = "measured: "


@dataclass(frozen=True)
class Files:
    """What is to be brought: URLs, and the originals in the same order."""

    title: str
    urls: tuple[str, ...]
    originals: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(path.stat().st_size for path in self.originals)


@dataclass(frozen=True)
class Measured:
    """One run."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Contestant:
    """Who brings files: `command` gets the files and an empty folder."""

    name: str
    command: Callable[[Files, Path], Sequence[str]]


def _peak(pid: int) -> int:
    """Return the peak memory of a process so far, 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in text.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def _run(contestant: Contestant, files: Files, root: Path) -> Measured:
    """Run it once in a fresh folder, and compare."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        command = contestant.command(files, folder)
        start, peak = time.perf_counter(), 0
        with (
            tempfile.TemporaryFile() as output,
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(command, stdout=output, stderr=errors) as process,
        ):
            while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
                peak = max(peak, _peak(process.pid))
                time.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(ended[1])
            output.seek(0)
            told = output.read().decode()
            errors.seek(0)
            complaint = errors.read().decode(errors="replace")
        if process.returncode != 0:
            raise RuntimeError(f"{contestant.name} failed with {process.returncode}: {complaint}")
        _compare(files, folder)
        usage = ended[2]
        if told.startswith(MEASURED):
            return Measured(**json.loads(told.removeprefix(MEASURED)), peak_bytes=peak)
        return Measured(seconds, usage.ru_utime + usage.ru_stime, peak)
    finally:
        shutil.rmtree(folder)


def _compare(files: Files, folder: Path) -> None:
    for number, original in enumerate(files.originals):
        if not filecmp.cmp(original, folder / str(number), shallow=False):
            raise RuntimeError(f"file {number} is not what it should be")


def _cp(files: Files, folder: Path) -> Sequence[str]:
    if len(files.originals) == 1:
        return ["cp", "--reflink=never", str(files.originals[0]), str(folder / "0")]
    return ["cp", "--reflink=never", *map(str, files.originals), str(folder)]


def _curl(*options: str) -> Callable[[Files, Path], Sequence[str]]:
    def command(files: Files, folder: Path) -> Sequence[str]:
        listed = folder / "curl.conf"
        lines = [f'url = "{url}"\noutput = "{folder / str(number)}"' for number, url in enumerate(files.urls)]
        listed.write_text("\n".join(lines))
        return ["curl", "-sS", "--fail", *options, "-K", str(listed)]

    return command


def _aria2c(files: Files, folder: Path) -> Sequence[str]:
    listed = folder / "aria2.txt"
    listed.write_text("".join(f"{url}\n  out={number}\n" for number, url in enumerate(files.urls)))
    options = ["-q", f"-x{IN_FLIGHT}", f"-s{IN_FLIGHT}", f"-j{IN_FLIGHT}", "-k8M", "--file-allocation=none"]
    return ["aria2c", *options, "-d", str(folder), "-i", str(listed)]


def _python(name: str) -> Callable[[Files, Path], Sequence[str]]:
    def command(files: Files, folder: Path) -> Sequence[str]:
        listed = folder / "urls.json"
        listed.write_text(json.dumps(files.urls))
        return [sys.executable, "-m", "benchmarks.transfer", "--contestant", name, str(folder)]

    return command


async def _ours(urls: Sequence[str], folder: Path) -> Measured:
    from nodeagent.model.protocol import TransferPhase
    from nodeagent.model.values import NodeIdentityReference
    from nodeagent.transfer.base import Meter, TransferSettings
    from nodeagent.transfer.http_download import Downloads, Fetched

    async def no_tokens(_identity: NodeIdentityReference) -> str:
        raise RuntimeError("nobody asked for a token")

    async def bring(number: int, url: str) -> None:
        fetched = await downloads.fetch(url, path=str(number), meter=meter)
        assert isinstance(fetched, Fetched)
        fetched.path.rename(folder / str(number))

    meter = Meter("benchmark", TransferPhase.DOWNLOADING)
    settings = TransferSettings(transfers=IN_FLIGHT)
    async with Downloads(settings, folder / "staging", no_tokens).connected() as downloads:
        start, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(bring(number, url) for number, url in enumerate(urls)))
        return Measured(time.perf_counter() - start, time.process_time() - cpu, 0)


async def _sdk(urls: Sequence[str], folder: Path) -> Measured:
    from azure.storage.blob.aio import BlobClient

    turns = asyncio.Semaphore(IN_FLIGHT)

    async def bring(number: int, url: str) -> None:
        async with turns, BlobClient.from_blob_url(url) as blob:
            download = await blob.download_blob(max_concurrency=IN_FLIGHT)
            with (folder / str(number)).open("wb") as file:
                await download.readinto(file)

    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(bring(number, url) for number, url in enumerate(urls)))
    return Measured(time.perf_counter() - start, time.process_time() - cpu, 0)


def contestant(name: str, folder: Path) -> None:
    """Be one of those in Python: bring what `urls.json` names, and say what it took."""
    urls = json.loads((folder / "urls.json").read_text())
    measured = asyncio.run({"ours": _ours, "sdk": _sdk}[name](urls, folder))
    print(MEASURED + json.dumps({"seconds": measured.seconds, "cpu_seconds": measured.cpu_seconds}))


LIMIT = Contestant("`cp` (the limit)", _cp)
OURS = Contestant("nodeagent", _python("ours"))
CURL = Contestant("`curl`", _curl())
CURL_PARALLEL = Contestant("`curl -Z`", _curl("-Z", "--parallel-max", str(IN_FLIGHT)))
ARIA2C = Contestant("`aria2c`", _aria2c)
SDK = Contestant("azure-storage-blob (aio)", _python("sdk"))


def table(files: Files, contestants: Sequence[Contestant], root: Path, repeats: int) -> str:
    """Measure all in turns, return a table in markdown: medians."""
    runs: dict[str, list[Measured]] = {one.name: [] for one in contestants}
    for _ in range(repeats):
        for one in contestants:
            runs[one.name].append(_run(one, files, root))
    walls = {name: statistics.median(run.seconds for run in measured) for name, measured in runs.items()}
    lines = [f"{files.title}, {files.size / MIB:.0f} MiB; median of {repeats}; {os.cpu_count()} cores", ""]
    lines += ["| | wall s | to `cp` | to nodeagent | CPU s | peak MiB |", "| --- | --- | --- | --- | --- | --- |"]
    for name, measured in runs.items():
        wall, cpu = walls[name], statistics.median(run.cpu_seconds for run in measured)
        peak = max(run.peak_bytes for run in measured) / MIB
        ratios = f"{wall / walls[LIMIT.name]:.2f} | {wall / walls[OURS.name]:.2f}"
        lines.append(f"| {name} | {wall:.2f} | {ratios} | {cpu:.2f} | {peak:.0f} |")
    return "\n".join([*lines, ""])


def _made(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        while size > 0:
            size -= file.write(os.urandom(min(size, MIB)))
    return path


@contextmanager
def _from_nginx(folder: Path, large: int, small: int) -> Iterator[tuple[Files, Files]]:
    from tests.integration.nginx import running_nginx

    with running_nginx(folder) as nginx:
        one = _made(nginx.www / "large", large)
        many = [_made(nginx.www / f"small{number}", 100 << 10) for number in range(small)]
        yield (
            Files("One file from nginx", (nginx.url("large"),), (one,)),
            Files(f"{small} files of 100 KiB from nginx", tuple(nginx.url(path.name) for path in many), tuple(many)),
        )


@contextmanager
def _from_azurite(folder: Path, large: Path) -> Iterator[Files]:
    from tests.integration.azurite import running_azurite

    folder.mkdir()
    with running_azurite(folder) as azurite:
        container = azurite.container()
        with large.open("rb") as file:
            container.client.upload_blob("large", file, max_concurrency=2)
        yield Files("One blob from Azurite", (container.blob_url("large"),), (large,))


def _installed(contestants: Sequence[Contestant]) -> list[Contestant]:
    there = [one for one in contestants if "`" not in one.name or shutil.which(one.name.split("`")[1].split()[0])]
    for one in set(contestants) - set(there):
        print(f"{one.name} is not installed: left out", file=sys.stderr)
    return there


def measure(root: Path, *, quick: bool, repeats: int) -> Iterator[str]:
    """Yield one table after the other."""
    large, small = (64 * MIB, 100) if quick else (1024 * MIB, 1000)
    with _from_nginx(root / "nginx", large, small) as (one, many):
        yield table(one, _installed([LIMIT, OURS, CURL, ARIA2C]), root, repeats)
        yield table(_renumbered(many, root), _installed([LIMIT, OURS, CURL, CURL_PARALLEL, ARIA2C]), root, repeats)
        with _from_azurite(root / "azurite", one.originals[0]) as blob:
            yield table(blob, _installed([LIMIT, OURS, SDK, CURL]), root, repeats)


def _renumbered(files: Files, root: Path) -> Files:
    """Let the originals have the names that copies get, so that one `cp` makes them all."""
    folder = root / "originals"
    folder.mkdir()
    linked = tuple(folder / str(number) for number in range(len(files.originals)))
    for link, original in zip(linked, files.originals, strict=True):
        link.hardlink_to(original)
    return Files(files.title, files.urls, linked)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small files, one round: does it work at all?")
    parser.add_argument("--repeats", type=int, help="rounds (default: 3)")
    parser.add_argument(
        "--root", type=Path, default=Path(tempfile.gettempdir()), help="folder on the file system to use"
    )
    parser.add_argument("--output", type=Path, help="file for the tables, in markdown")
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        contestant(options.contestant[0], Path(options.contestant[1]))
        return
    tables: list[str] = []
    with tempfile.TemporaryDirectory(prefix="nodeagent-bench-", dir=options.root) as root:
        for made in measure(Path(root), quick=options.quick, repeats=options.repeats or (1 if options.quick else 3)):
            print(made, flush=True)
            tables.append(made)
    if options.output is not None:
        options.output.write_text("\n".join(tables))


if __name__ == "__main__":
    main()
