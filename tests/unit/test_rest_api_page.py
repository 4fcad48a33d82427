"""docs/rest-api.md and the OpenAPI document are those of the routing table."""

import runpy
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from nodeagent.service.rest.contracts import CONTRACTS, P2
from nodeagent.service.rest.openapi import document
from nodeagent.service.rest.routes import OPERATIONS

ROOT = Path(__file__).parents[2]
SERVED = [operation for operation in OPERATIONS if operation.handler is not None]


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    """Return the document of the whole table."""
    return document(OPERATIONS)


def test_the_page_is_what_the_script_writes() -> None:
    """So it cannot say that something is served which is not, or the other way round."""
    written = runpy.run_path(str(ROOT / "scripts" / "rest-api-page"))["page"]()
    assert (ROOT / "docs" / "rest-api.md").read_text() == written, "run scripts/rest-api-page"


def test_every_operation_that_is_served_has_its_contract() -> None:
    """And what is not planned is an operation of the table."""
    assert {operation.name for operation in SERVED} - set(CONTRACTS) == set()
    assert {operation.name for operation in OPERATIONS} >= P2


def test_the_document_is_valid(openapi: dict[str, Any]) -> None:
    """By the schema of OpenAPI 3.1, with every reference in place."""
    OpenAPIV31SpecValidator(openapi).validate()


def test_the_document_has_each_row_once(openapi: dict[str, Any]) -> None:
    """Verb and path of everything that is served, and nothing else; ids of operations are unique."""
    found = [shape["operationId"] for path in openapi["paths"].values() for shape in path.values()]
    assert len(found) == len(set(found)) == len(SERVED)


def test_what_is_required_and_what_is_limited_is_told(openapi: dict[str, Any]) -> None:
    """Requests have the limits of the models; replies have no secrets."""
    schemas = openapi["components"]["schemas"]
    task = schemas["Request.TaskCreate"]
    assert set(task["required"]) == {"id", "commandLine"}
    assert task["additionalProperties"] is False
    assert task["properties"]["id"]["pattern"] == "^[A-Za-z0-9_-]{1,64}$"
    assert task["properties"]["requiredSlots"]["minimum"] == 1
    limit = schemas["Request.TaskConstraints"]["properties"]["maxWallClockTime"]
    assert limit["default"] == "P10675199DT2H48M5.4775807S"
    assert "password" in schemas["Request.UserAccount"]["properties"]
    assert "password" not in schemas["Reply.UserAccount"]["properties"]
