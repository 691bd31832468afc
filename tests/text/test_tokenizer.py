"""Tokenizers: round trips, and the same ids in transformers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agartha.core.errors import DataError
from agartha.text.tokenizer import Tokenizer

TEXTS = ["the cat sat on the mat.\n", "  two spaces, a tab\tand Ünïcödé: 漢字 🙂", "3 + 4 = 7", "<eos> inside a text"]
WORDS = ["1", "2", "3", "+", "=", "->", "<think>"]
BYTES, ARITHMETIC = Tokenizer.train(["some text"], 259), Tokenizer.from_words(WORDS)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(TEXTS * 20, 320)


@pytest.fixture(scope="module")
def of_words() -> Tokenizer:
    return Tokenizer.from_words(WORDS)


@settings(deadline=None)
@given(st.text())
def test_a_trained_tokenizer_gives_every_text_back(text):
    assert BYTES.decode(BYTES.encode(text)) == text


def test_training_shortens_what_it_has_seen(trained):
    assert len(trained.encode(TEXTS[0])) < len(TEXTS[0]) / 2
    assert 259 <= trained.vocab_size <= 320


@given(st.lists(st.sampled_from([*WORDS, "<eos>"]), max_size=20), st.sampled_from([" ", "\n", " \t "]))
def test_words_come_back_joined_by_one_space(words, space):
    ids = ARITHMETIC.encode(space.join(words))
    assert len(ids) == len(words) and ARITHMETIC.decode(ids) == " ".join(words)


@given(st.lists(st.sampled_from([*WORDS, "<eos>", "<pad>"]), max_size=20), st.sampled_from([" ", "\n", "\u3000"]))
def test_the_fast_path_for_words_gives_the_ids_of_the_library(words, space):
    text = space.join(words)
    assert ARITHMETIC.encode(text) == ARITHMETIC.backend.encode(text, add_special_tokens=False).ids


def test_an_end_token_is_found_without_space_around_it(of_words):
    assert of_words.encode("1<eos>2") == [0, of_words.eos_id, 1]


def test_an_unknown_word_is_named(of_words):
    with pytest.raises(DataError, match="'seven'"):
        of_words.encode("1 + seven")
    with pytest.raises(DataError, match="'seven'"):
        of_words.encode_batch(["1", "seven = 2"])


@pytest.mark.parametrize("words", [["a", "a"], ["a b"], [""], ["a\n"], ["<eos>"]])
def test_words_that_cannot_be_tokens_are_refused(words):
    with pytest.raises(DataError):
        Tokenizer.from_words(words)


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(DataError, match="at least 259"):
        Tokenizer.train(["a"], 258)


@pytest.mark.parametrize("which", ["trained", "of_words"])
def test_transformers_opens_it_with_the_same_ids(which, request, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = request.getfixturevalue(which)
    texts = TEXTS if which == "trained" else ["1 + 2 = 3", "<think> 1 ->\n2 <eos>"]
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in texts:
        assert (
            theirs(text, add_special_tokens=False)["input_ids"] == theirs(text)["input_ids"] == tokenizer.encode(text)
        )
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)


@pytest.mark.parametrize("which", ["trained", "of_words"])
def test_a_saved_tokenizer_loads_as_the_same_one(which, request, tmp_path):
    tokenizer = request.getfixturevalue(which)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.digest() == tokenizer.digest()
    assert (loaded.eos_id, loaded.pad_id, loaded.vocab_size) == (
        tokenizer.eos_id,
        tokenizer.pad_id,
        tokenizer.vocab_size,
    )


def test_two_tokenizers_have_two_digests(trained, of_words):
    assert trained.digest() != of_words.digest()


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match="no readable tokenizer"):
        Tokenizer.load(tmp_path)


def test_damaged_settings_are_refused(trained, tmp_path):
    trained.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError):
        Tokenizer.load(tmp_path)


def test_a_model_smaller_than_the_tokenizer_is_refused(of_words):
    of_words.check_model(of_words.vocab_size)
    with pytest.raises(DataError, match="10 tokens, the model only 9"):
        of_words.check_model(9)
