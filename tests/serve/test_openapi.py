"""Schemathesis, driven by our own OpenAPI document: no 5xx, and no status that the document does not name."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from live import Live, live
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance
from scripted import served

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]


@pytest.fixture(scope="module")
def server():
    with live(served(max_rows=16, queue_limit=200)) as made:
        yield made


@pytest.fixture(scope="module")
def api(server: Live):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_the_document_allows_is_never_our_failure(case) -> None:
    if "stream" in (case.body if isinstance(case.body, dict) else {}):
        case.body["stream"] = False
    case.call_and_validate(checks=CHECKS)


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
