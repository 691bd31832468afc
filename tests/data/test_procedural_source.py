"""Countdown as a source: endless, held-out free, and resumed without replay."""

import json
from itertools import islice

import pytest
import torch

from agartha.core.errors import ConfigError
from agartha.data.loader import Loader
from agartha.data.mixture import Mixture, SourceSpec
from agartha.text.tokenizer import Tokenizer

SPEC = SourceSpec(name="people", kind="countdown", licence="Apache-2.0")


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return Mixture.open([SPEC])


@pytest.fixture(scope="module")
def tokenizer(mixture) -> Tokenizer:
    return Tokenizer.from_words(mixture.words() or [])


def test_its_words_cover_whatever_it_writes_and_little_is_padding(mixture, tokenizer):
    loader = Loader(mixture, tokenizer, 512, 8, seed=1)
    unknown = tokenizer.encode("<unk>")[0]
    assert not any((batch.input_ids == unknown).any() for batch in islice(loader, 15))
    assert loader.padding_share < 0.01


def test_the_prompt_is_given_and_the_answer_learnt(mixture, tokenizer):
    batch = next(Loader(mixture, tokenizer, 256, 8, seed=1))
    colon, end = tokenizer.encode(":")[0], tokenizer.eos_id
    assert batch.cross_entropy_weight is not None
    for ids, starts, weights in zip(batch.input_ids, batch.document_start, batch.cross_entropy_weight):
        for start in starts.unique().tolist():
            document, weight = ids[starts == start].tolist(), weights[starts == start].tolist()
            if document[-1] == end and colon in document:
                given = document.index(colon)
                assert weight == [0.0] * given + [1.0] * (len(document) - given - 1) + [0.0]


def test_a_restored_loader_goes_on_bit_for_bit_without_replay(mixture, tokenizer):
    first = Loader(mixture, tokenizer, 64, 4, seed=2)
    list(islice(first, 10))
    second = Loader(mixture, tokenizer, 64, 4, seed=2)
    drawn = count_draws(second)
    state = json.loads(json.dumps(first.state()))
    second.restore(state)
    assert len(drawn) <= len(state["waiting"]) < state["drawn"][0] / 2
    for one, other in islice(zip(first, second), 10):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.cross_entropy_weight, other.cross_entropy_weight)


def count_draws(loader) -> list[int]:
    """Numbers of the documents drawn from the loader's only source from now on."""
    drawn, document = [], loader._streams[0].document

    def counted(number):
        drawn.append(number)
        return document(number)

    loader._streams[0].document = counted
    return drawn


def test_seeds_and_workers_write_different_documents(mixture, tokenizer):
    places = [(0, 0, 1), (1, 0, 1), (0, 1, 2)]
    texts = {str(next(Loader(mixture, tokenizer, 64, 2, *place)).input_ids.tolist()) for place in places}
    assert len(texts) == 3


def test_its_hash_knows_its_parameters(mixture):
    other = Mixture.open([SPEC.model_copy(update={"parameters": {"slips": 0.5, "sizes": [1, 0, 0]}})])
    assert other.sources[0].digest != mixture.sources[0].digest == Mixture.open([SPEC]).sources[0].digest
    (card,) = other.card()["sources"]
    assert card["kind"] == "countdown" and card["parameters"]["slips"] == 0.5 and card["documents"] is None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"slip": 0.1}, "'slip' is unknown"),
        ({"slips": 1.5}, r"must be a share in \[0, 1\]"),
        ({"slips": "often"}, "is 'often'"),
        ({"longest": 0}, "whole number from 1"),
        ({"sizes": [1, 2]}, "three shares"),
        ({"sizes": [0, 0, 0]}, "three shares"),
        ({"sizes": ["a", "b", "c"]}, "three shares"),
        ({"sizes": [0.2, float("nan"), 0.3]}, "three shares"),
    ],
)
def test_wrong_parameters_are_refused(parameters, message):
    with pytest.raises(ConfigError, match=message) as raised:
        Mixture.open([SPEC.model_copy(update={"parameters": parameters})])
    assert raised.value.hint


def test_words_are_only_for_mixtures_without_free_text(mixture, tmp_path):
    (tmp_path / "a.txt").write_text("free text")
    both = Mixture.open([SPEC, SourceSpec(name="text", path=str(tmp_path / "a.txt"))], cache=tmp_path)
    assert both.words() is None
    assert "free text" in list(both.texts())
    assert len(set(mixture.words() or [])) == len(mixture.words() or []) > 100


def test_posed_problems_are_learnt_from_their_second_number_on():
    from agartha.data.countdown import Quality, documents
    from agartha.worlds.countdown import Countdown

    found = list(islice(documents(5, Quality(sizes=(0.0, 0.5, 0.5), posed=1.0)), 50))
    assert all(prompt.isdigit() for prompt, _ in found)
    problems = {f"{prompt} {text.partition(':')[0]}:" for prompt, text in found}
    assert all(Countdown().read_task(problem).prompt == problem for problem in problems) and len(problems) > 40
    plain = [prompt for prompt, _ in islice(documents(5, Quality(sizes=(1.0, 0.0, 0.0), posed=1.0)), 20)]
    assert all("->" in prompt for prompt in plain)
