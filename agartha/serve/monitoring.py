"""Which models there are, whether their engines go round, and what was counted: /v1/models, /health, /metrics."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from agartha.serve.bodies import FAILURES
from agartha.serve.encoding import Answer
from agartha.serve.errors import APIError
from agartha.serve.hub import hub_of
from agartha.serve.served import Served

router = APIRouter()


@router.get("/v1/models", responses=FAILURES)
async def models(request: Request) -> Response:
    """Every model, the one that answers by default first."""
    cards = [await asyncio.to_thread(_card, served) for served in hub_of(request).models.values()]
    return Answer({"object": "list", "data": cards})


@router.get("/v1/models/{name:path}", responses=FAILURES)
async def model(request: Request, name: str) -> Response:
    """One model."""
    return Answer(await asyncio.to_thread(_card, hub_of(request).model(name)))


@router.get("/health", responses=FAILURES)
async def health(request: Request) -> Response:
    """Whether each engine's own loop answers in time; 503 if one does not."""
    hub = hub_of(request)
    workers = [served.worker for served in hub.models.values()]
    alive = await asyncio.gather(*(worker.alive(hub.settings.health_seconds) for worker in workers))
    draining = any(worker.is_draining for worker in workers)
    if all(alive) and not draining:
        return Answer({"status": "ok", "models": dict.fromkeys(hub.models, "ok")})
    bad = [name for name, is_alive in zip(hub.models, alive) if not is_alive]
    why = "the server is shutting down." if draining and not bad else f"no answer from the engine of {', '.join(bad)}."
    raise APIError(503, why, "unhealthy")


@router.get("/metrics", response_class=PlainTextResponse, responses=FAILURES)
async def metrics(request: Request) -> Response:
    """Prometheus' text form. An engine that is busy for long shows the numbers it gave last."""
    hub = hub_of(request)
    await asyncio.gather(*(served.worker.alive(1.0) for served in hub.models.values()))
    return Response(hub.timings.text(), headers={"content-type": CONTENT_TYPE_LATEST})


def _card(served: Served) -> dict[str, Any]:
    """OpenAI's fields, and what a client may want to know beyond them."""
    beside = {"parent": served.base} if served.adapter else {}
    return beside | {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "agartha",
        "max_model_len": served.worker.max_length,
        "model_digest": served.digest,
        "thinking": served.format.think is not None,
        "default_system": served.default_system,
        "defaults": served.defaults,
    }
