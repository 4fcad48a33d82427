"""`GET /openapi.json`: the served part of the Batch API as an OpenAPI 3.1 document, made from models and routing table.

What goes beyond JSON schema (properties that exclude each other, states, what is supported) is refused by the service
with Batch's error body, which every operation has as its default answer.
"""

import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from datetime import timedelta
from typing import Any

import orjson
from aiohttp import web
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from nodeagent import __version__
from nodeagent.model.base import BatchModel
from nodeagent.model.times import format_duration
from nodeagent.service.rest.contracts import CONTRACTS, Body, Contract, Schema
from nodeagent.service.rest.dispatch import Operation, common_headers
from nodeagent.service.rest.shapes.entity import SECRETS
from nodeagent.service.rest.versions import KNOWN_VERSIONS

PATH = "/openapi.json"
_JSON = "application/json"
_SCHEMAS = "#/components/schemas/"
_SENT, _GIVEN = "Request.", "Reply."
"""Prefixes of the schemas of bodies: of requests as they are refused, of replies as they are shown."""
_VARIABLE = re.compile(r"\{(\w+?)(\.\.\.)?\}")

_OPTIONS: Mapping[str, dict[str, Any]] = {
    "maxresults": {
        "description": "Entries of a page.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1000},
    },
    "$filter": {"description": "An OData filter over the documented properties.", "schema": {"type": "string"}},
    "$select": {"description": "Names of properties, separated by commas.", "schema": {"type": "string"}},
    "$expand": {"description": "Statistics are the only thing to expand.", "schema": {"enum": ["stats"]}},
    "$skiptoken": {"description": "Where a page begins; taken from a next link.", "schema": {"type": "string"}},
    "recursive": {"description": "Whether what is in directories is meant too.", "schema": {"type": "boolean"}},
    "force": {"description": "Whether nodes that do not answer are not waited for.", "schema": {"type": "boolean"}},
}
_CONDITIONS = ("If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since")
_COMMON: Mapping[str, dict[str, Any]] = {
    "apiVersion": {
        "name": "api-version",
        "in": "query",
        "required": True,
        "schema": {"enum": sorted(KNOWN_VERSIONS, reverse=True)},
    },
    "timeOut": {
        "name": "timeOut",
        "in": "query",
        "description": "Seconds that the client waits.",
        "schema": {"type": "integer", "default": 30},
    },
    "clientRequestId": {"name": "client-request-id", "in": "header", "schema": {"type": "string"}},
    "returnClientRequestId": {
        "name": "return-client-request-id",
        "in": "header",
        "description": "Whether the answer repeats `client-request-id`.",
        "schema": {"enum": ["true", "false"]},
    },
}
_ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "odata.metadata": {"type": "string"},
        "code": {"type": "string"},
        "message": {
            "type": "object",
            "properties": {"lang": {"type": "string"}, "value": {"type": "string"}},
            "required": ["lang", "value"],
        },
        "values": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"key": {"type": "string"}, "value": {"type": "string"}},
                "required": ["key", "value"],
            },
        },
    },
    "required": ["code", "message"],
}
_REQUEST_ID = {"request-id": {"required": True, "schema": {"type": "string", "format": "uuid"}}}


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the document of the operations that are served and have a contract: a test sees to it that all have."""
    served = [operation for operation in operations if operation.handler is not None and operation.name in CONTRACTS]
    paths: dict[str, dict[str, Any]] = {}
    names: set[str] = set()
    for operation in served:
        shape = _operation(operation, CONTRACTS[operation.name])
        if operation.name in names:  # an older path of the same operation
            shape |= {"operationId": f"{operation.name}_of_{operation.path.rsplit('/', 1)[-1]}", "deprecated": True}
        names.add(operation.name)
        paths.setdefault(_VARIABLE.sub(_openapi_variable, operation.path), {})[operation.method.lower()] = shape
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nodeagent: the Azure Batch REST API",
            "version": __version__,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"sharedKey": []}, {"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "sharedKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`SharedKey account:signature`, as Azure Batch documents it.",
                },
                "bearer": {"type": "http", "scheme": "bearer"},
            },
            "parameters": dict(_COMMON),
            "responses": {
                "Error": {
                    "description": "A refusal.",
                    "headers": _REQUEST_ID,
                    "content": {_JSON: {"schema": {"$ref": f"{_SCHEMAS}BatchError"}}},
                },
                "ErrorWithoutBody": {"description": "A refusal; HEAD has no bodies.", "headers": _REQUEST_ID},
            },
            "schemas": _schemas([CONTRACTS[operation.name] for operation in served]),
        },
    }


def handler(operations: Iterable[Operation]) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return what answers `GET /openapi.json`: it tells nothing of the account, so anyone may ask."""
    known = tuple(operations)
    made: list[bytes] = []

    async def serve(request: web.Request) -> web.Response:
        if not made:
            made.append(orjson.dumps(document(known)))
        headers = common_headers(request, str(uuid.uuid4())) | {"Content-Type": _JSON}
        return web.Response(body=made[0], headers=headers)

    return serve


