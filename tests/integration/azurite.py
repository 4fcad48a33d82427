"""Real storage for tests: one Azurite per test session, every test with containers of its own."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from azure.storage.blob import BlobServiceClient, ContainerClient, ContainerSasPermissions, generate_container_sas

REPOSITORY = Path(__file__).parents[2]
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's well-known account and key."""
START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Container:
    """A container of one test."""

    name: str
    url: str
    """Without a SAS."""
    client: ContainerClient

    def sas(self, permissions: str = "rl", *, expires: timedelta = timedelta(hours=1)) -> str:
        """Return a SAS of the container, without the question mark."""
        return generate_container_sas(
            ACCOUNT,
            self.name,
            account_key=KEY,
            permission=ContainerSasPermissions.from_string(permissions),
            expiry=datetime.now(UTC) + expires,
        )

    def url_with_sas(self, permissions: str = "rl", *, expires: timedelta = timedelta(hours=1)) -> str:
        """Return the URL of the container with a SAS."""
        return f"{self.url}?{self.sas(permissions, expires=expires)}"

    def blob_url(self, name: str, permissions: str = "r", *, expires: timedelta = timedelta(hours=1)) -> str:
        """Return the URL of a blob with a SAS of the container."""
        return f"{self.client.get_blob_client(name).url}?{self.sas(permissions, expires=expires)}"

    def put(self, name: str, content: bytes) -> None:
        """Upload a blob."""
        self.client.upload_blob(name, content, overwrite=True)

    def names(self) -> list[str]:
        """Return the names of all blobs."""
        return sorted(str(name) for name in self.client.list_blob_names())

    def content(self, name: str) -> bytes:
        """Return the bytes of a blob."""
        return bytes(self.client.download_blob(name).readall())


@dataclass(frozen=True, slots=True)
class Azurite:
    """A running Azurite."""

    endpoint: str
    """URL of the account: `http://127.0.0.1:<port>/devstoreaccount1`."""
    log: Path

    def container(self, name: str | None = None) -> Container:
        """Make a container."""
        name = name or f"c{uuid4().hex}"
        client = BlobServiceClient(self.endpoint, credential=KEY).create_container(name)
        return Container(name, f"{self.endpoint}/{name}", client)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_azurite(folder: Path, *options: str, scheme: str = "http") -> Iterator[Azurite]:
    """Run an Azurite with its data in `folder`; `options` are more of its own."""
    server = subprocess.run(
        ["scripts/azurite"], cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=True
    ).stdout.split()[-1]
    port = free_port()
    arguments = [server, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder / "data")]
    arguments += ["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--debug", str(folder / "debug.log")]
    with (
        (folder / "azurite.log").open("wb") as log,
        subprocess.Popen([*arguments, *options], stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            _wait_for(port, process)
            yield Azurite(f"{scheme}://127.0.0.1:{port}/{ACCOUNT}", folder / "debug.log")
        finally:
            process.terminate()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"Azurite does not listen on port {port}")
