"""Container settings of tasks and pools (spec/node.md §8)."""

from nodeagent.model.base import BatchModel
from nodeagent.model.enums import ContainerWorkingDirectory
from nodeagent.model.values import NodeIdentityReference


class ContainerRegistry(BatchModel):
    """A registry and how to log in to it; the password is never echoed."""

    username: str | None = None
    password: str | None = None
    registry_server: str | None = None
    identity_reference: NodeIdentityReference | None = None


class ContainerHostBatchBindMount(BatchModel):
    """One directory of the node that the container sees."""

    source: str | None = None
    is_read_only: bool | None = None


class ContainerSettings(BatchModel):
    """The container that a task runs in."""

    image_name: str
    container_run_options: str | None = None
    registry: ContainerRegistry | None = None
    working_directory: ContainerWorkingDirectory | None = None
    container_host_batch_bind_mounts: tuple[ContainerHostBatchBindMount, ...] | None = None


class ContainerInfo(BatchModel):
    """What the engine says of a task's container."""

    container_id: str | None = None
    state: str | None = None
    error: str | None = None


class ContainerConfiguration(BatchModel):
    """Container support of a pool's nodes."""

    type: str
    container_image_names: tuple[str, ...] | None = None
    container_registries: tuple[ContainerRegistry, ...] | None = None
