"""What the service costs a client: adding, listing and counting tasks with the unmodified SDK, and its memory.

The job's pool has no nodes, so nothing runs beside: what is measured is the REST API, the store and the SDK itself,
which share the machine. `python -m benchmarks.rest [--tasks N] [--stored N] [--root DIR] [--output FILE]`.
"""

import argparse
import base64
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from azure.batch import BatchClient, models
from azure.core.credentials import AzureNamedKeyCredential

from tests.integration.azurite import free_port

ACCOUNT = "devaccount"
KEY = base64.b64encode(b"the key of a benchmark").decode()
START_SECONDS = 30.0


@contextmanager
def running_service(folder: Path) -> Iterator[tuple[Any, psutil.Process]]:
    """Run a service on a free port; gives the SDK's client and the process."""
    port = free_port()
    command = [sys.executable, "-m", "nodeagent", "service", "--port", str(port), "--account", ACCOUNT]
    environment = os.environ | {"NODEAGENT_SERVICE_KEY": KEY}
    with subprocess.Popen(
        [*command, "--state-dir", str(folder)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            client: Any = BatchClient(f"http://127.0.0.1:{port}", AzureNamedKeyCredential(ACCOUNT, KEY))
            _wait_for(client)
            yield client, psutil.Process(process.pid)
        finally:
            process.terminate()


def _wait_for(client: Any) -> None:  # noqa: ANN401 - the SDK's client, whose properties may all be None for mypy
    ends = time.monotonic() + START_SECONDS
    while True:
        try:
            list(client.list_pools())
        except Exception:  # whatever a client says of a service that does not listen yet
            if time.monotonic() > ends:
                raise
        else:
            return


def _tasks(begin: int, count: int) -> list[models.BatchTaskCreateOptions]:
    return [
        models.BatchTaskCreateOptions(id=f"task-{number:07}", command_line="/bin/true")
        for number in range(begin, begin + count)
    ]


def _timed(work: Any) -> tuple[float, Any]:  # noqa: ANN401 - whatever the SDK's call returns
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def _measured(client: Any, process: psutil.Process, tasks: int, stored: int) -> list[tuple[str, str]]:  # noqa: ANN401
    rows = []
    client.create_job(models.BatchJobCreateOptions(id="rate", pool_info=models.BatchPoolInfo(pool_id="none")))
    empty = process.memory_info().rss
    new = _tasks(0, tasks)
    seconds, _ = _timed(lambda: client.create_tasks("rate", new))
    rows.append((f"create_tasks of {tasks:,}", f"{seconds:.1f} s, {tasks / seconds:,.0f}/s"))
    seconds, _ = _timed(lambda: client.create_tasks("rate", _tasks(tasks, tasks), max_concurrency=4))
    rows.append(("the same in 4 threads of the SDK", f"{seconds:.1f} s, {tasks / seconds:,.0f}/s"))
    done = 2 * tasks
    while done < stored:
        client.create_tasks("rate", _tasks(done, min(10_000, stored - done)), max_concurrency=4)
        done += min(10_000, stored - done)
    stored_memory = process.memory_info().rss
    name = f"memory of the service: empty, with {done:,} tasks stored"
    rows.append((name, f"{empty >> 20} MiB, {stored_memory >> 20} MiB"))
    seconds, found = _timed(lambda: sum(1 for _ in client.list_tasks("rate")))
    rows.append((f"list of all {found:,}", f"{seconds:.1f} s, {found / seconds:,.0f}/s"))
    pages = client.list_tasks("rate").by_page()
    first, _ = _timed(lambda: sum(1 for _ in next(pages)))
    last = first
    for _ in range(done // 1000 - 1):
        last, _ = _timed(lambda: sum(1 for _ in next(pages)))
    rows.append(("a page: the first, the last", f"{first * 1000:.0f} ms, {last * 1000:.0f} ms"))
    seconds, counts = _timed(lambda: client.get_job_task_counts("rate").task_counts.active)
    rows.append((f"counts ({counts:,} active)", f"{seconds * 1000:.1f} ms"))
    rows.append(("memory of the service after the lists", f"{process.memory_info().rss >> 20} MiB"))
    return rows


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=10_000, help="how many tasks are added and timed")
    parser.add_argument("--stored", type=int, default=100_000, help="how many tasks the store holds for the lists")
    parser.add_argument("--root", type=Path, help="folder on the file system to use")
    parser.add_argument("--output", type=Path, help="file for the table, in markdown")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.root) as folder, running_service(Path(folder)) as (client, process):
        rows = _measured(client, process, given.tasks, given.stored)
    text = "\n".join(["| what | measured |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])
    print(text)
    if given.output is not None:
        given.output.write_text(f"{text}\n")


if __name__ == "__main__":
    main()
