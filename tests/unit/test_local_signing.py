"""Our signatures are those of the SDK's own signer."""

import base64

import pytest
from azure.batch._patch import BatchSharedKeyAuthPolicy
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.pipeline import PipelineContext, PipelineRequest
from azure.core.rest import HttpRequest

from nodeagent.local.signing import authorization

KEY = base64.b64encode(b"k" * 32).decode()
DATE = "Sat, 21 Nov 2026 07:00:00 GMT"


@pytest.mark.parametrize(
    ("method", "url", "content"),
    [
        ("GET", "http://127.0.0.1:8190/jobs?api-version=2025-06-01", None),
        ("GET", "http://h/jobs/a%3Ajob-1/tasks/t/files/wd%2Fx%20y?api-version=2025-06-01&timeOut=30", None),
        ("POST", "http://h/jobs?api-version=2025-06-01", b'{"id": "j"}'),
        ("GET", "http://h/jobs?api-version=1&%24filter=state%20eq%20%27active%27&%24select=id%2Cstate", None),
    ],
)
def test_the_sdk_signs_the_same(method: str, url: str, content: bytes | None) -> None:
    """For each kind of request, with and without a body, the two texts are equal."""
    headers = {"ocp-date": DATE}
    if content is not None:
        headers |= {"Content-Type": "application/json; odata=minimalmetadata", "Content-Length": str(len(content))}
    request = HttpRequest(method, url, headers=dict(headers), content=content)
    policy = BatchSharedKeyAuthPolicy(AzureNamedKeyCredential("acc", KEY))
    policy.on_request(PipelineRequest(request, PipelineContext(None)))
    ours = {**headers, "ocp-date": request.headers["ocp-date"]}
    assert authorization("acc", KEY, method, url, ours) == request.headers["Authorization"]


def test_a_key_that_is_no_base64_is_refused_without_being_told() -> None:
    """The error does not hold the key."""
    with pytest.raises(ValueError, match="the account key is not base64") as caught:
        authorization("acc", "n0t base64!", "GET", "http://h/", {"ocp-date": DATE})
    assert "n0t" not in str(caught.value)
