"""What goes wrong with a request: from exceptions and answers to one word, and from that to the failure of a task.

No text in here is made of a URL's query or of what a server wrote, so none can hold a secret (invariant I7).
"""

import re
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime

import aiohttp

from nodeagent.model.failure import FailureInfo
from nodeagent.rules import transfer_retry, urls
from nodeagent.rules.failures import Detail, failure_of
from nodeagent.rules.transfer_retry import Trouble

ERROR_BYTES = 65536
"""How much of the content of an error is read."""
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,128})</Code>")
_CODE_TEXT = re.compile(r"[A-Za-z0-9.]{1,128}", re.ASCII)
_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
"""Stricter than storage is: a server that repeats the request in its headers could show a SAS or a token."""


class HttpTroubleError(Exception):
    """One request went wrong. The text is one sentence that can be shown."""

    def __init__(
        self,
        kind: Trouble,
        text: str,
        *,
        status: int | None = None,
        evidence: tuple[Detail, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.status = status
        self.evidence = evidence
        self.retry_after = retry_after

    @property
    def may_pass(self) -> bool:
        """Whether the same request may go well another time."""
        return transfer_retry.may_help(self.kind, self.status)


class GivenUpError(Exception):
    """A request went wrong as often as is allowed, or in a way that no other try mends."""

    def __init__(self, trouble: HttpTroubleError, tries: int) -> None:
        super().__init__(str(trouble))
        self.trouble = trouble
        self.tries = tries


def of_exception(error: Exception) -> HttpTroubleError:
    """Return what an exception of aiohttp or of a socket means."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            cause: object = error.certificate_error
            why = cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else type(cause).__name__
            meaning = (Trouble.CERTIFICATE, f"the certificate of {error.host} is not trusted: {why}")
        case aiohttp.ClientConnectorSSLError():
            why = getattr(error.os_error, "reason", None) or type(error.os_error).__name__
            meaning = (Trouble.TLS, f"no TLS connection to {error.host}: {why}")
        case aiohttp.ClientConnectorDNSError():
            meaning = (Trouble.NAME, f"the name {error.host} could not be resolved")
        case aiohttp.ClientConnectorError():
            why = error.os_error.strerror or type(error.os_error).__name__
            meaning = (Trouble.CONNECTION, f"no connection to {error.host}:{error.port}: {why}")
        case aiohttp.ConnectionTimeoutError():
            meaning = (Trouble.SILENCE, "no connection within the time that a transfer may be silent")
        case TimeoutError():
            meaning = (Trouble.SILENCE, "no byte within the time that a transfer may be silent")
        case aiohttp.ClientPayloadError():
            meaning = (Trouble.INCOMPLETE, "the content ended too early")
        case aiohttp.InvalidURL():
            meaning = (Trouble.ADDRESS, "the URL cannot be asked for")
        case aiohttp.ClientResponseError():
            meaning = (Trouble.ANSWER, "the answer is not HTTP")
        case _:
            meaning = (Trouble.RESET, "the connection was cut")
    return HttpTroubleError(*meaning)


async def of_answer(response: aiohttp.ClientResponse) -> HttpTroubleError:
    """Return what an answer means that is not the content; reads a little of it for the code of the storage."""
    headers, content = response.headers, b""
    if "x-ms-error-code" not in headers:
        content = await _beginning(response)
    code = headers.get("x-ms-error-code", "")
    if not _CODE_TEXT.fullmatch(code):
        matched = _CODE.search(content)
        code = matched.group(1).decode() if matched else ""
    return HttpTroubleError(
        Trouble.STATUS,
        f"the server answered with status {response.status}" + (f" ({code})" if code else ""),
        status=response.status,
        evidence=(
            ("StorageErrorCode", code),
            ("RequestId", request_id(headers)),
        ),
        retry_after=transfer_retry.retry_after(headers.get("Retry-After"), datetime.now(UTC)),
    )


def request_id(headers: Mapping[str, str]) -> str | None:
    """Return the id by which the storage's operator finds the request, if it is one."""
    text = headers.get("x-ms-request-id", "")
    return text if _REQUEST_ID.fullmatch(text) else None


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    content = b""
    try:
        while len(content) < ERROR_BYTES and (piece := await response.content.readany()):
            content += piece
    except (aiohttp.ClientError, OSError):
        # The status says what counts; its explanation is cut off.
        return content
    return content


def code_of(trouble: HttpTroubleError) -> str:
    """Return the failure code of a download that this ended (spec/node.md §4)."""
    if trouble.kind is Trouble.SILENCE:
        return "BlobDownloadTimedOut"
    if trouble.kind is Trouble.STATUS and trouble.status == 404:
        return "BlobNotFound"
    if trouble.kind is Trouble.STATUS and trouble.status in (401, 403):
        return "BlobAccessDenied"
    return "BlobDownloadMiscError"


def download_failure(given_up: GivenUpError, *, url: str, path: str) -> FailureInfo:
    """Return the failure of a file that could not be had; `path` is where it was to go."""
    trouble = given_up.trouble
    return failure_of(
        code_of(trouble),
        ("Message", str(trouble)),
        ("FilePath", path),
        ("BlobSource", urls.shown(url)),
        ("HttpStatus", None if trouble.status is None else str(trouble.status)),
        *trouble.evidence,
        ("Attempts", str(given_up.tries)),
    )


def deadline_failure(seconds: float, last: HttpTroubleError | None, *, url: str, path: str) -> FailureInfo:
    """Return the failure of a file that took too long; `last` is what went wrong last, if anything did."""
    return failure_of(
        "BlobDownloadTimedOut",
        ("Message", f"the file was not there within the {seconds:g} seconds that a transfer may take"),
        ("FilePath", path),
        ("BlobSource", urls.shown(url)),
        ("LastTrouble", None if last is None else str(last)),
    )
