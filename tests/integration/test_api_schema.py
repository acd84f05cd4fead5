"""The API against its own OpenAPI document: requests that a machine made up, and none fails."""

from collections import Counter
from collections.abc import Iterator

import hypothesis
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck
from repetition import Trials, often

from c360_pipeline.serving.app import create_app
from c360_pipeline.serving.backend import Backend
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.landing import Landing

REQUESTS = often(150, 5_000)


@pytest.fixture
def schema(graph: Graph, lake: Lake, landing: Landing, control: ControlDb) -> Iterator[schemathesis.BaseSchema]:
    backend = Backend(graph, lake, landing, control)
    app = create_app(backend, rate="1000000/second")
    key, _ = backend.keys.add("acme", "admin")
    with TestClient(app):
        loaded = schemathesis.openapi.from_asgi("/openapi.json", app)
        loaded.config.update(headers={"authorization": f"Bearer {key}"})
        yield loaded


@pytest.mark.repeats
def test_no_request_makes_the_api_fail(trials: Trials, schema: schemathesis.BaseSchema) -> None:
    trials(REQUESTS)
    answers: Counter[tuple[str, int]] = Counter()
    operations = [found.ok() for found in schema.get_all_operations()]
    # Health and figures take nothing: there is one request to each.
    varied = [o for o in operations if o.body or o.path_parameters or o.query]
    for operation in operations:

        @hypothesis.settings(
            max_examples=-(-REQUESTS // len(varied)), deadline=None, suppress_health_check=list(HealthCheck)
        )
        @hypothesis.given(case=operation.as_strategy())
        def answers_without_failing(case: schemathesis.Case) -> None:
            response = case.call()
            answers[case.operation.path, response.status_code] += 1
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                assert response.headers["content-type"][0] == "application/problem+json"

        answers_without_failing()
    assert answers.total() >= REQUESTS, answers
    # Made-up requests are understood in most places, not refused at the door.
    assert {path for path, status in answers if status in (200, 404)} == {o.path for o in operations}
