"""The node's standing at the service: registration, and every call that needs it (docs/node-protocol.md)."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from nodeagent.agent.service_client import NotRegistered, ServiceClient
from nodeagent.model.base import BatchModel
from nodeagent.model.protocol import Register, Registered

log = structlog.get_logger(__name__)

Answer = TypeVar("Answer", bound=BatchModel)


class Membership:
    """Registers, and registers again when the service has forgotten the node."""

    def __init__(
        self,
        client: ServiceClient,
        introduction: Callable[[], Register],
        accepted: Callable[[Registered], Awaitable[None]],
    ) -> None:
        self._client = client
        self._introduction = introduction
        self._accepted = accepted
        self._lock = asyncio.Lock()
        self._member = asyncio.Event()

    def leave(self) -> None:
        """The service asked for a new registration: every call waits for it."""
        self._member.clear()

    async def register(self) -> None:
        """Register unless it has been done since the last `leave`. Returns when the answer is stored."""
        async with self._lock:
            if self._member.is_set():
                return
            answer = await self._client.insist("register", lambda: self._introduction().to_json(), Registered)
            log.info("registered", account=answer.account_name, unknown=len(answer.unknown_attempts))
            await self._accepted(answer)
            self._member.set()

    async def insist(
        self, name: str, body: Callable[[], str], answer: type[Answer], *, extra_seconds: float = 0
    ) -> Answer:
        """Make a call until it is answered, registering (again) first whenever the service asks for it."""
        while True:
            if not self._member.is_set():
                await self.register()
            try:
                return await self._client.insist(name, body, answer, extra_seconds=extra_seconds)
            except NotRegistered:
                self.leave()
