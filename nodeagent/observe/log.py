"""The set-up of logging: structlog, as JSON lines for machines or coloured lines for a person, never a secret."""

import errno
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, TextIO

import structlog
from pydantic import BaseModel, ConfigDict

from nodeagent.observe.redaction import Redactor


class LogLevel(StrEnum):
    """The least severe level that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a line looks."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class LogSettings(BaseModel):
    """How a program logs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: LogLevel = LogLevel.INFO
    """Least severe level that is written: debug, info, warning or error."""
    format: LogFormat = LogFormat.AUTO
    """`json` (one object per line), `console` (for people), or `auto`: console on a terminal, else json."""


class _Undaunted(io.TextIOBase):
    """A stream that a full disk makes lose lines, and not its program."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, unless there is no space."""
        with _unless_full():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, unless there is no space."""
        with _unless_full():
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return self._stream.isatty()


@contextmanager
def _unless_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def configure(settings: LogSettings, stream: TextIO | None = None, *, secrets: Sequence[str] = ()) -> None:
    """Send structlog and the standard library's logging to `stream` (standard error), without any secret.

    `secrets` are exact texts that must never be written (see `Redactor`).
    """
    lines: Any = _Undaunted(sys.stderr if stream is None else stream)
    threshold = getattr(logging, settings.level.upper())
    console = settings.format is LogFormat.CONSOLE or (settings.format is LogFormat.AUTO and lines.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    redact = Redactor(secrets)
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=lines.isatty())
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[*shared, redact, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=lines),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, redact, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.WARNING) if threshold > logging.DEBUG else logging.INFO)
