"""The loader, its shards and its mixture, over real files in a temporary folder."""

import json
from collections import Counter
from dataclasses import fields
from itertools import islice

import pytest
import torch

from agartha.core.config import Config, load
from agartha.core.errors import CheckpointError, ConfigError, DataError
from agartha.data.loader import Loader
from agartha.data.mixture import Mixture, SourceSpec
from agartha.data.shards import FACTS, IDS
from agartha.data.sources import problem_digest
from agartha.text.tokenizer import Tokenizer

WORDS = [str(i) for i in range(1000)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_words([*WORDS, "q"])


@pytest.fixture
def corpus(tmp_path):
    """300 documents: the prompt "q i", then the word i between once and 23 times."""
    lines = [json.dumps({"prompt": f"q {i} ", "completion": " ".join([str(i)] * (1 + i % 23))}) for i in range(300)]
    (tmp_path / "numbers.jsonl").write_text("\n".join(lines))
    return tmp_path / "numbers.jsonl"


def open_mixture(path, weight=1.0, name="numbers", **more):
    return Mixture.open([SourceSpec(name=name, path=str(path), weight=weight)], cache=path.parent / "cache", **more)


def same(one, other):
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


def documents_in(batch, tokenizer):
    """Token ids of each packed document."""
    for ids, starts in zip(batch.input_ids, batch.document_start):
        for start in starts.unique():
            document = ids[starts == start].tolist()
            if document[0] != tokenizer.pad_id:
                yield document


def test_batches_have_the_shape_asked_for_and_learn_only_completions(corpus, tokenizer):
    batch = next(Loader(open_mixture(corpus), tokenizer, 32, 4, seed=0))
    assert batch.input_ids.shape == (4, 32)
    q = tokenizer.encode("q")[0]
    for document in documents_in(batch, tokenizer):
        assert document[0] == q and document[-1] == tokenizer.eos_id
        assert len(document) == 3 + (1 + document[1] % 23)
    assert batch.cross_entropy_weight is not None
    learnt = batch.cross_entropy_weight > 0
    num_prompt_targets = sum(1 for _ in documents_in(batch, tokenizer))  # of "q i", only i is ever a target
    assert int(learnt.sum()) == int((batch.targets >= 0).sum()) - num_prompt_targets
    assert not (batch.targets[learnt] == q).any()


def test_an_epoch_gives_every_document_once_before_any_comes_again(corpus, tokenizer):
    loader = Loader(open_mixture(corpus), tokenizer, 32, 4, seed=0)
    seen = Counter()
    while sum(seen.values()) < 900:
        seen.update(document[1] for document in documents_in(next(loader), tokenizer))
    waiting = Counter(int(piece.document.token_ids[1]) for piece in loader._pool)
    total = seen + waiting
    assert len(total) == 300 and max(total.values()) - min(total.values()) <= 1


def test_epochs_and_seeds_differ_in_order(corpus, tokenizer):
    stream = open_mixture(corpus).sources[0].stream(tokenizer, 0, 0, 1)
    other = open_mixture(corpus).sources[0].stream(tokenizer, 1, 0, 1)
    orders = [[int(s.document(n).token_ids[1]) for n in numbers] for s, numbers in
              ((stream, range(300)), (stream, range(300, 600)), (other, range(300)))]  # fmt: skip
    assert all(sorted(order) == list(range(300)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_workers_share_an_epoch_without_overlap(corpus, tokenizer):
    streams = [open_mixture(corpus).sources[0].stream(tokenizer, 0, rank, 3) for rank in range(3)]
    seen = [int(stream.document(n).token_ids[1]) for stream in streams for n in range(100)]
    assert sorted(seen) == list(range(300))


def test_little_is_padding_and_nothing_waits_long(corpus, tokenizer):
    loader = Loader(open_mixture(corpus), tokenizer, 64, 4, seed=0)
    held = 0
    for batch in islice(loader, 100):
        held += int((batch.input_ids != tokenizer.pad_id).sum())
        assert loader._drawn[0] - min(piece.number for piece in loader._pool) < 60
    assert loader.padding_share == pytest.approx(1 - held / (100 * 4 * 64))
    assert loader.padding_share < 0.02


@pytest.mark.parametrize("stop", [0, 1, 7])
@pytest.mark.parametrize("row_length", [8, 32])  # 8: long documents are cut, and their parts wait
def test_a_restored_loader_goes_on_bit_for_bit(corpus, tokenizer, stop, row_length):
    mixture = open_mixture(corpus)
    first = Loader(mixture, tokenizer, row_length, 3, seed=5)
    list(islice(first, stop))
    state = json.loads(json.dumps(first.state()))
    second = Loader(mixture, tokenizer, row_length, 3, seed=5)
    second.restore(state)
    for one, other in islice(zip(first, second), 40):
        assert same(one, other)
    assert first.state() == second.state() and first.padding_share == second.padding_share


def test_a_state_stays_small(corpus, tokenizer):
    loader = Loader(open_mixture(corpus), tokenizer, 64, 16, seed=0)
    list(islice(loader, 50))
    assert len(json.dumps(loader.state())) < 1500


@pytest.mark.parametrize("change", [{"seed": 1}, {"rows": 2}, {"row_length": 16}, {"world_size": 2}])
def test_a_state_of_other_settings_is_refused(corpus, tokenizer, change):
    settings = {"row_length": 32, "rows": 4, "seed": 0}
    state = Loader(open_mixture(corpus), tokenizer, **settings).state()
    with pytest.raises(CheckpointError, match="saved place"):
        Loader(open_mixture(corpus), tokenizer, **settings | change).restore(state)
    with pytest.raises(CheckpointError, match="saved place"):
        Loader(open_mixture(corpus), tokenizer, **settings).restore({})


def test_a_changed_corpus_refuses_the_old_state(corpus, tokenizer):
    state = Loader(open_mixture(corpus), tokenizer, 32, 4, seed=0).state()
    corpus.write_text(corpus.read_text().replace("q 7 ", "q 8 "))
    with pytest.raises(CheckpointError):
        Loader(open_mixture(corpus), tokenizer, 32, 4, seed=0).restore(state)


def test_tokens_come_by_weight(corpus, tokenizer):
    other = corpus.with_name("other.txt")
    other.write_text("\n\n".join(" ".join(["999"] * 11) for _ in range(50)))
    specs = [SourceSpec(name=p.stem, path=str(p), weight=w) for p, w in ((corpus, 3), (other, 1))]
    loader = Loader(Mixture.open(specs, cache=corpus.parent / "cache"), tokenizer, 64, 4, seed=0)
    documents = [d for batch in islice(loader, 100) for d in documents_in(batch, tokenizer)]
    share = sum(len(d) for d in documents if d[0] == 999) / sum(map(len, documents))
    assert share == pytest.approx(0.25, abs=0.01)


def changing(corpus) -> Mixture:
    """Numbers over the whole run; 999 in its middle, at twice the weight."""
    other = corpus.with_name("other.txt")
    other.write_text("\n\n".join(" ".join(["999"] * 11) for _ in range(50)))
    whole = SourceSpec(name="numbers", path=str(corpus))
    middle = SourceSpec(name="other", path=str(other), weight=2, begin=0.25, end=0.75)
    return Mixture.open([whole, middle], cache=corpus.parent / "cache")


def test_a_source_is_read_in_its_part_of_the_run_and_by_its_weight_there(corpus, tokenizer):
    mixture, steps = changing(corpus), 200
    loader = Loader(mixture, tokenizer, 64, 4, seed=0, planned=steps * 4 * 64)
    share_at = []
    for _ in range(4):
        documents = [d for batch in islice(loader, steps // 4) for d in documents_in(batch, tokenizer)]
        share_at.append(sum(len(d) for d in documents if d[0] == 999) / sum(map(len, documents)))
    assert share_at == pytest.approx([0, 2 / 3, 2 / 3, 0], abs=0.06)  # padding reads on
    assert mixture.shares() == pytest.approx([2 / 3, 1 / 3])
    assert [source["read"] for source in mixture.card()["sources"]] == [[0, 1], [0.25, 0.75]]
    after = [d for batch in islice(loader, 20) for d in documents_in(batch, tokenizer)]
    assert not any(d[0] == 999 for d in after)  # beyond what was planned the last mixture stays


@pytest.mark.parametrize("stop", [3, 20, 33])
def test_a_changing_mixture_goes_on_bit_for_bit(corpus, tokenizer, stop):
    place = {"row_length": 32, "rows": 3, "seed": 5, "planned": 40 * 96}
    first, second = (Loader(changing(corpus), tokenizer, **place) for _ in range(2))
    list(islice(first, stop))
    second.restore(json.loads(json.dumps(first.state())))
    assert all(same(one, other) for one, other in islice(zip(first, second), 50))
    with pytest.raises(CheckpointError, match="saved place"):
        Loader(changing(corpus), tokenizer, **place | {"planned": 10_000}).restore(first.state())


def test_a_mixture_that_changes_needs_the_length_of_the_run_and_has_no_gap(corpus, tokenizer):
    with pytest.raises(ConfigError, match="changes over the run"):
        Loader(changing(corpus), tokenizer, 32, 4, seed=0)
    late = SourceSpec(name="late", path=str(corpus), begin=0.5)
    early = SourceSpec(name="early", path=str(corpus), end=0.4)
    for specs, where in (([late], "at 0 of the run"), ([early, late], "at 0.4 of the run")):
        with pytest.raises(ConfigError, match=where):
            Mixture.open(specs, cache=corpus.parent / "cache")


def test_held_out_problems_never_occur_and_are_counted(corpus, tokenizer):
    held_out = frozenset(problem_digest(f"Q  {i}") for i in range(100))
    mixture = open_mixture(corpus, held_out=held_out)
    loader = Loader(mixture, tokenizer, 64, 4, seed=0)
    seen = {document[1] for batch in islice(loader, 60) for document in documents_in(batch, tokenizer)}
    assert seen == set(range(100, 300))
    (card,) = mixture.card()["sources"]
    assert (card["documents"], card["excluded"]) == (200, 100)
    assert not any(text.startswith("q 5 ") for text in mixture.texts())


def test_a_corpus_of_held_out_problems_only_is_refused(corpus, tokenizer):
    held_out = frozenset(problem_digest(f"q {i}") for i in range(300))
    with pytest.raises(DataError, match="all 300 documents are held out"):
        Loader(open_mixture(corpus, held_out=held_out), tokenizer, 64, 4, seed=0)


def test_a_shard_is_made_once_and_made_anew_for_another_tokenizer(corpus, tokenizer):
    def cached():
        return sorted(path.parent.name for path in (corpus.parent / "cache").rglob(FACTS))

    shard = open_mixture(corpus).sources[0].encoded(tokenizer)
    made = cached()
    open_mixture(corpus).sources[0].encoded(tokenizer)
    assert cached() == made and len(made) == 1
    open_mixture(corpus).sources[0].encoded(Tokenizer.from_words(["q", *WORDS]))
    assert len(cached()) == 2
    assert shard.num_bytes[:3].tolist() == [len("0"), len("1 1"), len("2 2 2")]
    assert shard.num_tokens == sum(len(shard.document(i).token_ids) for i in range(300))


def test_a_damaged_shard_is_named(corpus, tokenizer):
    open_mixture(corpus).sources[0].encoded(tokenizer)
    (ids,) = (corpus.parent / "cache").rglob(IDS)
    ids.write_bytes(ids.read_bytes()[:-4])
    with pytest.raises(DataError, match="is damaged") as raised:
        open_mixture(corpus).sources[0].encoded(tokenizer)
    assert "delete" in str(raised.value)


def test_a_failed_shard_leaves_nothing_behind(corpus, tokenizer):
    with corpus.open("a") as file:
        file.write('\n{"prompt": "q", "completion": "unheard"}')
    with pytest.raises(DataError, match="'unheard'"):
        open_mixture(corpus).sources[0].encoded(tokenizer)
    assert not list((corpus.parent / "cache").iterdir())


def test_the_card_is_saved_beside_the_model(corpus, tmp_path):
    spec = SourceSpec(name="numbers", path=str(corpus), licence="CC0-1.0")
    Mixture.open([spec], cache=tmp_path).save(tmp_path)
    (source,) = json.loads((tmp_path / "mixture.json").read_text())["sources"]
    assert source["hash"].startswith("sha256:") and source["licence"] == "CC0-1.0"
    assert (source["name"], source["kind"], source["weight"]) == ("numbers", "jsonl", 1.0)


@pytest.mark.parametrize(
    ("specs", "message"),
    [([], "has no source"), ([{"name": "a", "path": "P"}, {"name": "a", "path": "P"}], "two sources are named 'a'")],
)
def test_a_mixture_without_sources_or_with_one_name_twice_is_refused(corpus, specs, message):
    with pytest.raises(ConfigError, match=message):
        Mixture.open([SourceSpec(**spec | {"path": str(corpus)}) for spec in specs])


@pytest.mark.parametrize(
    "arguments", [{"rows": 0}, {"row_length": 1}, {"rank": 1}, {"rank": -1, "world_size": 2}, {"seed": -1}]
)
def test_an_impossible_loader_is_refused(corpus, tokenizer, arguments):
    with pytest.raises(ConfigError, match="no valid loader"):
        Loader(open_mixture(corpus), tokenizer, **{"row_length": 8, "rows": 1, "seed": 0} | arguments)


class Program(Config):
    source: SourceSpec


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('{name = "a"}', "source 'a' has no path"),
        ('{name = "a", path = "x", parameters = {slips = 0.1}}', "is a file and takes no parameters"),
        ('{name = "a", kind = "countdown", path = "x"}', "procedural and takes no path"),
        ('{name = "a", path = "x", weight = 0}', "greater than 0"),
        ('{name = "a", path = "x", begin = 0.5, end = 0.5}', "begins at 0.5 and ends at 0.5"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(source, message):
    with pytest.raises(ConfigError, match=message):
        load(Program, None, [f"source={source}"])
