"""A file that is only there to be removed: the agent's own records must find room when tasks have taken all."""

import os
from contextlib import suppress
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)


class Ballast:
    """Space held in reserve where the agent keeps its state. `release` may be called by any thread."""

    def __init__(self, directory: Path, size: int) -> None:
        """`size` in bytes; 0 for none."""
        self.path = directory / "ballast"
        self.size = size

    @property
    def held(self) -> bool:
        """Whether the space is held."""
        return self.path.exists()

    def make(self) -> bool:
        """Take the space, all or nothing; whether it is held now."""
        if self.size == 0 or self.held:
            return self.held
        partial = self.path.with_suffix(".new")
        try:
            file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, self.size)
            finally:
                os.close(file)
            partial.rename(self.path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            log.warning("no ballast", bytes=self.size, why=error.strerror)
            return False
        return True

    def release(self) -> None:
        """Give the space back."""
        if not self.held:
            return
        self.path.unlink(missing_ok=True)
        log.warning("ballast released", bytes=self.size)
