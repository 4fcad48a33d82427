"""A refusal as the wire shows it (spec/rest.md §3.14)."""

from datetime import datetime
from typing import Any

from nodeagent.service.errors import BatchError

_FRAGMENT = "Microsoft.Azure.Batch.Protocol.Entities.Container.errors/@Element"


def error_item(error: BatchError, request_id: str, now: datetime) -> dict[str, Any]:
    """Return code, message object and values: the whole body without `odata.metadata`, as items of a list carry it."""
    time = now.strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"
    text = f"{error.message}\nRequestId:{request_id}\nTime:{time}"
    item: dict[str, Any] = {"code": error.code, "message": {"lang": "en-US", "value": text}}
    if error.values:
        item["values"] = [{"key": key, "value": value} for key, value in error.values]
    return item


def error_body(error: BatchError, metadata_url: str, request_id: str, now: datetime) -> dict[str, Any]:
    """Return the body of a refused request; `metadata_url` is `{base}/$metadata`."""
    return {"odata.metadata": f"{metadata_url}#{_FRAGMENT}"} | error_item(error, request_id, now)
