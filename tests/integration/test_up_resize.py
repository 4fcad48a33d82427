"""`nodeagent up`: the pool is resized with the unmodified SDK, and node processes really end and begin."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from azure.batch import BatchClient, models

from tests.integration.batch_endpoint import POOL, Sdk, completed, eventually, job, local_stack, refusal, task

STEADY = models.AllocationState.STEADY


@contextmanager
def upped(folder: Path, *options: str) -> Iterator[Sdk]:
    """Run a stack; give a client of it."""
    with local_stack(folder, *options) as endpoint, BatchClient(endpoint.url, endpoint.credential()) as client:
        yield client


def agents(folder: Path) -> int:
    """Return how many agents of a stack are running."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        count += b"--exit-with-parent" in words and any(str(folder).encode() in word for word in words)
    return count


def steady(client: Sdk) -> Sdk:
    """Wait until the pool is steady; return it."""
    return eventually(lambda: client.get_pool(POOL), lambda pool: pool.allocation_state == STEADY)


def resize(client: Sdk, nodes: int) -> Sdk:
    """Resize the pool, and wait until that is over."""
    client.begin_resize_pool(
        POOL, models.BatchPoolResizeOptions(target_dedicated_nodes=nodes), polling_interval=0
    ).wait(60)
    return steady(client)


def test_a_pool_shrinks_to_nothing_and_grows_again_as_far_as_there_are_nodes(tmp_path: Path) -> None:
    """Processes follow the pool; a restart goes on at the size that it had; more than --nodes is refused at once."""
    with upped(tmp_path, "--nodes", "2") as client:
        assert (len(list(client.list_nodes(POOL))), agents(tmp_path)) == (2, 2)
        pool = resize(client, 0)
        assert (pool.current_dedicated_nodes, pool.target_dedicated_nodes, pool.resize_errors) == (0, 0, None)
        eventually(lambda: agents(tmp_path), lambda count: count == 0)
        client.create_job(job("waits"))
        client.create_task("waits", task("t"))
        pool = resize(client, 1)
        assert (pool.current_dedicated_nodes, pool.resize_errors) == (1, None)
        assert completed(client, "waits", "t").execution_info.exit_code == 0
    assert agents(tmp_path) == 0
    with upped(tmp_path, "--nodes", "2") as client:
        assert [node.id for node in client.list_nodes(POOL)] == ["node-1"]
        assert agents(tmp_path) == 1
        pool = resize(client, 3)
        assert (pool.current_dedicated_nodes, pool.target_dedicated_nodes) == (2, 3)
        (error,) = pool.resize_errors
        assert (error.code, "--nodes" in error.message) == ("AllocationFailed", True)
        error = refusal(lambda: client.begin_stop_pool_resize(POOL, polling_interval=0).wait(30))
        assert (error.status_code, error.error.code) == (409, "OperationInvalidForCurrentState")


def test_a_node_that_leaves_goes_on_leaving_after_a_restart(tmp_path: Path) -> None:
    """Its task is waited for: it runs on over the end of the stack, is taken over, and ends with its own exit code."""
    state, go = tmp_path / "state", tmp_path / "go"
    with upped(state, "--detach-tasks") as client:
        client.create_job(job("j"))
        client.create_task("j", task("t", f"while [ ! -e {go} ]; do sleep 0.05; done; exit 7"))
        eventually(lambda: client.get_task("j", "t").state, lambda found: found == models.BatchTaskState.RUNNING)
        option = models.BatchNodeDeallocationOption.TASK_COMPLETION
        size = models.BatchPoolResizeOptions(target_dedicated_nodes=0, node_deallocation_option=option)
        client.begin_resize_pool(POOL, size, polling_interval=0)
    with upped(state, "--detach-tasks") as client:
        assert [node.state for node in client.list_nodes(POOL)] == [models.BatchNodeState.LEAVING_POOL]
        assert client.get_task("j", "t").state == models.BatchTaskState.RUNNING
        go.touch()
        info = completed(client, "j", "t").execution_info
        assert (info.exit_code, info.retry_count, info.requeue_count) == (7, 0, 0)
        pool = steady(client)
        assert (pool.current_dedicated_nodes, pool.resize_errors) == (0, None)
        eventually(lambda: agents(state), lambda count: count == 0)
