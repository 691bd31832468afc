"""Schemathesis, driven by our own OpenAPI document: no 5xx, and no status that the document does not name."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from live import Live, live
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance
from scripted import served

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]


@pytest.fixture(scope="module")
def server():
    with live(served(max_rows=16, queue_limit=200)) as made:
        yield made


@pytest.mark.slow
def test_what_the_document_allows_is_never_our_failure(server: Live) -> None:
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in api.get_all_operations()]
    assert len(operations) == 9
    for operation in operations:

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS)

        check()


def test_the_document_describes_every_body(server: Live) -> None:
    with server.http() as http:
        document = http.get("/openapi.json").json()
    posts = {path for path, item in document["paths"].items() if "post" in item}
    assert posts == {
        "/v1/chat/completions", "/v1/chat/completions/render", "/v1/completions", "/v1/responses", "/v1/embeddings",
    }  # fmt: skip
    for path in posts:
        reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        fields = document["components"]["schemas"][reference.rsplit("/", 1)[1]]["properties"]
        assert "model" in fields and {"400", "401", "429"} <= set(document["paths"][path]["post"]["responses"])
