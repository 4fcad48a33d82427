"""The settings of local mode, and the account that everybody may know."""

import base64
import hashlib
import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from nodeagent.model.values import BatchId

DEVELOPMENT_ACCOUNT = "devaccount"
DEVELOPMENT_KEY = base64.b64encode(hashlib.sha512(b"nodeagent well-known development key").digest()).decode()
"""Not a secret: the documented pair for local development, like the one of every storage emulator."""

DEFAULT_PORT = 8190


def state_home() -> Path:
    """Return where this user's programs keep state: `$XDG_STATE_HOME/nodeagent` (`~/.local/state/nodeagent`)."""
    home = os.environ.get("XDG_STATE_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".local" / "state") / "nodeagent"


def cores() -> int:
    """Return how many cores this process may use."""
    return max(1, len(os.sched_getaffinity(0)))


class LocalSettings(BaseModel):
    """How `nodeagent up` and `nodeagent run` set up the machine they run on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: Annotated[int, Field(ge=0, le=65535)] = DEFAULT_PORT
    """TCP port on loopback where `up` serves the Batch REST API; 0 lets the system choose. (`run` always does.)"""
    account: Annotated[str, Field(pattern=r"^[a-z0-9]{3,24}$")] = DEVELOPMENT_ACCOUNT
    """Name of the Batch account: 3 to 24 lower-case letters and digits."""
    key: SecretStr = SecretStr(DEVELOPMENT_KEY)
    """Key of the account, base64. The default is the documented development key and no secret."""
    pool: BatchId = "local"
    """Id of the one pool."""
    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """How many nodes (agents) the pool has."""
    slots: Annotated[int, Field(ge=1, le=256)] = Field(default_factory=cores)
    """Task slots of each node; the number of cores if not given."""
    state_dir: Path = Field(default_factory=lambda: state_home() / "up")
    """Folder of everything that `up` keeps. `run` makes a folder of its own for each run."""
    tls: bool = False
    """`up` serves HTTPS, with a certificate of its own authority below `state_dir`."""
    no_auth: bool = False
    """`up` asks clients for nothing: whoever runs programs on this machine may do everything."""
    trace_http: bool = False
    """`up` logs one line per request, without secrets."""
    ephemeral: bool = False
    """Keep nothing: everything lives in a temporary folder that is removed at the end."""
