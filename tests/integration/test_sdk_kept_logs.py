"""The ends of a real task's logs, through the unmodified SDK, when its directory is no more."""

from pathlib import Path

import pytest
from azure.batch import BatchClient, models
from azure.core.exceptions import HttpResponseError

from nodeagent.model.times import parse_duration
from tests.integration.batch_endpoint import Sdk, completed, eventually, job, local_stack, refusal, task


def test_logs_are_read_after_the_directory_has_gone(tmp_path: Path) -> None:
    """A short log is whole, a long one is its end; other files are cleaned up, as Batch says it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NODEAGENT_AGENT_CLEANUP_SECONDS", "0.05")
        patch.setenv("NODEAGENT_AGENT_KEPT_LOG_BYTES", "100")
        with local_stack(tmp_path) as endpoint, BatchClient(endpoint.url, endpoint.credential()) as found:
            client: Sdk = found
            client.create_job(job("j"))
            limits = models.BatchTaskConstraints(retention_time=parse_duration("PT1S"))
            script = "echo told; echo x > data; seq 1 100 >&2"
            client.create_task("j", task("t", script, constraints=limits))
            assert completed(client, "j", "t").execution_info.exit_code == 0

            def data() -> int:
                try:
                    return len(b"".join(client.download_task_file("j", "t", "wd/data")))
                except HttpResponseError as error:
                    return int(error.status_code or 0)

            assert eventually(data, lambda answer: answer != 2) == 409
            assert b"".join(client.download_task_file("j", "t", "stdout.txt")) == b"told\n"
            whole = "".join(f"{number}\n" for number in range(1, 101))
            first, _, rest = b"".join(client.download_task_file("j", "t", "stderr.txt")).decode().partition("\n")
            assert first == f"[nodeagent: the first {len(whole) - 100} bytes are not kept]"
            assert rest == whole[-100:]
            size = client.get_task_file_properties("j", "t", "stderr.txt").content_length
            assert int(size) == len(first) + 1 + 100
            listed = {file.name: file.properties.content_length for file in client.list_task_files("j", "t")}
            assert {name: int(length) for name, length in listed.items()} == {"stdout.txt": 5, "stderr.txt": int(size)}
            client.delete_task("j", "t")
            assert refusal(lambda: b"".join(client.download_task_file("j", "t", "stdout.txt"))).status_code == 404
