"""The API against its own OpenAPI document: five thousand requests that a machine made up, and none fails."""

import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck

from c360_pipeline.serving.app import create_app
from c360_pipeline.serving.backend import Backend
from c360_pipeline.stores.control import ControlDb
from c360_pipeline.stores.graph import Graph
from c360_pipeline.stores.lake import Lake
from c360_pipeline.stores.landing import Landing

OPERATIONS = 12
EXAMPLES = int(os.environ.get("C360_SCHEMA_EXAMPLES", -(-5_000 // OPERATIONS)))
"""Of each operation."""


@pytest.fixture
def schema(graph: Graph, lake: Lake, landing: Landing, control: ControlDb) -> Iterator[Any]:
    backend = Backend(graph, lake, landing, control)
    app = create_app(backend, rate="1000000/second")
    key, _ = backend.keys.add("acme", "admin")
    with TestClient(app):
        loaded = schemathesis.openapi.from_asgi("/openapi.json", app)
        loaded.config.update(headers={"authorization": f"Bearer {key}"})
        yield loaded


api = schemathesis.pytest.from_fixture("schema")


@api.parametrize()
@hypothesis.settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_makes_the_api_fail(case: schemathesis.Case) -> None:
    response = case.call()
    assert response.status_code < 500
    if response.status_code >= 400:
        assert response.headers["content-type"][0] == "application/problem+json"
