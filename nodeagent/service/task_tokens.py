"""Task tokens: what a task shows to reach its own job (`authenticationTokenSettings`, spec/rest.md §6.4).

A token is the id of the task's attempt, signed with a key of this service. It is made when the assignment is handed
to the node, so none is stored here, and it opens nothing once the attempt has ended.
"""

import base64
import hmac
import os
import re
import secrets
from hashlib import sha256
from pathlib import Path

import orjson

_KEY_NAME = "task-token.key"
_KEY_BYTES = 32
_MARK = '"authenticationToken":""'
"""How a stored assignment says that its task is to have a token."""
_TOKEN = re.compile(r"nat1\.([0-9A-Za-z_-]{1,128})\.([A-Za-z0-9_-]{43})", re.ASCII)


class TaskTokens:
    """Makes and checks tokens; `key` is known to the service alone."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, attempt_id: str) -> str:
        """Return the token of an attempt."""
        signature = hmac.new(self._key, attempt_id.encode(), sha256).digest()
        return f"nat1.{attempt_id}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"

    def attempt_of(self, token: str) -> str | None:
        """Return the attempt that a token was made for; None if this service has not made it."""
        match = _TOKEN.fullmatch(token)
        if match is None or not hmac.compare_digest(self.of(match[1]), token):
            return None
        return match[1]

    def resolved(self, message: str) -> str:
        """Return a message for a node (JSON) with the token of its task, if that is to have one."""
        if _MARK not in message:  # nearly all
            return message
        body = orjson.loads(message)
        if body.get("work", {}).get("authenticationToken") != "":
            return message  # the mark is a part of some text
        body["work"]["authenticationToken"] = self.of(body["attemptId"])
        return orjson.dumps(body).decode()


def read_key(folder: Path) -> bytes:
    """Return the key of a service's folder; a missing one is made, readable by its owner only. Raises OSError."""
    path = folder / _KEY_NAME
    try:
        key = path.read_bytes()
        if len(key) == _KEY_BYTES:
            return key
    except FileNotFoundError:
        pass
    temporary = path.with_suffix(".tmp")
    key = secrets.token_bytes(_KEY_BYTES)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return key
