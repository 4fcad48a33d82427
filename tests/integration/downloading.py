"""What the tests of downloads share: a meter that remembers, a token, and a look for secrets in failures."""

import os
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import pytest

from nodeagent.model.protocol import TransferPhase
from nodeagent.model.values import NodeIdentityReference
from nodeagent.transfer.base import Meter, Tokens, TransferFailedError, TransferSettings
from nodeagent.transfer.http_download import Downloads, Fetched
from tests.integration.faulty_server import FaultyServer

TOKEN = "TOKEN-SECRET"
IDENTITY = NodeIdentityReference(resource_id="/subscriptions/s/resourceGroups/g/identities/i")
SECRETS = ("SECRET", "sig=")
KIB = 1 << 10
MIB = 1 << 20
CONTENT = os.urandom(3 * MIB + 77)
ETAG = '"one"'
RANGES = TransferSettings(range_bytes=MIB, transfer_tries=3, transfer_idle_seconds=20)
"""For `CONTENT` these are four ranges."""


class CountedMeter(Meter):
    """A meter that remembers each step."""

    def __init__(self) -> None:
        super().__init__("attempt", TransferPhase.DOWNLOADING)
        self.steps: list[int] = []

    def moved(self, size: int) -> None:
        """Remember and count."""
        self.steps.append(size)
        super().moved(size)

    @property
    def held(self) -> int:
        """Bytes that count."""
        return self.progress().bytes_done

    @property
    def thrown_away(self) -> int:
        """Bytes that were downloaded for nothing."""
        return -sum(step for step in self.steps if step < 0)


class Connect(Protocol):
    """Connects downloads with these settings."""

    def __call__(
        self, settings: TransferSettings = ..., tokens: Tokens = ...
    ) -> AbstractAsyncContextManager[Downloads]:
        """Do so."""


async def one_token(identity: NodeIdentityReference) -> str:
    """Return the same token for everyone."""
    assert identity == IDENTITY
    return TOKEN


def details(error: TransferFailedError) -> dict[str, str]:
    """Return the details of a failure, and look for secrets in all that it shows."""
    text = f"{error} {error!r} {error.failure.to_json()}"
    assert not any(secret in text for secret in SECRETS), text
    return {item.name: item.value for item in error.failure.details}


async def fetched_bytes(downloads: Downloads, server: FaultyServer, meter: CountedMeter) -> bytes:
    """Download the file of a server, return its bytes."""
    fetched = await downloads.fetch(server.url(), path="data/file", meter=meter)
    assert isinstance(fetched, Fetched)
    assert meter.held == fetched.size
    return fetched.path.read_bytes()


async def failed_download(downloads: Downloads, url: str, meter: CountedMeter, code: str) -> dict[str, str]:
    """Return the details of a failure; nothing of the file may be left."""
    with pytest.raises(TransferFailedError) as raised:
        await downloads.fetch(url, path="data/file", meter=meter)
    found = details(raised.value)
    assert raised.value.failure.code == code, found
    assert list(downloads._staging.iterdir()) == []
    assert meter.held == 0
    assert found["FilePath"] == "data/file"
    return found
