"""The program `distill`: traces are read or collected, both models opened, and the student is saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agartha.core.config import resolved
from agartha.core.errors import ConfigError, DataError
from agartha.core.files import write_json
from agartha.core.hashing import digest
from agartha.data.traces import Trace, read_card, read_traces
from agartha.distill.collect import collect
from agartha.distill.config import DistillConfig, TracesConfig
from agartha.distill.material import Material, check_same_vocabulary, lessons_of, tasks_of
from agartha.distill.share import draw_tasks
from agartha.distill.teachers import describe_teacher
from agartha.distill.train import distil, limits
from agartha.engine.export import save_trained
from agartha.engine.load import Loaded, digest_of, found_at, fresh, load
from agartha.learn.parallel import Parallel, launch
from agartha.ledger.record import Run, record
from agartha.model.open import open_source
from agartha.text.prompt_format import prompt_format
from agartha.worlds.checks import preflight
from agartha.worlds.load import load_world
from agartha.worlds.types import Task


def run(config: DistillConfig, folder: Path, command: Sequence[str]) -> dict[str, Any]:
    """Returns what was made: the model or adapter folder, lessons and those left out, tokens, seconds, dollars."""
    _check(config)  # what is missing or damaged, and a broken world, are said before workers start
    folder.mkdir(parents=True, exist_ok=True)
    return launch(_worker, config.workers, config, folder, list(command))


def _check(config: DistillConfig) -> None:
    """Raises: ConfigError, CheckpointError, DataError or WorldError for what the settings name and is not there."""
    if config.method != "traces" and not config.teacher:
        raise ConfigError(
            f"method={config.method} needs a teacher.", hint="teacher=FOLDER, FILE.gguf or hf:OWNER/NAME."
        )
    if not config.traces and config.collect is None:
        raise ConfigError(
            "no traces are named.", hint="traces=FILE.parquet, or collect.world=... to collect them first."
        )
    if config.lora is not None and not config.student:
        raise ConfigError(
            "an adapter needs a student that was trained before.", hint="student=FOLDER, or leave lora out."
        )
    for name in filter(None, (config.teacher, config.student or _text_source(config))):
        open_source(found_at(name))
    if config.traces:
        read_traces(Path(config.traces))
        return
    asked = _asked(config)
    preflight(load_world(asked.world))
    if config.method != "on_policy" or config.on_policy.share < 1:
        describe_teacher(asked)


def _worker(parallel: Parallel, config: DistillConfig, folder: Path, command: list[str]) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    if not parallel.is_first:
        Pair.open(parallel, config, folder, None).teach(parallel, config, folder, None)
        return {}
    with record(folder, "distill", command, config, parents=_parents(config), budget=config.budget) as entry:
        write_json(folder / "config.json", resolved(config))
        pair = Pair.open(parallel, config, folder, entry)
        counts = pair.teach(parallel, config, folder, entry)
        made = pair.save(config, folder, entry)
        entry.entry.made = [digest_of(Path(made[name])) for name in ("model", "adapter") if name in made]
    totals = entry.entry.totals
    return counts | made | {"tokens": totals.tokens, "seconds": totals.seconds, "dollars": totals.dollars}


@dataclass(frozen=True, slots=True)
class Pair:
    """Student and teacher, opened, and what is between them."""

    student: Loaded
    teacher: Loaded | None
    traces: list[Trace]
    tasks: list[Task]
    card: dict[str, Any] | None

    @staticmethod
    def open(parallel: Parallel, config: DistillConfig, folder: Path, entry: Run | None) -> "Pair":
        traces, tasks, card = _traces(parallel, config, folder, entry)
        torch.manual_seed(config.seed)  # whatever collecting drew
        student = load(config.student, config.weights) if config.student else fresh(_text_source(config), config.model)
        teacher = None
        if config.method != "traces":
            teacher = load(config.teacher, config.teacher_weights)
            check_same_vocabulary(teacher.tokenizer, student.tokenizer)
        return Pair(student, teacher, traces, tasks, card)

    def teach(self, parallel: Parallel, config: DistillConfig, folder: Path, entry: Run | None) -> dict[str, int]:
        """Trains the student in place; returns how many lessons there were, and how many traces could not be one."""
        counts: dict[str, int] = {}
        student, teacher = self.student, self.teacher
        prompts = prompt_format(student.tokenizer, student.template, student.eos_ids, config.chat, config.system)
        longest, longest_prompt = limits(config, student.decoder.config, teacher.decoder.config if teacher else None)
        lessons, tasks = [], []
        if config.method != "on_policy" or config.on_policy.share < 1:
            lessons, left_out = lessons_of(self.traces, prompts, longest)
            counts.update({"lessons": len(lessons), "left_out": sum(left_out.values())})
        if config.method == "on_policy":
            tasks, left_out = tasks_of(self.tasks, prompts, longest_prompt)
            counts.update({"tasks": len(tasks), "tasks_left_out": sum(left_out.values())})
        told = [[lesson.prompt_ids, lesson.reply_ids] for lesson in (*lessons, *tasks)]
        origin = digest([student.digest, teacher.digest if teacher else "", told])
        material = Material(prompts, lessons, tasks, teacher.decoder if teacher else None, origin)
        distil(parallel, config, student.decoder, material, folder, entry)
        return counts

    def save(self, config: DistillConfig, folder: Path, entry: Run) -> dict[str, str]:
        """See `save_trained`."""
        cards = {"lineage.json": entry.entry.lineage()} | ({"traces.json": self.card} if self.card else {})
        return save_trained(folder, self.student, config.student or _text_source(config), config.lora, cards)


def _traces(
    parallel: Parallel, config: DistillConfig, folder: Path, entry: Run | None
) -> tuple[list[Trace], list[Task], dict[str, Any] | None]:
    """Traces, their tasks, and their card; on policy alone nobody is asked."""
    if config.collect is not None and config.method == "on_policy" and config.on_policy.share == 1:
        return [], draw_tasks(config.collect, load_world(config.collect.world), frozenset()), None
    path = Path(config.traces)
    if config.collect is not None:
        path = collect(_asked(config), folder / "traces", entry, parallel=parallel)
    traces = read_traces(path)
    return traces, [trace.task for trace in traces], _card(path)


def _asked(config: DistillConfig) -> TracesConfig:
    """What is to be collected, from the run's own teacher unless another one is named."""
    assert config.collect is not None
    if config.collect.teacher or config.collect.endpoint is not None:
        return config.collect
    return config.collect.model_copy(update={"teacher": config.teacher})


def _card(path: Path) -> dict[str, Any] | None:
    try:
        return read_card(path)
    except DataError:
        return None  # of someone else's making


def _text_source(config: DistillConfig) -> str:
    """Whose tokenizer and template a new student takes. Raises: ConfigError if there is nobody."""
    found = config.tokenizer or config.teacher or (config.collect.teacher if config.collect else "")
    if not found:
        raise ConfigError("a new student needs a tokenizer.", hint="tokenizer=FOLDER, or name a teacher with weights.")
    return found


def _parents(config: DistillConfig) -> list[str]:
    """Digests of the models and the traces that the student descends from."""
    models = [digest_of(found_at(name)) for name in (config.teacher, config.student) if name]
    return models + ([digest(Path(config.traces))] if config.traces else [])
