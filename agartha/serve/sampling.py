"""From the fields of a request to the engine's `Sampling`, and to what is told of it."""

import secrets
from dataclasses import asdict
from typing import Any

from agartha.engine.sampler import Sampling
from agartha.serve.errors import APIError, invalid
from agartha.serve.protocol import Sampled
from agartha.serve.served import Served

LEAST_TOP_P = 1e-9  # OpenAI allows 0: the likeliest token alone
FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
)


def sampling(
    served: Served, body: Sampled, prompt_size: int, max_tokens: int | None, top_logprobs: int = 0
) -> Sampling:
    """What the request says, else what the model's makers advise, else OpenAI's defaults.

    max_tokens None: as much as there is room for; more than there is room for: likewise, and `finish_reason` says "length".
    Raises: APIError 400 `context_length_exceeded` for a prompt that leaves no room, 400 for what is out of bounds.
    """
    room = served.worker.max_length - prompt_size
    if room < 1:
        limit = served.worker.max_length
        raise APIError(400, f"the prompt has {prompt_size} tokens; this model's context holds {limit}, of which one at least is "
                       "for the reply. Shorten the messages.", "context_length_exceeded", "messages")  # fmt: skip
    chosen = {name: value for name, value in served.defaults.items() if name in FIELDS}
    chosen |= {name: value for name in FIELDS if (value := getattr(body, name)) is not None}
    chosen["top_p"] = max(chosen.get("top_p", 1.0), LEAST_TOP_P)
    limit = min(room, max_tokens or room)
    if chosen.get("min_tokens", 0) > limit:
        raise invalid(f"min_tokens is {chosen['min_tokens']}, more than the {limit} there may be.", "min_tokens")
    stops = (() if body.ignore_eos else served.eos_ids) + tuple(body.stop_token_ids or ())
    seed = secrets.randbits(53) if body.seed is None else body.seed
    return Sampling(**chosen, max_tokens=limit, seed=seed, stop_ids=tuple(dict.fromkeys(stops)),
                    logit_bias=_bias(served, body), top_logprobs=top_logprobs, logprobs_of="model")  # fmt: skip


def told(how: Sampling) -> dict[str, Any]:
    """All that shaped the draw, for the reply."""
    made = asdict(how)
    del made["top_logprobs"], made["logprobs_of"]
    return made | {"logit_bias": {str(token): bias for token, bias in how.logit_bias.items()}}


def _bias(served: Served, body: Sampled) -> dict[int, float]:
    """A bias of 0 changes nothing, whatever its key."""
    given = {key: bias for key, bias in (body.logit_bias or {}).items() if bias != 0}
    for key in given:
        if not (key.isascii() and key.isdecimal() and int(key[:20]) < served.tokenizer.vocab_size):
            raise invalid(f"logit_bias names {key[:40]!r}, which is no token id of this model.", "logit_bias")
    return {int(key): bias for key, bias in given.items()}
