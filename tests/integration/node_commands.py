"""A local stack whose node the tests reboot and reimage with the SDK."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from azure.batch import BatchClient, models

from tests.integration.batch_endpoint import BatchEndpoint, Property, Sdk, eventually, local_stack, shell

# the SDK does not export what its own methods want
_REBOOT: Sdk = models._models.BatchNodeRebootOptions
_REIMAGE: Sdk = models._models.BatchNodeReimageOptions


class CommandedNode:
    """`nodeagent up` with its one node, and the SDK's client."""

    def __init__(self, endpoint: BatchEndpoint, client: Sdk) -> None:
        self.endpoint = endpoint
        self.client = client

    @property
    def _names(self) -> tuple[str, str]:
        return self.endpoint.pool_id, self.endpoint.node_id

    def reboot(self) -> None:
        """Reboot the node; return when it is back and its start task is over."""
        options = _REBOOT({"nodeRebootOption": "requeue"})
        self.client.begin_reboot_node(*self._names, options, polling_interval=0.05).wait(30)
        self._until_it_works()

    def reimage(self) -> None:
        """Reimage the node; return when it is back and its start task is over."""
        options = _REIMAGE({"nodeReimageOption": "requeue"})
        self.client.begin_reimage_node(*self._names, options, polling_interval=0.05).wait(30)
        self._until_it_works()

    def _until_it_works(self) -> None:
        eventually(lambda: self.client.get_node(*self._names).state.value, lambda state: state in ("idle", "running"))

    def file(self, path: str) -> bytes:
        """Return a file of the node."""
        return b"".join(self.client.download_node_file(*self._names, path))

    def give_start_task(self, script: str) -> None:
        """Change the start task of the pool."""
        start_task = models.BatchStartTask(command_line=shell(script))
        options = models.BatchPoolUpdateOptions(start_task=start_task)
        self.client.update_pool(self.endpoint.pool_id, options)

    def preparation(self, job_id: str) -> Property:
        """Return what the status list shows of the job's preparation here; None if it has not run."""
        found = list(self.client.list_job_preparation_and_release_task_status(job_id))
        return found[0].job_preparation_task_execution_info if found else None

    def release(self, job_id: str) -> Property:
        """Return what the status list shows of the job's release here; None if it has not run."""
        found = list(self.client.list_job_preparation_and_release_task_status(job_id))
        return found[0].job_release_task_execution_info if found else None


@contextmanager
def commanded_node(state_dir: Path) -> Iterator[CommandedNode]:
    """Run a local stack."""
    with local_stack(state_dir) as endpoint, BatchClient(endpoint.url, endpoint.credential()) as client:
        yield CommandedNode(endpoint, client)
