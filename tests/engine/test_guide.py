"""Completions of a model that knows nothing, held to a form."""

import json
import re

import numpy as np
import pytest
import torch
from models import GROUPED, random_decoder
from tokenizers import AddedToken

from agartha.core.errors import DataError
from agartha.engine.engine import Engine
from agartha.engine.guide import Guide, Thinking, compile_grammar
from agartha.engine.request import Completion, Request
from agartha.engine.sampler import Sampling
from agartha.model.decoder import Decoder
from agartha.text.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer.train(['{"name": "Ada", "age": 42} think and answer'] * 20, 320)
    made.backend.add_special_tokens([AddedToken(tag, special=True) for tag in ("<think>", "</think>")])
    return Tokenizer(made.backend)


@pytest.fixture(scope="module")
def decoder(tokenizer: Tokenizer) -> Decoder:
    return random_decoder(GROUPED | {"vocab_size": tokenizer.vocab_size + 6})


def say(decoder: Decoder, tokenizer: Tokenizer, guide: Guide, n: int = 4, **more) -> list[Completion]:
    how = Sampling(1.0, max_tokens=120, seed=3, stop_ids=(tokenizer.eos_id,))
    return Engine(decoder, 4, 200, **more).generate([Request(tokenizer.encode("think"), how, n, guide=guide)])[0]


def text_of(tokenizer: Tokenizer, completion: Completion) -> str:
    return tokenizer.decode([i for i in completion.token_ids if i != tokenizer.eos_id])


@pytest.mark.parametrize("draft", [None, "lookup"])
def test_every_completion_keeps_to_the_schema(decoder: Decoder, tokenizer: Tokenizer, draft) -> None:
    for completion in say(
        decoder, tokenizer, Guide(tokenizer, compile_grammar("json_schema", SCHEMA, tokenizer)), draft=draft
    ):
        made = json.loads(text_of(tokenizer, completion))
        assert completion.finish == "stop" and made["name"] in ("Ada", "Bob") and 0 <= made["age"] <= 99


def test_thinking_is_free_until_its_budget_is_spent_and_then_the_form_holds(
    decoder: Decoder, tokenizer: Tokenizer
) -> None:
    guide = Guide(tokenizer, compile_grammar("regex", "[ab]{3}", tokenizer), Thinking("<think>", "</think>", True, 7))
    for completion in say(decoder, tokenizer, guide):
        thought, answer = text_of(tokenizer, completion).split("</think>")
        assert re.fullmatch("[ab]{3}", answer) and completion.finish == "stop"
        assert len(completion.token_ids) - len(tokenizer.encode(answer)) <= 7 + 1 + 1 + 2


def test_a_budget_of_nothing_closes_at_once(decoder: Decoder, tokenizer: Tokenizer) -> None:
    guide = Guide(tokenizer, None, Thinking("<think>", "</think>", True, 0))
    assert all(text_of(tokenizer, c).startswith("</think>") for c in say(decoder, tokenizer, guide))


def test_a_model_may_begin_to_think_by_itself_where_that_is_its_likeliest_word(tokenizer: Tokenizer) -> None:
    guide = Guide(tokenizer, compile_grammar("regex", "[ab]{3}", tokenizer), Thinking("<think>", "</think>"))
    (opening,) = tokenizer.encode("<think>")
    logits = np.zeros(tokenizer.vocab_size, np.float32)
    mask = guide.mask(logits)
    assert mask is not None and not mask[opening]
    logits[opening] = 1
    mask = guide.mask(logits)
    assert mask is not None and mask[opening]
    guide.accept(opening)
    assert guide.mask(logits) is None and guide.error is None
    guide.accept(tokenizer.encode("</think>")[0])
    mask = guide.mask(logits)
    assert mask is not None and not mask[opening] and mask[tokenizer.encode("a")[0]]


def test_a_completion_of_another_tenant_is_not_touched(decoder: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(decoder, 8, 200)
    free = Request(tokenizer.encode("answer"), Sampling(1.0, max_tokens=20, seed=1))
    held = Request(
        tokenizer.encode("answer"), Sampling(1.0, max_tokens=20, seed=1, stop_ids=(tokenizer.eos_id,)), 3,
        guide=Guide(tokenizer, compile_grammar("regex", "b{2,9}", tokenizer)),
    )  # fmt: skip
    alone = engine.generate([free])[0][0].token_ids
    assert engine.generate([free, held])[0][0].token_ids == alone


@pytest.mark.parametrize(
    "kind, spec",
    [("json_schema", {"type": 5}), ("json_schema", {"$ref": "http://x/y"}), ("regex", "((("), ("lark", "start: foo")],
)
def test_what_is_no_grammar_is_refused(tokenizer: Tokenizer, kind, spec) -> None:
    with pytest.raises(DataError):
        compile_grammar(kind, spec, tokenizer)


def test_too_large_and_too_deep_grammars_and_word_tokenizers_are_refused(tokenizer: Tokenizer) -> None:
    deep: dict = {"type": "string"}
    for _ in range(100_000):
        deep = {"type": "array", "items": deep}
    for kind, spec in (("regex", "a" * 300_000), ("json_schema", deep)):
        with pytest.raises(DataError):
            compile_grammar(kind, spec, tokenizer)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="tokenizer"):
        compile_grammar("regex", "a", Tokenizer.from_words(["a"]))


def test_masks_reach_beyond_the_tokenizer_s_ids(decoder: Decoder, tokenizer: Tokenizer) -> None:
    guide = Guide(tokenizer, compile_grammar("regex", "[ab]{3}", tokenizer))
    completions = say(decoder, tokenizer, guide)
    assert all(max(c.token_ids) < tokenizer.vocab_size for c in completions)
    assert torch.tensor([len(c.token_ids) for c in completions]).max() <= 4
