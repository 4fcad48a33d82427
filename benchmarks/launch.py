"""What launching short tasks costs, layer by layer, in one run (docs/performance.md).

(a) a bare `posix_spawn` loop that makes the same directories and files: what the kernel takes
(b) the shim path alone: spec.json, a shim, a boundary, exit.json, swept.json
(c) the whole path from `create_tasks` to completed, but the agent's runtime launches nothing
(d) the whole path from `create_tasks` to completed

Each runs on every file system named (`--root`, default: /dev/shm and the temporary folder), because directory
creation on some is several times slower than everything else together. The numbers to compare are the ratios.

    python benchmarks/launch.py --tasks 2000 --slots 2 16
    python benchmarks/launch.py --journalled      (root: also on an ext4 in a loop-mounted file)
"""

# ruff: noqa: PTH102
# os.mkdir: pathlib is several times slower, and this is about microseconds

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azure.batch import BatchClient, models
from azure.core.credentials import AzureNamedKeyCredential

from nodeagent.boundary import probe
from nodeagent.boundary.base import BoundaryProvider
from nodeagent.runtime.process import ProcessRuntime
from nodeagent.shim import records

COMMAND = "/bin/true"
ENVIRONMENT = {f"AZ_BATCH_VARIABLE_{number}": f"a value of some length, number {number}" for number in range(20)}
WAIT_SECONDS = 600.0


@dataclass(frozen=True)
class Measured:
    """Tasks per second, and CPU time of the machine per task: let nothing else run."""

    name: str
    tasks: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Tasks per second."""
        return self.tasks / self.seconds

    def line(self, bare: "Measured") -> str:
        """One row of the table."""
        cpu = self.cpu_seconds / self.tasks * 1e3
        return f"{self.name:<44}{self.rate:9.0f}/s{1e3 / self.rate:9.2f} ms{cpu:9.2f} ms{self.rate / bare.rate:8.2f}"


def _cpu() -> float:
    """CPU seconds of the whole machine so far: shims and tasks are nobody's children who could be asked for theirs."""
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def bare(tasks: int, slots: int, root: Path) -> Measured:
    """(a): directories, output files, spawn, wait."""
    cpu, start = _cpu(), time.perf_counter()
    running = 0
    for number in range(tasks):
        if running == slots:
            os.wait()
            running -= 1
        directory = f"{root}/t{number}"
        os.mkdir(directory)
        os.mkdir(f"{directory}/wd")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.posix_spawn(
            COMMAND,
            [COMMAND],
            ENVIRONMENT,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, f"{directory}/stdout.txt", flags, 0o660),
                (os.POSIX_SPAWN_OPEN, 2, f"{directory}/stderr.txt", flags, 0o660),
            ],
            setsid=True,
        )
        running += 1
    while running:
        os.wait()
        running -= 1
    return Measured("(a) bare posix_spawn loop", tasks, time.perf_counter() - start, _cpu() - cpu)


async def shims(tasks: int, slots: int, root: Path) -> Measured:
    """(b): what the agent asks of its runtime, without the agent."""
    state, work = root / "state", root / "work"
    work.mkdir()
    runtime = ProcessRuntime(state, warm=slots)
    provider = probe.choose("nodeagent-benchmark").provider
    await runtime.open()
    numbers = iter(range(tasks))
    cpu, start = _cpu(), time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(slots):
                group.create_task(_slot(numbers, runtime, provider, work))
        seconds = time.perf_counter() - start
    finally:
        await runtime.close()
        await provider.close()
    return Measured(f"(b) shim path, {provider.kind}", tasks, seconds, _cpu() - cpu)


async def _slot(numbers: Iterator[int], runtime: ProcessRuntime, provider: BoundaryProvider, work: Path) -> None:
    for number in numbers:
        name, directory = f"a{number}", f"{work}/t{number}"
        boundary = provider.create(name)
        os.mkdir(directory)
        os.mkdir(f"{directory}/wd")
        os.mkdir(f"{runtime.attempts}/{name}", 0o700)
        spec = records.Spec(
            attempt_id=name,
            argv=(COMMAND,),
            env=ENVIRONMENT,
            cwd=f"{directory}/wd",
            stdout=f"{directory}/stdout.txt",
            stderr=f"{directory}/stderr.txt",
            boundary=boundary,
            sweep=True,
            grace_seconds=10,
            durability="process",
        )
        records.write(f"{runtime.attempts}/{name}", spec, durable=False)
        await runtime.launch(name)
        await runtime.wait(name)
        provider.remove(boundary)


