"""Students learn: by every method, across shapes, as a program that can be killed and is hard to fool."""

import os
import signal
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from lessons import DENSE, SPARSE, TOKENIZER, furnish, settings, teacher, trace
from models import random_decoder
from safetensors.torch import load_file

from agartha.core.errors import AgarthaError, CheckpointError, ConfigError, DataError
from agartha.core.files import read_json
from agartha.core.metrics import read_metrics
from agartha.data.traces import read_traces
from agartha.distill.config import DistillConfig
from agartha.distill.divergence import Divergence
from agartha.distill.material import Lesson, Material, Rows, lessons_of, tasks_of
from agartha.distill.program import run
from agartha.distill.train import distil, limits
from agartha.engine.engine import Engine
from agartha.engine.load import load
from agartha.engine.request import Request
from agartha.engine.sampler import Sampling
from agartha.learn.parallel import Parallel
from agartha.ledger.runs import read_record
from agartha.model.config import ModelConfig
from agartha.model.decoder import Decoder
from agartha.model.hf_folder import save_model
from agartha.text.prompt_format import PromptFormat
from agartha.text.tokenizer import Tokenizer

PROMPTS = PromptFormat.plain(TOKENIZER)
TRACES = [trace(i) for i in range(30)]
TIMES = ("seconds_per_step", "tokens_per_second", "dollars")
SMALL = [
    *(f"model.{name}={value}" for name, value in DENSE.items() if name != "vocab_size"), "model.num_hidden_layers=1",
    "model.hidden_size=32",
]  # fmt: skip
METHODS = {
    "traces": ["method=traces"],
    "logits": ["method=logits", "cross_entropy=0.1", "divergence.kind=jensen_shannon", "divergence.top_k=8"],
    "gkd": ["method=on_policy", "on_policy.share=0.6", "divergence.kind=reverse_kl"],
    "reverse_kl": ["method=on_policy", "on_policy.signal=reverse_kl"],
}


def material(config: DistillConfig, student: ModelConfig, judge: Decoder | None) -> Material:
    longest, longest_prompt = limits(config, student, judge.config if judge else None)
    lessons, _ = lessons_of(TRACES, PROMPTS, longest)
    tasks, _ = tasks_of([trace.task for trace in TRACES], PROMPTS, longest_prompt)
    return Material(PROMPTS, lessons, tasks, judge)


def says(decoder: Decoder) -> list[str]:
    """What a model answers to every task, taking the likeliest word."""
    how = Sampling(0.0, max_tokens=6, stop_ids=(TOKENIZER.eos_id,))
    requests = [Request(TOKENIZER.encode(trace.task.prompt), how) for trace in TRACES]
    return [PROMPTS.decode(c.token_ids) for (c,) in Engine(decoder.eval(), 32, 16).generate(requests)]


def apart(student: Decoder, judge: Decoder, lessons: list[Lesson]) -> float:
    """Mean KL(teacher || student) over the replies, in nats."""
    rows = Rows(lessons, ["divergence_weight"], 32, 0, 0)
    batch = rows.batch(range(rows.per_epoch))
    places = (batch.input_ids, batch.positions, batch.document_start)
    with torch.no_grad():
        logits = [decoder.eval().logits(decoder(*places)).flatten(0, 1)[batch.learnt()] for decoder in (student, judge)]
        return Divergence(vocab_size=TOKENIZER.vocab_size)(*logits).mean().item()


@pytest.mark.parametrize("shape", [DENSE, SPARSE], ids=["dense", "experts"])
def test_a_student_learns_to_say_what_the_traces_say(tmp_path: Path, shape: dict) -> None:
    config, student = settings("steps=50"), random_decoder(shape)
    distil(Parallel(), config, student, material(config, student.config, None), tmp_path, None)
    right = [said == trace.completion for said, trace in zip(says(student), TRACES)]
    assert sum(right) >= 29, says(student)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("pair", [(SPARSE, DENSE), (DENSE, SPARSE)], ids=["experts to dense", "dense to experts"])
def test_logits_draw_a_student_of_another_shape_to_its_teacher(tmp_path: Path, pair: tuple, kind: str) -> None:
    judge, student = teacher(pair[0]), random_decoder(pair[1] | {"hidden_size": 32})
    config = settings("method=logits", f"divergence.kind={kind}", "steps=50")
    given = material(config, student.config, judge)
    before, weights = apart(student, judge, list(given.lessons)), judge.norm.weight.clone()
    distil(Parallel(), config, student, given, tmp_path, None)
    assert apart(student, judge, list(given.lessons)) < before / 5
    assert (judge.norm.weight == weights).all() and not any(p.requires_grad for p in judge.parameters())


