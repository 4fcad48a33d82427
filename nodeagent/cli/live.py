"""What a run shows while it goes on: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nodeagent.local.progress import News, Progress, transfer_texts


class Display:
    """Tells how a run goes, on one stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begun = time.monotonic()
        self._live: Live | None = None
        self._progress: Progress | None = None

    def tell(self, news: News) -> None:
        """Show one piece of news: every one as a line; beside a live display only what is notable."""
        if self._live is None:
            click.echo(f"{self._elapsed():7.2f}  {news.text}", file=self._stream)
        elif news.notable:
            self._live.console.print(Text(f"{self._elapsed():7.2f}  {news.text}"))

    @contextmanager
    def showing(self, progress: Progress) -> Iterator[None]:
        """Keep the state of `progress` on the terminal, if there is one."""
        self._progress = progress
        if not self._stream.isatty():
            yield
            return
        console = Console(file=self._stream)
        with Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def _elapsed(self) -> float:
        return time.monotonic() - self._begun

    def _render(self) -> Table:
        progress = self._progress
        grid = Table.grid(padding=(0, 2))
        if progress is None:
            return grid
        grid.add_row(
            Text(progress.job_id, style="bold"),
            ProgressBar(total=max(progress.tasks, 1), completed=progress.done, width=28),
            Text(f"{progress.done}/{progress.tasks}"),
            Text(progress.phase),
            Text(f"{int(self._elapsed()) // 60}:{int(self._elapsed()) % 60:02d}", style="dim"),
        )
        counts = Text.assemble(
            *_special("prep", progress.preparation),
            f"running {len(progress.running)}  ",
            f"done {progress.done - progress.failed}  ",
            (f"failed {progress.failed}  ", "red" if progress.failed else ""),
            (f"retried {progress.retried}  ", "yellow" if progress.retried else ""),
            f"slots {progress.slots_in_use}/{progress.slots}  ",
            *_special("release", progress.release),
        )
        whole = Table.grid()
        whole.add_row(grid)
        whole.add_row(counts)
        for line in transfer_texts(progress.transfers):
            whole.add_row(Text(line, style="cyan"))
        return whole


def _special(name: str, states: dict[str, str]) -> list[str]:
    """Return how preparation or release stands on all nodes; nothing where there is none."""
    if not states:
        return []
    ended = sum(state != "running" for state in states.values())
    return [f"{name} {ended}/{len(states)}  "]
