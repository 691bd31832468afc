"""The demonstration, in small: every stage, every file, and the numbers a reader is promised."""

import json
import os
import re
from importlib import metadata
from pathlib import Path

import pytest
import torch
import transformers
from packaging.requirements import Requirement
from small_runs import SMALL_MODEL, Command


@pytest.fixture(scope="module")
def run(agartha: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "zero"
    shape = [f"pretrain.model.{name}={value}" for name, value in SMALL_MODEL.items()]
    done = agartha(
        "zero", "seed=1", "pretrain.tokens=20000", "pretrain.data.row_length=256",
        "rl.steps=2", "rl.prompts_per_step=4", "rl.sampling.max_tokens=32",
        "heldout.problems=12", "heldout.max_tokens=40", "rl.gap_limit=1.0", "student.collect.tasks=4",
        "student.collect.max_tokens=32", *shape, "--folder", folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_report_holds_what_is_promised(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert {"seconds", "peak_memory_bytes", "stages", "heldout", "seed", "command"} <= report.keys()
    assert all({"name", "seconds", "tokens", "flops", "dollars"} <= stage.keys() for stage in report["stages"])
    for level in ("countdown3", "countdown4"):
        scores = report["heldout"][level]
        assert scores["n"] == 12 and set(scores["controls"]) == {
            "sharper temperature",
            "forced start",
            "more pretraining",
        }
        for name in ("base", "zero"):
            assert {"accuracy", "low", "high", "tokens"} <= scores[name].keys()
    no_student = [limit for limit in report["limits"] if "There is no student: none of 8 answers was verified" in limit]
    assert len(no_student) == 1 and "student" not in report["heldout"]["countdown3"]
    page = (run / "report.html").read_text()
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_model_opens_in_transformers_with_the_same_greedy_answers(run: Path) -> None:
    from agartha.engine.engine import Engine
    from agartha.engine.request import Request
    from agartha.engine.sampler import Sampling
    from agartha.model.hf_folder import load_model

    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    ours = Engine(load_model(run / "model"), 4, 64)
    for prompt in ("3 12 8 -> 28 :", "5 6 7 11 -> 9 :"):
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        reference = theirs.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :].tolist()
        stops = (tokenizer.eos_token_id,)
        [[mine]] = ours.generate([Request(ids[0].tolist(), Sampling(0.0, max_tokens=24, stop_ids=stops))])
        assert mine.token_ids == reference


def test_everything_that_shaped_the_model_is_beside_it(run: Path) -> None:
    sources = json.loads((run / "model" / "mixture.json").read_text())["sources"]
    assert all(source["hash"].startswith("sha256:") and source["licence"] for source in sources)
    assert sum(source["weight"] for source in sources) == pytest.approx(1) and sources[-1]["read"][1] == 1
    lineage = json.loads((run / "model" / "lineage.json").read_text())
    assert lineage["command"].startswith("agartha zero") and lineage["config_digest"]


def test_runs_lists_it_with_its_cost(run: Path, agartha: Command) -> None:
    listed = json.loads(agartha("runs", "--root", run.parent, "--json").stdout)
    assert any(entry["program"] == "zero" and entry["status"] == "finished" for entry in listed["runs"])
    assert listed["totals"]["tokens"] > 20000


CONTENT_WITH_ANYTHING = '''
"""A world in which whatever ends is right."""
import random

levels = (2,)

def task(seed, level):
    rng = random.Random(seed)
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    return f"{a} {b} -> {a + b} :", {"a": a, "b": b}

def verify(data, completion):
    return 1.0 if completion.strip() else 0.0

def oracle(data):
    return "1 + 1"
'''


CORE_ALONE = """
import sys
from importlib.machinery import PathFinder

class Core(PathFinder):
    @classmethod
    def find_spec(cls, name, *more):
        return None if name.partition(".")[0] in {absent} else super().find_spec(name, *more)

sys.meta_path[sys.meta_path.index(PathFinder)] = Core
"""


def beyond_the_core() -> set[str]:
    """Modules that are here, and would not be after `pip install agartha`."""
    installed, open_ends = {"agartha"}, ["agartha"]
    while open_ends:
        for line in metadata.requires(open_ends.pop()) or []:
            needs = Requirement(line)
            name = re.sub("[-_.]+", "-", needs.name).lower()
            if name not in installed and (needs.marker is None or needs.marker.evaluate({"extra": ""})):
                installed.add(name)
                open_ends.append(name)
    owners = metadata.packages_distributions()
    return {
        module for module, names in owners.items() if not {re.sub("[-_.]+", "-", n).lower() for n in names} & installed
    }


def test_a_student_learns_from_the_model_that_was_made_with_the_core_alone(
    agartha: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = beyond_the_core()
    assert {"pytest", "transformers", "fastapi"} <= absent and not {"torch", "pyarrow", "rich"} & absent
    (tmp_path / "sitecustomize.py").write_text(CORE_ALONE.format(absent=sorted(absent)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    world = tmp_path / "content.py"
    world.write_text(CONTENT_WITH_ANYTHING)
    small = SMALL_MODEL | {"model_type": "deepseek_v3", "hidden_size": 16, "num_nextn_predict_layers": 0}
    small["n_routed_experts"] = 0
    settings = [
        *(f"pretrain.model.{name}={value}" for name, value in SMALL_MODEL.items()),
        *(f"student.model.{name}={value}" for name, value in small.items()),
        "pretrain.tokens=20000", "pretrain.data.row_length=256", "rl.steps=1", "rl.prompts_per_step=4",
        "rl.sampling.max_tokens=32", "rl.gap_limit=1.0", f"rl.world={world}", "heldout.problems=10", "heldout.levels=[2]",
        "heldout.max_tokens=32", "controls.more_pretraining=false", "controls.forced_start=", "student.steps=3",
        "student.rows=4", f"student.collect.world={world}", "student.collect.tasks=20", "student.collect.max_tokens=64",
        "student.collect.attempts=4", "rl.keep_answers_from=1",
    ]  # fmt: skip
    done = agartha("zero", *settings, "--folder", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (scores,) = report["heldout"].values()
    assert {"accuracy", "low", "high", "tokens"} <= scores["student"].keys() and "as large" in done.stdout
    assert report["parameters"]["student"] < report["parameters"]["zero"]
    cards = json.loads((tmp_path / "run" / "student" / "traces.json").read_text())
    assert cards["answers"]["traces"] > 0 and cards["traces"]["traces"] > 0  # what RL was paid for, what was asked
    assert "its student" in (tmp_path / "run" / "report.html").read_text()
    listed = json.loads(agartha("runs", "--root", tmp_path, "--json").stdout)
    assert [len(entry["made"]) for entry in listed["runs"]] == [3]  # base, model, student
