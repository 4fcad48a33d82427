"""An agent that says to a service what a test wants it to say, over real HTTP (docs/node-protocol.md)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import SecretStr

from nodeagent.model.pool import PoolCreate
from nodeagent.model.protocol import (
    PREFIX,
    Assignment,
    FileServer,
    NumberedMessage,
    Register,
    Report,
    ReportStatus,
    Transition,
)
from nodeagent.model.times import utc_now
from nodeagent.rules.failures import exit_code_failure
from nodeagent.service.app import Service
from nodeagent.service.settings import ServiceSettings

ACCOUNT, KEY = "devaccount", "c2VjcmV0"
POOL = PoolCreate(id="pool", vm_size="v")


def settings(state_dir: Path, **more: object) -> ServiceSettings:
    """Return settings for a service on a free port."""
    return ServiceSettings.model_validate(
        {"port": 0, "account": ACCOUNT, "key": SecretStr(KEY), "state_dir": state_dir, **more}
    )


@asynccontextmanager
async def running(state_dir: Path, **more: object) -> AsyncIterator[Service]:
    """Run a service with a pool."""
    async with Service(settings(state_dir, **more)) as service:
        await service.ensure_pool(POOL)
        yield service


@dataclass
class Agent:
    """Says to a service what the protocol lets an agent say, when the test wants it."""

    session: aiohttp.ClientSession
    service: Service
    id: str = "node"
    slots: int = 2
    epoch: int = 1
    cursor: int = 0
    key: str | None = None
    sent: dict[str, int] = field(default_factory=dict)

    async def call(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Make one call; return status and body."""
        headers = {"Authorization": f"Bearer {self.key or self.service.node_key}"}
        url = f"{self.service.url}{PREFIX}/{name}"
        body = {"nodeId": self.id, "epoch": self.epoch, **body}
        async with self.session.post(url, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def ok(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Make a call that must succeed; return its body."""
        status, answer = await self.call(name, body)
        assert status == 200, answer
        return answer

    def registration(self, **more: object) -> dict[str, Any]:
        """Return the body of a registration."""
        call = Register(
            node_id=self.id,
            epoch=self.epoch,
            pool_id="pool",
            instance_id=f"{self.id}-{self.epoch}",
            boot_id="boot",
            boot_time=utc_now(),
            slots=self.slots,
            cores=1,
            agent_version="0",
            hostname="h",
            ip_address="127.0.0.1",
            root_directory="/r",
            file_server=FileServer(url="http://127.0.0.1:1", token="t"),
            cursor=self.cursor,
        )
        return {**call.to_wire(), **more}

    async def register(self, **more: object) -> dict[str, Any]:
        """Register as an agent does at its start."""
        return await self.ok("register", self.registration(**more))

    async def poll(self, wait_seconds: float = 0) -> list[NumberedMessage]:
        """Fetch what is there and commit it."""
        answer = await self.ok("assignments", {"cursor": self.cursor, "waitSeconds": wait_seconds})
        found = [NumberedMessage.model_validate(item) for item in answer["messages"]]
        self.cursor = found[-1].number if found else self.cursor
        return found

    async def assignments(self, wait_seconds: float = 0) -> list[Assignment]:
        """Fetch what is there; return the assignments."""
        found = await self.poll(wait_seconds)
        return [item.message for item in found if isinstance(item.message, Assignment)]

    def report(self, attempt_id: str, transition: Transition, **more: object) -> dict[str, Any]:
        """Make the next report of an attempt."""
        self.sent[attempt_id] = seq = self.sent.get(attempt_id, 0) + 1
        now = utc_now()
        return Report.model_validate(
            {
                "attempt_id": attempt_id,
                "seq": seq,
                "transition": transition,
                "at": now,
                "start_time": now,
                **more,
            }
        ).to_wire()

    def end(self, attempt_id: str, exit_code: int = 0, **more: object) -> dict[str, Any]:
        """Make the report of an end."""
        failure = exit_code_failure(exit_code) if exit_code else None
        outcome = {
            "result": "failure" if failure else "success",
            "endTime": utc_now(),
            "exitCode": exit_code,
            "failureInfo": failure,
        }
        return self.report(attempt_id, Transition.COMPLETED, outcome=outcome, **more)

    async def send(self, *reports: dict[str, Any]) -> list[ReportStatus]:
        """Send one report; return what was done with it."""
        answer = await self.ok("reports", {"reports": list(reports)})
        return [ReportStatus(item["status"]) for item in answer["results"]]

    async def finish(self, assignment: Assignment, exit_code: int = 0) -> None:
        """Run and end an attempt in one call."""
        attempt_id = assignment.attempt_id
        statuses = await self.send(self.report(attempt_id, Transition.RUNNING), self.end(attempt_id, exit_code))
        assert statuses == [ReportStatus.APPLIED] * 2
