"""A node that is lost while a job is released there: the job does not wait for it for ever."""

from collections.abc import Callable
from datetime import timedelta

from nodeagent.model.enums import JobState
from nodeagent.service.lifecycle import deadlines, jobs
from tests.unit.service_world import LEASE, PREPARATION, RELEASE, World, ignore

pytest_plugins = ["tests.unit.service_fixtures"]


def test_a_release_on_a_lost_node_is_a_failure_of_which_nothing_is_known(worlds: Callable[..., World]) -> None:
    """Code Unknown, no exit code, and the job completes."""
    world = worlds(1)
    world.create_job(job_preparation_task=PREPARATION, job_release_task=RELEASE)
    world.add_task("t")
    world.drain()
    world.verb(jobs.terminate_job, "job")
    (node,) = world.nodes
    node.fetch()
    (release,) = node.live.values()
    node.run(release)
    assert world.job().state is JobState.TERMINATING

    world.store.now += LEASE + timedelta(seconds=1)
    world.store.do(lambda tx: ignore(deadlines.expire(tx, world.store.now, LEASE)))

    ended = world.job_node(node).release
    assert ended is not None
    assert ended.failure_info is not None
    assert (ended.failure_info.code, ended.exit_code) == ("Unknown", None)
    assert [item.value for item in ended.failure_info.details] == ["The node was lost while the job release task ran"]
    assert world.job().state is JobState.COMPLETED
