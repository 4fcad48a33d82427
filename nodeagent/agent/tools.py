"""What the owners of a node's attempts share: one of each per agent, made by `nodeagent.agent.life`."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from nodeagent.agent.accounts import Accounts
from nodeagent.agent.attempts import Attempts
from nodeagent.agent.database import Database
from nodeagent.agent.directories import Directories
from nodeagent.agent.disk_watch import DiskWatch
from nodeagent.agent.job_sessions import JobSessions
from nodeagent.agent.limits import TaskLimits
from nodeagent.agent.reporter import Reporter
from nodeagent.agent.transfers import Transfers
from nodeagent.boundary.limits import LimitedBoundaries
from nodeagent.model.times import utc_now
from nodeagent.rules.environment import NodeFacts
from nodeagent.runtime.base import Runtime


@dataclass(frozen=True, slots=True)
class Tools:
    """What all runners of a node share."""

    database: Database
    accounts: Accounts
    runtime: Runtime
    boundaries: LimitedBoundaries
    directories: Directories
    sessions: JobSessions
    reporter: Reporter
    attempts: Attempts
    tasks: asyncio.TaskGroup
    node: Callable[[], NodeFacts]
    disk: DiskWatch
    transfers: Transfers
    records: Path
    """Where the records of executions lie: `state_dir/attempts`."""
    grace_seconds: float
    durability: Literal["process", "power"]
    limits: TaskLimits = field(default_factory=TaskLimits)
    stderr_tail: bool = True
    """Whether a failure tells the last bytes of the task's stderr."""
    kept_log_bytes: int = 0
    """How much of the end of each log goes with the end of a task."""
    now: Callable[[], datetime] = utc_now
