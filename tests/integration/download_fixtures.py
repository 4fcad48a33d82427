"""Fixtures of the tests of downloads: `pytest_plugins = ["tests.integration.download_fixtures"]`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nodeagent.rules import transfer_retry
from nodeagent.transfer.base import Tokens, TransferSettings
from nodeagent.transfer.http_download import Downloads
from tests.integration.downloading import Connect, CountedMeter, one_token

DEFAULTS = TransferSettings()


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    """Return the staging folder."""
    return tmp_path / "staging"


@pytest.fixture
def meter() -> CountedMeter:
    """Return a meter."""
    return CountedMeter()


@pytest.fixture
def connect(staging: Path) -> Connect:
    """Return what connects downloads."""

    @asynccontextmanager
    async def connected(settings: TransferSettings = DEFAULTS, tokens: Tokens = one_token) -> AsyncIterator[Downloads]:
        async with Downloads(settings, staging, tokens).connected() as downloads:
            yield downloads

    return connected


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pauses between tries be short: how long they are is tested where the rule is."""
    monkeypatch.setattr(transfer_retry, "FIRST_PAUSE", 0.01)