@pytest.mark.parametrize(
    "words", [["divergence.kind=reverse_kl"], ["on_policy.signal=reverse_kl"]], ids=["gkd", "advantage"]
)
def test_on_its_own_answers_a_student_comes_nearer_to_its_teacher(tmp_path: Path, words: list[str]) -> None:
    judge, student = teacher(SPARSE), random_decoder(DENSE)
    config = settings("method=on_policy", "steps=40", "on_policy.samples=8", *words)
    given = material(config, student.config, judge)
    distil(Parallel(), config, student, given, tmp_path, None)
    stranger = random_decoder(DENSE)
    assert apart(student, judge, drawn(student, given)) < 0.5 * apart(stranger, judge, drawn(stranger, given))


def drawn(decoder: Decoder, given: Material) -> list[Lesson]:
    """What it answers by chance, as far as it is words."""
    requests = [Request(task.prompt_ids, Sampling(1.0, max_tokens=6, seed=5), 4) for task in given.tasks]
    groups = Engine(decoder.eval(), 64, 16).generate(requests)
    found = [
        (task, takewhile(TOKENIZER.vocab_size.__gt__, c.token_ids)) for task, g in zip(given.tasks, groups) for c in g
    ]
    return [Lesson(task.prompt_ids, list(words)) for task, words in found]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return furnish(tmp_path_factory.mktemp("teacher"))