@contextmanager
def _up(root: Path, slots: int, runtime: str) -> Iterator[dict[str, Any]]:
    """`nodeagent up` in a process of its own."""
    command = [sys.executable, "-m", "nodeagent", "up", "--port", "0", "--json", "--slots", str(slots)]
    environment = os.environ | {"NODEAGENT_AGENT_RUNTIME": runtime}
    with subprocess.Popen(
        [*command, "--state-dir", str(root / "up"), "--log-level", "warning"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def whole_path(tasks: int, slots: int, root: Path, runtime: str) -> tuple[Measured, float]:
    """(c), (d): the unmodified SDK creates the tasks; returns also the seconds that `create_tasks` alone took."""
    name = "(c) the same, nothing is launched" if runtime == "zero" else "(d) whole path, create_tasks to completed"
    with _up(root, slots, runtime) as endpoint:
        client = BatchClient(endpoint["endpoint"], AzureNamedKeyCredential(endpoint["account"], endpoint["key"]))
        pool = models.BatchPoolInfo(pool_id=endpoint["pool"])
        client.create_job(models.BatchJobCreateOptions(id="bench", pool_info=pool))
        todo = [models.BatchTaskCreateOptions(id=f"t{number}", command_line=COMMAND) for number in range(tasks)]
        cpu, start = _cpu(), time.perf_counter()
        client.create_tasks("bench", todo)
        created = time.perf_counter() - start
        deadline = start + WAIT_SECONDS
        while (counts := client.get_job_task_counts("bench").task_counts).completed < tasks:
            assert time.perf_counter() < deadline, counts
            time.sleep(0.02)
        seconds, cpu = time.perf_counter() - start, _cpu() - cpu
        assert counts.failed == 0, counts
    return Measured(name, tasks, seconds, cpu), created


def _file_system(path: Path) -> str:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    device, mount, kind, *_ = max(
        (entry for entry in mounts if path.resolve().is_relative_to(entry[1])), key=lambda entry: len(entry[1])
    )
    journal = ""
    if kind == "ext4":
        has_one = any(Path(device).name in entry.name for entry in Path("/proc/fs/jbd2").glob("*"))
        journal = " with a journal" if has_one else " without a journal"
    return f"{kind}{journal} at {mount}"


@contextmanager
def _journalled() -> Iterator[Path]:
    """A journalled ext4 in a file, mounted by a loop device."""
    with tempfile.TemporaryDirectory(prefix="nodeagent-bench-") as folder:
        image, mount = Path(folder, "image"), Path(folder, "mount")
        mount.mkdir()
        with image.open("wb") as file:
            file.truncate(4 << 30)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
        try:
            yield mount
        finally:
            subprocess.run(["umount", str(mount)], check=True)


def _median(measure: Callable[[Path], Measured], root: Path, repeats: int) -> Measured:
    runs = []
    for _ in range(repeats):
        folder = Path(tempfile.mkdtemp(dir=root))
        try:
            runs.append(measure(folder))
        finally:
            shutil.rmtree(folder)
    middle = statistics.median_low(run.seconds for run in runs)
    return next(run for run in runs if run.seconds == middle)


def run_on(root: Path, tasks: int, slots: int, repeats: int) -> None:
    """Measure all four on one file system and print the table."""
    created: list[float] = []

    def whole(folder: Path, runtime: str) -> Measured:
        measured, seconds = whole_path(tasks, slots, folder, runtime)
        created.append(seconds)
        return measured

    first = _median(lambda folder: bare(tasks, slots, folder), root, repeats)
    print(f"\n{_file_system(root)}; {tasks} x {COMMAND}, {slots} slots, {os.cpu_count()} cores, median of {repeats}")
    print(f"{'':<44}{'rate':>11}{'wall':>12}{'CPU':>12}{'to (a)':>8}")
    print(first.line(first), flush=True)
    print(_median(lambda folder: asyncio.run(shims(tasks, slots, folder)), root, repeats).line(first), flush=True)
    print(_median(lambda folder: whole(folder, "zero"), root, repeats).line(first), flush=True)
    print(_median(lambda folder: whole(folder, "process"), root, repeats).line(first), flush=True)
    print(f"create_tasks alone: {tasks / statistics.median(created):.0f} tasks/s")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--slots", type=int, nargs="+", default=[2, 16], help="tasks in flight, one table for each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--root", type=Path, action="append", help="folder on the file system to measure")
    parser.add_argument("--journalled", action="store_true", help="also on a journalled ext4 in a loop file (root)")
    options = parser.parse_args()
    with ExitStack() as stack:
        roots = options.root or [Path("/dev", "shm"), Path(tempfile.gettempdir())]
        if options.journalled:
            roots.append(stack.enter_context(_journalled()))
        for root in roots:
            for slots in options.slots:
                run_on(root, options.tasks, slots, options.repeats)


if __name__ == "__main__":
    main()
