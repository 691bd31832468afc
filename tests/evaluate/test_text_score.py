"""Bits per byte: every token once, whatever the rows; settings and files that make no sense are refused."""

from math import log

import pytest
import torch
from models import EXPERTS, random_decoder

from agartha.core.config import load
from agartha.core.errors import ConfigError, DataError
from agartha.evaluate.config import EvalConfig
from agartha.evaluate.text import pieces, score_text
from agartha.text.tokenizer import Tokenizer

WORDS = ["one", "two", "three", "four"]
DOCUMENTS = ["one two three", "four", " ".join(WORDS * 9), "two two"]


def test_nats_are_those_of_each_document_alone() -> None:
    decoder, tokenizer = random_decoder(EXPERTS), Tokenizer.from_words(WORDS)
    expected = 0.0
    for text in DOCUMENTS:
        ids = torch.tensor([[*tokenizer.encode(text), tokenizer.eos_id]])
        with torch.no_grad():
            logits = decoder.logits(decoder(ids, torch.arange(ids.shape[1])[None]))[0]
        expected += log(96) - float(logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).sum())
    score = score_text(decoder, tokenizer, DOCUMENTS, 64)
    assert score.nats == pytest.approx(expected, rel=1e-5)
    assert score.tokens == 3 + 1 + 36 + 2 + len(DOCUMENTS) and score.num_bytes == sum(map(len, DOCUMENTS))
    assert score.bits_per_byte == pytest.approx(expected / log(2) / score.num_bytes, rel=1e-5)


def test_a_model_that_knows_nothing_pays_the_same_for_every_token() -> None:
    decoder, tokenizer = random_decoder(EXPERTS), Tokenizer.from_words(WORDS)
    with torch.no_grad():
        decoder.lm_head.weight.zero_()
    for row_length in (2, 5, 64):  # a row of two cuts all documents into pairs
        score = score_text(decoder, tokenizer, DOCUMENTS * 30, row_length)
        assert score.nats == pytest.approx(score.tokens * log(96), rel=1e-5)


def test_pieces_predict_every_token_but_the_first_once() -> None:
    for length in range(1, 30):
        for row_length in range(2, 12):
            parts = list(pieces(list(range(length)), row_length))
            assert [i for part in parts for i in part[1:]] == list(range(1, length)) and parts[0][0] == 0
            assert all(len(part) <= row_length for part in parts)


def test_no_text_and_rows_beyond_the_model_are_refused() -> None:
    decoder, tokenizer = random_decoder(EXPERTS), Tokenizer.from_words(WORDS)
    with pytest.raises(DataError, match="no text"):
        score_text(decoder, tokenizer, ["", ""], 16)
    with pytest.raises(DataError, match="the model's 256"):
        score_text(decoder, tokenizer, DOCUMENTS, 257)


def test_scoring_leaves_the_model_in_the_mode_it_was_in() -> None:
    decoder = random_decoder(EXPERTS).train()
    score_text(decoder, Tokenizer.from_words(WORDS), DOCUMENTS, 16)
    assert decoder.training and not any(router.expert_load.any() for router in decoder.routers())


def test_pass_at_k_needs_k_samples() -> None:
    assert load(EvalConfig, None, ["samples=8", "k=[1, 8]"]).k == (1, 8)
    for wrong in (["k=[2]"], ["samples=4", "k=[0]"]):
        with pytest.raises(ConfigError, match="samples="):
            load(EvalConfig, None, wrong)