def numbers_of(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_bit_for_bit(furnished: list[str], tmp_path: Path, method: str) -> None:
    words, cut, whole = [*furnished, *SMALL, *METHODS[method], "steps=40"], tmp_path / "cut", tmp_path / "whole"
    script = [sys.executable, str(Path(__file__).with_name("lessons.py")), str(cut), *words]
    path = [str(Path(__file__).parents[1] / "model"), *sys.path]
    process = subprocess.Popen(script, env=os.environ | {"PYTHONPATH": ":".join(path)}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (cut / "states" / "distill" / "step_000004").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 4 <= len(numbers_of(cut)) < 40 and not (cut / "model").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the killed one had
    try:
        run(settings(*words), cut, ["test"])
        run(settings(*words), whole, ["test"])
    finally:
        torch.set_num_threads(threads)
    assert numbers_of(cut) == numbers_of(whole) and len(numbers_of(cut)) == 40
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (cut, whole))
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_program_leaves_a_model_that_opens_its_lineage_and_its_cost(furnished: list[str], tmp_path: Path) -> None:
    made = run(settings(*furnished, *SMALL, "epochs=3", "rows=5"), tmp_path, ["agartha", "distill"])
    loaded, record = load(made["model"]), read_record(tmp_path)
    assert made["lessons"] == 30 and made["left_out"] == 0 and made["tokens"] == 3 * 30 * 5
    assert loaded.decoder.config.num_hidden_layers == 1 and loaded.tokenizer.vocab_size == TOKENIZER.vocab_size
    assert record.status == "finished" and len(record.parents) == 2 and record.stages[0].name == "distill"
    assert read_json(tmp_path / "model" / "traces.json")["traces"] == 30
    assert read_json(tmp_path / "model" / "lineage.json")["parents"] == record.parents
    assert run(settings(*furnished, *SMALL, "epochs=3", "rows=5"), tmp_path, ["again"])["tokens"] == made["tokens"]


def test_program_collects_what_it_learns_from(tmp_path: Path) -> None:
    """The teacher learns from traces, answers the tasks of a world, and its student says the same."""
    words = furnish(tmp_path, DENSE)
    run(settings(*words, f"student={tmp_path / 'teacher'}", "steps=60"), tmp_path / "first", ["test"])
    world = tmp_path / "say.py"
    world.write_text(
        "def task(seed, level):\n    return f'say w{seed % 40}', {'n': seed % 40}\n\n"
        "def verify(data, completion):\n    return float(completion == f'w{data[\"n\"]} yes')\n"
    )
    asked = [f"collect.world={world}", "collect.tasks=25", "collect.attempts=2", "collect.max_tokens=6"]
    model = f"teacher={tmp_path / 'first' / 'model'}"
    made = run(settings(model, *asked, *SMALL, "steps=60"), tmp_path / "second", ["test"])
    traces = read_traces(tmp_path / "second" / "traces" / "traces.parquet")
    assert made["lessons"] == len(traces) > 15
    decoder, known = load(made["model"]).decoder, {trace.task.prompt for trace in traces}
    right = [said == trace.completion for said, trace in zip(says(decoder), TRACES) if trace.task.prompt in known]
    assert sum(right) > 0.9 * len(right)
    assert {stage.name for stage in read_record(tmp_path / "second").stages} == {"traces", "distill"}


def test_an_adapter_learns_beside_a_frozen_student(furnished: list[str], tmp_path: Path) -> None:
    save_model(tmp_path / "student", random_decoder(DENSE), TOKENIZER)
    words = [*furnished, f"student={tmp_path / 'student'}", "lora.rank=8", "lora.merge=true", "steps=60"]
    made = run(settings(*words), tmp_path / "run", ["test"])
    assert (Path(made["adapter"]) / "adapter_config.json").exists()
    lines = numbers_of(tmp_path / "run")
    assert lines[-1]["cross_entropy"] < lines[0]["cross_entropy"] / 4
    merged, base = load(made["model"]).decoder, load(tmp_path / "student").decoder
    assert (merged.embed_tokens.weight == base.embed_tokens.weight).all()
    assert sum(said == trace.completion for said, trace in zip(says(merged), TRACES)) > 20


def test_what_cannot_be_is_refused_before_anything_is_made(furnished: list[str], tmp_path: Path) -> None:
    def refused(kind: type[AgarthaError], match: str, *words: str) -> None:
        with pytest.raises(kind, match=match):
            run(settings(*words), tmp_path / "run", ["test"])
        assert not (tmp_path / "run" / "states").exists()

    name, traces = furnished
    refused(ConfigError, "method=logits needs a teacher", traces, "method=logits")
    refused(ConfigError, "no traces are named", name)
    refused(ConfigError, "needs a tokenizer", traces)
    refused(ConfigError, "adapter needs a student", name, traces, "lora.rank=2")
    refused(DataError, "no readable parquet", name, f"traces={damaged(traces, tmp_path)}")
    refused(
        DataError, "no trace to learn from.*too long", name, traces, "row_length=8", "model.max_position_embeddings=4"
    )
    foreign = tmp_path / "foreign"
    words = Tokenizer.from_words([f"v{i}" for i in range(42)])
    save_model(foreign, random_decoder(DENSE), words)
    for method in ("logits", "on_policy"):
        refused(
            ConfigError, "id 0 is 'say' to the teacher and 'v0'", *furnished, f"student={foreign}", f"method={method}"
        )


def damaged(traces: str, folder: Path) -> Path:
    content = bytearray(Path(traces.removeprefix("traces=")).read_bytes())
    path = folder / "damaged.parquet"
    path.write_bytes(content[: len(content) // 2])
    return path


def test_a_state_of_another_run_is_not_taken_up(furnished: list[str], tmp_path: Path) -> None:
    run(settings(*furnished, *SMALL, "steps=2"), tmp_path, ["test"])
    name = furnish(tmp_path / "other")[0]
    with pytest.raises(CheckpointError, match="another teacher, student or set of traces"):
        run(settings(name, furnished[1], *SMALL, "steps=4", "method=logits"), tmp_path, ["test"])


@pytest.mark.parametrize(
    "words, match",
    [
        (["traces=a.parquet", "collect.world=countdown"], "name one"),
        (["weights=bfloat16"], "too coarse"),
        (["on_policy.share=0.5", "on_policy.signal=reverse_kl"], "needs the signal divergence"),
        (["workers=3"], "rows=4 cannot be shared"),
        (["divergence.beta=1.0"], "divergence.beta"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(words: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        settings(*words)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["logits", "reverse_kl"])
def test_two_workers_learn_what_one_does(furnished: list[str], tmp_path: Path, method: str) -> None:
    words, found = [*furnished, *SMALL, *METHODS[method], "steps=6"], []
    for workers in (1, 2):
        run(settings(*words, f"workers={workers}"), tmp_path / str(workers), ["test"])
        found.append([line["loss"] for line in numbers_of(tmp_path / str(workers))])
    assert found[0] == pytest.approx(found[1], rel=1e-3)
