"""`agartha zero`: random weights -> pretraining -> pure reinforcement learning -> held-out problems -> a report.

Every worker goes through the same stages; the first one writes. What is finished is kept, so the same command goes on
after an interruption.
"""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from agartha.core.config import resolved
from agartha.core.errors import DataError
from agartha.core.files import write_json
from agartha.core.metrics import read_metrics
from agartha.data.traces import distinct, read_card, read_traces
from agartha.distill.collect import collect
from agartha.distill.config import DistillConfig
from agartha.distill.program import Pair
from agartha.distill.teachers import EngineTeacher
from agartha.engine.engine import Engine
from agartha.engine.load import Loaded, digest_of
from agartha.learn.learner import Learner
from agartha.learn.parallel import Parallel, launch
from agartha.learn.precision import compute_dtype
from agartha.ledger.machine import peak_memory_bytes
from agartha.ledger.record import Run, record
from agartha.model.decoder import Decoder
from agartha.model.hf_folder import load_model, save_model
from agartha.pretrain.program import build_decoder, open_data, open_loader
from agartha.pretrain.train import pretrain
from agartha.report.html import write_report
from agartha.rl import answers
from agartha.rl.program import reinforce
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.load import load_world
from agartha.zero.config import ZeroConfig
from agartha.zero.heldout import Examiner, Question
from agartha.zero.story import compose

MODELS = ("base", "model", "student", "control")


def run(config: ZeroConfig, folder: Path, command: Sequence[str]) -> dict[str, Any]:
    """Returns report.json's content."""
    load_world(config.rl.world)
    folder.mkdir(parents=True, exist_ok=True)
    return launch(_worker, config.workers, config, folder, list(command))


def _worker(parallel: Parallel, config: ZeroConfig, folder: Path, command: list[str]) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    if not parallel.is_first:
        Stages(parallel, config, folder, None).all()
        return {}
    with record(folder, "zero", command, config, budget=config.budget) as entry:
        write_json(folder / "config.json", resolved(config))
        stages = Stages(parallel, config, folder, entry)
        stages.all()
        entry.flush()
        facts = {"peak_memory_bytes": max(stages.peak, peak_memory_bytes()), "parameters": stages.parameters}
        facts |= {"limits": stages.limits}
        report = compose(
            config, stages.examiner.results, entry.entry.model_dump(mode="json"), stages.mixture.card(), facts
        )
        write_json(folder / "report.json", report)
        write_report(folder / "report.html", report, read_metrics(folder / "metrics.jsonl"))
    return report


