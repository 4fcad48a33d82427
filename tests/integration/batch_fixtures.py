"""Fixtures of the tests that drive a service with the SDK: `pytest_plugins = ["tests.integration.batch_fixtures"]`."""

import itertools
from collections.abc import Generator, Iterator

import pytest
from azure.batch import BatchClient

from tests.integration.batch_endpoint import BatchEndpoint, Sdk, local_stack, service_thread


@pytest.fixture(scope="session", params=["scripted", "up"])
def batch_endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchEndpoint]:
    """Return a running service with a node; tests keep apart by the ids of their jobs.

    `scripted` has a node of few lines, so that its failures are the service's; `up` is `nodeagent up` as it ships.
    """
    state_dir = tmp_path_factory.mktemp("state")
    if request.param == "up":
        with local_stack(state_dir) as endpoint:
            yield endpoint
    else:
        with service_thread(state_dir, tmp_path_factory.mktemp("node")) as endpoint:
            yield endpoint


@pytest.fixture
def client(batch_endpoint: BatchEndpoint) -> Iterator[Sdk]:
    """Return the SDK's client."""
    with BatchClient(batch_endpoint.url, batch_endpoint.credential()) as found:
        yield found


_numbers = itertools.count(1)


@pytest.fixture
def job_id(client: Sdk) -> Generator[str, None, None]:
    """Return the id of a job that the test makes, and that is gone afterwards."""
    name = f"job-{next(_numbers)}"
    yield name
    if any(job.id == name for job in client.list_jobs(filter=f"id eq '{name}'")):
        client.begin_delete_job(name, polling_interval=0).wait(30)
