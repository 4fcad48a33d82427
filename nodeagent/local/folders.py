"""Where the local stack keeps what it knows, below one folder.

<state_dir>/nodes.count         how many nodes there might be at the last start
<state_dir>/service/            database, event log, node key and certificates of the service
<state_dir>/nodes/<node>/state/ the agent's records (0700)
<state_dir>/nodes/<node>/root/  AZ_BATCH_NODE_ROOT_DIR
<state_dir>/nodes/<node>/agent.log
"""

import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nodeagent.local.errors import FolderError


@dataclass(frozen=True, slots=True)
class NodeFolders:
    """The folders of one node."""

    node_id: str
    state: Path
    root: Path
    log: Path


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders below one absolute `state_dir`."""

    state_dir: Path

    @property
    def service(self) -> Path:
        """The service's state."""
        return self.state_dir / "service"

    @property
    def node_key(self) -> Path:
        """The key that agents show to the service; the service makes it, mode 0600."""
        return self.service / "node.key"

    @property
    def ca_file(self) -> Path:
        """The authority that clients of the service must trust; the service makes it if it serves TLS."""
        return self.service / "tls" / "ca.pem"

    def node(self, node_id: str) -> NodeFolders:
        """Return the folders of a node."""
        base = self.state_dir / "nodes" / node_id
        return NodeFolders(node_id, base / "state", base / "root", base / "agent.log")

    def known_nodes(self) -> list[NodeFolders]:
        """Return every node that has ever lived here, also those that the present settings do not ask for."""
        nodes = self.state_dir / "nodes"
        return [self.node(entry.name) for entry in sorted(nodes.iterdir())] if nodes.is_dir() else []

    def remember_nodes(self, count: int) -> bool:
        """Note how many nodes there may be; tell whether there might be another number before, or nobody knows."""
        path = self.state_dir / "nodes.count"
        text = f"{count}\n"
        if path.exists() and path.read_text() == text:
            return False
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(path)
        return True

    def make(self, node_ids: list[str], *, users: bool = False) -> None:
        """Make the folders, with `users` so that other users get through to the nodes' roots (and see nothing else).

        Raises FolderError with the path and the reason.
        """
        make_folder(self.state_dir, 0o700)
        if users:
            self.state_dir.chmod(0o711)
        make_folder(self.service, 0o700)
        for node_id in node_ids:
            node = self.node(node_id)
            make_folder(node.state, 0o700)
            make_folder(node.root, 0o755)


def make_folder(path: Path, mode: int) -> None:
    """Make a folder (and its parents) that this process can write. Raises FolderError."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FolderError(f"{error.filename or path}: cannot be made or written: {error.strerror}") from error


def run_folder(home: Path, job_id: str, now: datetime) -> Path:
    """Return a folder name for one run of a job: `<home>/runs/<job>-<time>`."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", job_id)
    return home / "runs" / f"{name}-{now.astimezone():%Y%m%d-%H%M%S}-{os.getpid()}"
