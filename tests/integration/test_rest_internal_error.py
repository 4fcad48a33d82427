"""A fault of the service itself: Batch's body all the same, and one line in the log."""

import base64
import uuid
from pathlib import Path

import aiohttp
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from nodeagent.service.app import Service
from nodeagent.service.settings import ServiceSettings
from nodeagent.service.store import counts

KEY = base64.b64encode(b"the key of a test's account").decode()


async def test_a_fault_of_the_service_has_batchs_body_and_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 `InternalError` with the request id that the log has too; what the fault says stays at the service."""

    def fail(*_: object) -> None:
        raise RuntimeError("SECRET")

    settings = ServiceSettings(port=0, key=SecretStr(KEY), bearer_token=SecretStr("let-me-in"), state_dir=tmp_path)
    query = "api-version=2025-06-01"
    async with (
        Service(settings) as service,
        aiohttp.ClientSession(headers={"Authorization": "Bearer let-me-in"}) as session,
    ):
        await session.post(f"{service.url}/jobs?{query}", json={"id": "j", "poolInfo": {"poolId": "p"}})
        monkeypatch.setattr(counts, "get", fail)
        with capture_logs() as lines:
            async with session.get(f"{service.url}/jobs/j/taskcounts?{query}") as answer:
                body = await answer.json()
                text = await answer.text()
        monkeypatch.undo()
        async with session.get(f"{service.url}/jobs/j/taskcounts?{query}") as again:
            assert again.status == 200
    request_id = answer.headers["request-id"]
    assert (answer.status, body["code"]) == (500, "InternalError")
    assert f"RequestId:{request_id}" in body["message"]["value"]
    uuid.UUID(request_id)
    assert "SECRET" not in text
    (line,) = (line for line in lines if line["log_level"] == "error")
    assert (line["event"], line["request_id"]) == ("internal_error", request_id)