def _openapi_variable(match: re.Match[str]) -> str:
    return f"{{{_camel(match[1])}}}"


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.title() for part in others)


def _operation(operation: Operation, contract: Contract) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.name.partition("_")[0]],
        "parameters": list(_parameters(operation, contract)),
        "responses": _responses(operation, contract),
    }
    if operation.handler is not None and operation.handler.__doc__:
        shape["summary"] = operation.handler.__doc__.partition("\n")[0].rstrip(".")
    if contract.takes is not None:
        shape["requestBody"] = {
            "required": not contract.body_optional,
            "content": {_JSON: {"schema": _with_references(contract.takes, _SENT)}},
        }
    return shape


def _parameters(operation: Operation, contract: Contract) -> Iterator[dict[str, Any]]:
    for match in _VARIABLE.finditer(operation.path):
        shape = {"name": _camel(match[1]), "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        if match[2]:
            shape["description"] = "The rest of the path; slashes may be percent-encoded."
        yield shape
    for name in _COMMON:
        yield {"$ref": f"#/components/parameters/{name}"}
    for name in contract.options:
        yield {"name": name, "in": "query"} | _OPTIONS[name]
    if contract.conditional:
        for name in _CONDITIONS:
            yield {"name": name, "in": "header", "schema": {"type": "string"}}
    if contract.gives is Body.FILE:
        yield {"name": "ocp-range", "in": "header", "schema": {"type": "string"}, "example": "bytes=0-1023"}


def _responses(operation: Operation, contract: Contract) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "Success.", "headers": _REQUEST_ID}
    content = _content(contract)
    if content is not None:
        success["content"] = content
    responses: dict[str, Any] = {str(contract.status): success}
    if operation.method == "GET" and (contract.conditional or contract.gives is Body.FILE):
        responses["304"] = {"description": "Not modified.", "headers": _REQUEST_ID}
    error = "ErrorWithoutBody" if operation.method == "HEAD" else "Error"
    return responses | {"default": {"$ref": f"#/components/responses/{error}"}}


def _content(contract: Contract) -> dict[str, Any] | None:
    match contract.gives:
        case Body.NONE:
            return None
        case Body.FILE:
            return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        case what:
            schema = _with_references(what, _GIVEN)
    if contract.many:
        properties = {
            "odata.metadata": {"type": "string"},
            "value": {"type": "array", "items": schema},
            "odata.nextLink": {"type": "string"},
        }
        schema = {"type": "object", "properties": properties, "required": ["odata.metadata", "value"]}
    return {_JSON: {"schema": schema}}


def _with_references(schema: Any, prefix: str) -> Any:  # noqa: ANN401 - JSON is anything
    """Return a copy of a schema with references in place of models."""
    if isinstance(schema, type):
        return {"$ref": f"{_SCHEMAS}{prefix}{schema.__name__}"}
    if isinstance(schema, Mapping):
        return {name: _with_references(part, prefix) for name, part in schema.items()}
    if isinstance(schema, list):
        return [_with_references(part, prefix) for part in schema]
    return schema


def _models(schema: type[BatchModel] | Schema | Body | list[Any] | None) -> Iterator[type[BatchModel]]:
    """Yield the models that a schema refers to."""
    if isinstance(schema, type):
        yield schema
    elif isinstance(schema, Mapping | list):
        for part in schema.values() if isinstance(schema, Mapping) else schema:
            yield from _models(part)


class _Generator(GenerateJsonSchema):
    """Defaults as the wire has them, and none for what is absent."""

    def encode_default(self, dft: Any) -> Any:  # noqa: ANN401 - pydantic's signature
        """Return a default as JSON."""
        return format_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


def _schemas(contracts: Iterable[Contract]) -> dict[str, Any]:
    sent: set[type[BatchModel]] = set()
    given: set[type[BatchModel]] = set()
    for contract in contracts:
        sent |= set(_models(contract.takes))
        given |= set(_models(contract.gives))
    schemas: dict[str, Any] = {"BatchError": deepcopy(_ERROR)}
    for models, prefix in ((sent, _SENT), (given, _GIVEN)):
        _, made = models_json_schema(
            [(model, "validation" if prefix is _SENT else "serialization") for model in sorted(models, key=_name)],
            ref_template=f"{_SCHEMAS}{prefix}{{model}}",
            schema_generator=_Generator,
        )
        for name, schema in made.get("$defs", {}).items():
            schemas[f"{prefix}{name}"] = _tidied(schema) if prefix is _SENT else _as_shown(_tidied(schema))
    return schemas


def _name(model: type[BatchModel]) -> str:
    return model.__name__


def _tidied(schema: dict[str, Any]) -> dict[str, Any]:
    """Leave out what says nothing: titles of properties, and null as a default."""
    for part in schema.get("properties", {}).values():
        part.pop("title", None)
        if part.get("default", ...) is None:
            del part["default"]
    return schema


def _as_shown(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what clients see of a model: `$select` may leave anything out, secrets are, and later versions add."""
    schema.pop("required", None)
    schema.pop("additionalProperties", None)
    for name in SECRETS & set(schema.get("properties", {})):
        del schema["properties"][name]
    return schema
