"""Auto storage: containers that tasks name without a URL, in the one storage account that the service knows.

Nodes never see the account's key: what is handed to them is a container's URL with a SAS, made when the assignment
is handed over, so that no SAS is ever stored.
"""

from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import orjson
from pydantic import SecretStr

SAS_LIFE = timedelta(days=7)
"""From the assignment: as long as a user delegation SAS could be valid, and longer than any queue on a node."""
_SKEW = timedelta(minutes=15)
_MARK = '"autoStorageContainerName"'


class AutoStorage:
    """The storage account of `autoStorageContainerName`."""

    def __init__(self, url: str, key: SecretStr) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._account = account_of(url)
        # takes long to import, and most services have no auto storage
        from azure.storage.blob import ContainerSasPermissions, generate_container_sas  # noqa: PLC0415

        self._generate = generate_container_sas
        self._permissions = ContainerSasPermissions(read=True, list=True)

    def resolved(self, message: str, now: datetime) -> str:
        """Return a message for a node (JSON) with a container's URL in place of each `autoStorageContainerName`."""
        if _MARK not in message:  # nearly all
            return message
        body = orjson.loads(message)
        work = body.get("work") or {}
        files = work.get("resourceFiles")
        if not files:
            return message
        work["resourceFiles"] = [self._resolved_file(file, now) for file in files]
        return orjson.dumps(body).decode()

    def container_url(self, name: str, now: datetime) -> str:
        """Return the URL of a container with a SAS that reads and lists it until `SAS_LIFE` has passed."""
        sas = self._generate(
            self._account,
            name,
            account_key=self._key.get_secret_value(),
            permission=self._permissions,
            start=now - _SKEW,
            expiry=now + SAS_LIFE,
        )
        return f"{self._url}/{quote(name, safe='$')}?{sas}"

    def _resolved_file(self, file: dict[str, Any], now: datetime) -> dict[str, Any]:
        name = file.get("autoStorageContainerName")
        if name is None:
            return file
        others = {key: value for key, value in file.items() if key != "autoStorageContainerName"}
        return others | {"storageContainerUrl": self.container_url(str(name), now)}


def account_of(url: str) -> str:
    """Return the account's name: the first part of the path of an emulator's URL, else that of the host's name."""
    parts = urlsplit(url)
    path = parts.path.strip("/")
    return path.split("/")[0] if path else (parts.hostname or "").partition(".")[0]
