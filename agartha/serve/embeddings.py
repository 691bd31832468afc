"""POST /v1/embeddings: texts as unit vectors, by the mean of the model's last hidden states."""

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from agartha.serve.bodies import FAILURES, read, takes
from agartha.serve.completions import encode
from agartha.serve.encoding import Answer
from agartha.serve.errors import APIError, unsupported
from agartha.serve.hub import hub_of, ignored_header
from agartha.serve.protocol import Embedding
from agartha.serve.served import Served
from agartha.serve.sse import whole

router = APIRouter()
MOST_TEXTS = 2048


@router.post("/v1/embeddings", responses=FAILURES, openapi_extra=takes(Embedding))
async def embeddings(request: Request) -> Response:
    """One vector for each text."""
    body, hub = await read(request, Embedding), hub_of(request)
    served = hub.model(body.model)
    prompts = await encode(served, body.input, MOST_TEXTS, "input")
    _check_lengths(served, prompts)
    vectors = await whole(request, _embed(served, prompts))
    if body.dimensions not in (None, vectors.shape[1]):
        raise unsupported("dimensions", f"this model's vectors have {vectors.shape[1]} and cannot be shortened.")
    entries = [_entry(i, vector, body.encoding_format == "base64") for i, vector in enumerate(vectors)]
    count = sum(map(len, prompts))
    answer = {
        "object": "list",
        "data": entries,
        "model": served.name,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }
    return Answer(answer, headers=ignored_header(request))


def _check_lengths(served: Served, prompts: list[list[int]]) -> None:
    longest, limit = max(map(len, prompts)), served.worker.max_length
    if longest > limit:
        message = f"a text of {longest} tokens is longer than this model's context, {limit}."
        raise APIError(400, message, "context_length_exceeded", "input")


async def _embed(served: Served, prompts: list[list[int]]) -> np.ndarray:
    """float32 [N, H]. One text at a time between the engine's steps, so that replies go on coming."""
    async with served.worker.turn():
        return np.concatenate([await served.worker.embed([ids], served.adapter) for ids in prompts])


def _entry(index: int, vector: np.ndarray, as_base64: bool) -> dict[str, Any]:
    packed = np.ascontiguousarray(vector, "<f4")
    shown = base64.b64encode(packed.tobytes()).decode() if as_base64 else packed.tolist()
    return {"object": "embedding", "index": index, "embedding": shown}
