"""What this node says of itself when it registers, and what it learns from the answer."""

import os
import pwd
import socket
from urllib.parse import urlsplit
from uuid import uuid4

import nodeagent
from nodeagent.agent.boot import Boot
from nodeagent.agent.identity import Identity
from nodeagent.agent.settings import AgentSettings
from nodeagent.model.protocol import FileServer, Register, Registered
from nodeagent.rules.environment import NodeFacts
from nodeagent.rules.layout import NodeLayout

CAPABILITIES = ("process",)
"""What this version of the agent can execute."""

DEFAULT_HEARTBEAT_SECONDS = 10.0


class Introduction:
    """The facts of this life of the agent; `learn` takes over what the service answered."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        layout: NodeLayout,
        file_server: FileServer,
        registered: Registered | None,
        boot: Boot,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._layout = layout
        self._file_server = file_server
        self._instance_id = uuid4().hex
        self._ip_address = local_address(settings.service)
        self._registered = registered
        self._boot = boot
        self._reimaged = boot.reimaged
        self._facts: NodeFacts | None = None
        if registered is not None:
            self.learn(registered)

    def register(self, cursor: int, live_attempts: tuple[str, ...]) -> Register:
        """Return the body of `register`."""
        settings = self._settings
        return Register(
            node_id=self._identity.node_id,
            epoch=self._identity.epoch,
            pool_id=settings.pool,
            instance_id=self._instance_id,
            boot_id=self._boot.id,
            boot_time=self._boot.began,
            slots=settings.slots,
            cores=os.cpu_count() or 1,
            agent_version=nodeagent.__version__,
            hostname=socket.gethostname(),
            ip_address=self._ip_address,
            root_directory=str(self._layout.root),
            file_server=self._file_server,
            cursor=cursor,
            live_attempts=live_attempts,
            reimaged=self._reimaged,
            command_id=self._boot.command_id,
            is_dedicated=self._settings.is_dedicated,
            capabilities=CAPABILITIES,
        )

    def learn(self, answer: Registered) -> None:
        """Take over what the service answered: the environment of tasks, the rhythm of heartbeats."""
        self._registered = answer
        self._reimaged = False
        self._facts = NodeFacts(
            account_name=answer.account_name,
            account_url=answer.account_url,
            pool_id=self._settings.pool,
            node_id=self._identity.node_id,
            layout=self._layout,
            user_name=user_name(),
            is_dedicated=self._settings.is_dedicated,
            reserved_disk_bytes=self._settings.reserved_disk_bytes,
        )

    @property
    def facts(self) -> NodeFacts:
        """What tasks are told of the node. There is no task before the first registration."""
        if self._facts is None:
            raise RuntimeError("an assignment came before the node was registered")
        return self._facts

    @property
    def registered(self) -> Registered:
        """The last answer of the service, which may have been given to a former life."""
        if self._registered is None:
            raise RuntimeError("the node was never registered")
        return self._registered

    @property
    def heartbeat_seconds(self) -> float:
        """How often the service wants a heartbeat."""
        return DEFAULT_HEARTBEAT_SECONDS if self._registered is None else self._registered.heartbeat_seconds


def user_name() -> str:
    """Return the name of the agent's own user, which tasks run as; its number if it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def local_address(service: str) -> str:
    """Return the address of this machine on the way to the service. Nothing is sent for it."""
    parts = urlsplit(service)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:  # no name service or no route yet: the service is not reachable now, but may be later
        return "127.0.0.1"