class Stages:
    """One worker's walk through the run."""

    def __init__(self, parallel: Parallel, config: ZeroConfig, folder: Path, entry: Run | None):
        self.parallel, self.config, self.folder, self.entry = parallel, config, folder, entry
        self.pretrain_config, self.rl_config = config.stages()
        self.mixture, self.tokenizer = open_data(config.pretrain.data)
        self.examiner = Examiner(folder, parallel, load_world(config.rl.world), self.tokenizer, config.heldout)
        self.peak, self.parameters, self.limits = 0, dict[str, int](), list[str]()

    def all(self) -> None:
        decoder = self.pretrained()
        self.examine_base(decoder)
        started = time.monotonic()
        decoder = self.reinforced(decoder)
        minutes = (time.monotonic() - started) / 60
        self.examine(decoder, "zero")
        self.parameters = {"zero": decoder.config.num_parameters()}
        if (lesson := self.config.lesson()) is not None:
            self.examine_student(lesson, decoder)
        if self.config.controls.more_pretraining:
            self._ask(self.pretrained_longer(minutes), Question("more pretraining"))
        everyone = self.parallel.all_gather_object(peak_memory_bytes())
        self.peak = sum(everyone)

    def pretrained(self) -> Decoder:
        base = self.folder / "base"
        if (base / "config.json").exists():
            return self._loaded(base)
        decoder = build_decoder(self.pretrain_config, self.tokenizer)
        learner = Learner(decoder, self.pretrain_config.learner, self.parallel)
        loader = open_loader(self.pretrain_config, self.mixture, self.tokenizer, self.parallel)
        pretrain(self.pretrain_config, learner, loader, self.folder, self.entry)
        self._save(base, decoder, {"mixture.json": self.mixture.card()})
        return decoder

    def reinforced(self, decoder: Decoder) -> Decoder:
        final = self.folder / "model"
        if (final / "config.json").exists():
            return self._loaded(final)
        learner = reinforce(self.parallel, self.rl_config, decoder, self.tokenizer, self.folder, self.entry)
        cards = {"mixture.json": self.mixture.card(), "world.json": load_world(self.rl_config.world).spec()}
        self._save(final, learner.decoder, cards)
        return learner.decoder

    def taught(self, config: DistillConfig, teacher: Decoder) -> Decoder:
        """The student: new weights of a smaller shape, which learn from the verified answers of the model that was made, and
        from those that it was paid for while it was made."""
        final = self.folder / "student"
        if (final / "config.json").exists():
            return self._loaded(final)
        kept, files = self.folder / answers.FILE, list[Path]()
        if self.rl_config.keep_answers_from is not None and kept.exists():  # it may have been paid for nothing
            files.append(kept)
        if (asked := config.collect) is not None:
            source = EngineTeacher.of(teacher, self.tokenizer, asked, str(self.folder / "model"))
            files.append(collect(asked, self.folder / "traces", self.entry, teacher=source, parallel=self.parallel))
        traces = distinct(trace for path in files for trace in read_traces(path))
        torch.manual_seed(config.seed)
        shape = config.model.fitted(self.tokenizer.vocab_size, self.tokenizer.eos_id, self.tokenizer.pad_id)
        student = self._plain(Decoder(shape))
        pair = Pair(student, self._plain(teacher), traces, [], {path.stem: read_card(path) for path in files})
        pair.teach(self.parallel, config, self.folder, self.entry)
        self._save(final, student.decoder, {"traces.json": pair.card or {}})
        return student.decoder

    def examine_student(self, config: DistillConfig, teacher: Decoder) -> None:
        """A model that answers nothing right has nothing to teach; the report then says so."""
        try:
            student = self.taught(config, teacher)
        except DataError as error:
            self.limits = [f"There is no student: {error.message}"]
            return
        self.examine(student, "student")
        self.parameters["student"] = student.config.num_parameters()

    def _plain(self, decoder: Decoder) -> Loaded:
        return Loaded(decoder, self.tokenizer, None, (self.tokenizer.eos_id,), "", "")

    def pretrained_longer(self, minutes: float) -> Decoder:
        """The control: the base model, pretrained for as many more minutes as reinforcement learning took."""
        control = self.folder / "control"
        if (control / "config.json").exists():
            return self._loaded(control)
        spent = [line for line in read_metrics(self.folder / "metrics.jsonl") if line.get("stage") == "pretrain"]
        rate = sorted(line["tokens_per_second"] for line in spent)[len(spent) // 2]
        recorded = self._stage_seconds("rl") or minutes * 60
        tokens = int(max(self.parallel.all_gather_object(recorded)) * rate)
        config = self.pretrain_config.model_copy(update={"tokens": tokens})
        decoder = self._loaded(self.folder / "base")
        learner = Learner(decoder, config.learner, self.parallel)
        loader = open_loader(config, self.mixture, self.tokenizer, self.parallel, seed=1_000_000)
        pretrain(config, learner, loader, self.folder, self.entry, stage="more pretraining")
        self._save(control, decoder, {"mixture.json": self.mixture.card()})
        return decoder

    def examine_base(self, decoder: Decoder) -> None:
        controls = self.config.controls
        self.examine(decoder, "base")
        self._ask(decoder, Question("sharper temperature", temperature=controls.sharper_temperature))
        if controls.forced_start:
            self._ask(decoder, Question("forced start", forced=controls.forced_start))

    def examine(self, decoder: Decoder, name: str) -> None:
        self._ask(decoder, Question(name), Question(f"{name} greedy", temperature=0.0))

    def _ask(self, decoder: Decoder, *questions: Question) -> None:
        if all(self.examiner.has(question) for question in questions):
            return
        with self._stage("evaluation"):
            decoder.compute_dtype = compute_dtype(self.rl_config.learner.precision, self.parallel.device)
            engine = Engine(decoder.eval(), 256, self.config.heldout.max_tokens + 32)
            for question in questions:
                self.examiner.ask(engine, question)

    def _stage(self, name: str):
        return self.entry.stage(name) if self.entry else nullcontext()

    def _stage_seconds(self, name: str) -> float:
        return sum(stage.seconds for stage in self.entry.entry.stages if stage.name == name) if self.entry else 0.0

    def _loaded(self, folder: Path) -> Decoder:
        """Computing as the learner left it in an unbroken run."""
        decoder, device = load_model(folder).to(self.parallel.device), self.parallel.device
        decoder.compute_dtype = compute_dtype(self.rl_config.learner.precision, device)
        return decoder

    def _save(self, folder: Path, decoder: Decoder, cards: dict[str, Any]) -> None:
        if self.parallel.is_first and self.entry:
            save_model(folder, decoder, self.tokenizer, cards | {"lineage.json": self.entry.entry.lineage()})
            there = [self.folder / name for name in MODELS if (self.folder / name / "config.json").exists()]
            self.entry.entry.made = [digest_of(place) for place in there]
        self.parallel.barrier()


def read_report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


__all__ = ["Tokenizer", "read_report", "run"]
