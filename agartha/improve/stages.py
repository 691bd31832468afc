"""The stages that make a round's models. Each leaves a folder that is complete or not there; what is there is not made again.

Every worker calls them, the first one writes. A stage depends on its inputs and its seed alone.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agartha.core.errors import DataError
from agartha.core.files import canonical_json, file_atomic, folder_atomic, read_json, write_json
from agartha.core.hashing import digest
from agartha.data.traces import Trace, read_traces, select, write_traces
from agartha.distill.config import DistillConfig
from agartha.distill.material import Material, lessons_of, tasks_of
from agartha.distill.train import distil, limits
from agartha.engine.engine import Engine
from agartha.engine.export import Companions
from agartha.engine.load import Loaded, fresh, load
from agartha.improve.config import ImproveConfig
from agartha.improve.exam import Speaker, Work, paid, second_opinion
from agartha.improve.plan import Plan, seed_of
from agartha.improve.practice import Practice
from agartha.improve.proposing import Proposed, propose
from agartha.improve.rule import band
from agartha.learn.parallel import Parallel
from agartha.learn.precision import compute_dtype
from agartha.ledger.record import Run
from agartha.model.hf_folder import save_model
from agartha.model.lora import merge_lora
from agartha.rl.config import RLConfig
from agartha.rl.program import prompts_of, reinforce_loaded
from agartha.text.prompt_format import prompt_format
from agartha.worlds.types import Task
from agartha.worlds.world import World

TASKS, CARD, TRACES = "tasks.jsonl", "card.json", "traces.parquet"


@dataclass(frozen=True, slots=True)
class Stages:
    """What the stages of one round share. run: the first worker's record of the round. check: raises once the budget is spent."""

    parallel: Parallel
    config: ImproveConfig
    plan: Plan
    place: Path
    run: Run | None
    check: Callable[[], None]

    def rl_config(self, parent: Path | str) -> RLConfig:
        """The recipe's, with this round's seed, rates and curriculum."""
        config, plan = self.config, self.plan
        low, high = band(config, plan)
        curriculum = config.rl.curriculum.model_copy(update={"low": low, "high": high})
        rates = {n: v * plan.rate for n, v in config.rl.learner.optimizer if n.endswith("_learning_rate")}
        optimizer = config.rl.learner.optimizer.model_copy(update=rates)
        learner = config.rl.learner.model_copy(update={"optimizer": optimizer})
        seeds = {"seed": seed_of(plan.seed, "rl"), "workers": config.workers}
        named = {"model": str(parent), "world": config.world}
        return config.rl.model_copy(update={"curriculum": curriculum, "learner": learner} | seeds | named)

    def open(self, model: Path | str) -> Loaded:
        """Raises: as `load`."""
        return placed(load(model, self.config.rl.weights), self.config, self.parallel)

    def speaker(self, loaded: Loaded, world: World) -> Speaker:
        """The model, ready to answer as it does in practice."""
        return speaker_of(self.parallel, self.config, loaded, world)

    def proposed(self, parent: Path | str, world: World, known: set[str], held_out: frozenset[str]) -> Proposed:
        """The parent writes tasks and learns which are worth it. Without a share of them in the mix nobody is asked."""
        if not self.plan.mix or not self.config.proposer.openings:
            return Proposed(str(parent))
        folder = self.place / "propose"
        if not (folder / CARD).exists():
            self.check()
            torch.manual_seed(seed_of(self.plan.seed, "propose"))
            loaded = self.open(parent)
            with self._stage("propose") as counter:
                found = propose(self.speaker(loaded, world), self.rl_config(parent), self.config.proposer, world,
                                (known, held_out), seed_of(self.plan.seed, "propose"))  # fmt: skip
                if counter:
                    counter.add(*found.work)
            if self.parallel.is_first:
                _write_proposals(folder, found.tasks, found.card, lambda at: self._save(at, loaded, parent))
            self.parallel.barrier()
        return Proposed(str(folder / "model"), _read_tasks(folder / TASKS), read_json(folder / CARD))

    def reinforced(self, proposed: Proposed, world: World) -> Path:
        """The parent after this round's practice."""
        made = self.place / "rl" / "model"
        if not (made / "config.json").exists():
            self.check()
            config = self.rl_config(proposed.model)
            torch.manual_seed(config.seed)
            loaded = load(proposed.model, config.weights)
            practice = Practice(world, proposed.tasks, self.plan.mix)
            reinforce_loaded(self.parallel, config, loaded, self.place / "rl", self.run, practice)
            if config.lora is not None:
                merge_lora(loaded.decoder)
            self._finish(made, loaded, proposed.model)
        return made

    def traces(self, teacher: Path, proposed: Proposed, world: World) -> Path:
        """The best of what the round's model answers to training tasks: verified, distinct, level in length; none may be left."""
        path = self.place / TRACES
        if not path.exists():
            self.check()
            student, loaded = self.config.student, self.open(teacher)
            practice, seed = Practice(world, proposed.tasks, self.plan.mix), seed_of(self.plan.seed, "traces")
            drawn = [
                practice.task(seed_of(seed, level, i), level) for level in world.levels for i in range(student.tasks)
            ]
            tasks = list({task.prompt: task for task in drawn}.values())
            with self._stage("traces") as counter:
                speaker = self.speaker(loaded, world)
                groups = speaker.ask(tasks, student.attempts, seed)
                work = speaker.work.taken()  # every worker says its part
                if counter:
                    counter.add(*work)
            if self.parallel.is_first:
                found = [
                    trace for task, group in zip(tasks, groups) for trace in _verified(world, speaker, task, group)
                ]
                kept = select(found, student.per_task, seed)
                counts = {"tasks": len(tasks), "answers": sum(map(len, groups)), "verified": len(found)}
                write_traces(path, kept, {"teacher": loaded.digest, "world": practice.spec(), "counts": counts})
            self.parallel.barrier()
        return path

    def taught(self, traces: Path, teacher: Path, parent: Path | str, base: Path | str) -> Path | None:
        """The student after its lessons; None if there were none it could take."""
        made = self.place / "student" / "model"
        if (made / "config.json").exists():
            return made
        self.check()
        config, lessons = self.distil_config(), read_traces(traces)
        torch.manual_seed(config.seed)
        starts = {"parent": parent, "base": base, "new": parent}
        origin = starts[self.config.student.start]
        student = fresh(origin, config.model) if self.config.student.start == "new" else load(origin, config.weights)
        judge = load(teacher, config.teacher_weights) if config.method != "traces" else None
        try:
            material = _material(config, student, judge, lessons)
        except DataError:
            return None  # nothing verified, or nothing that fits
        distil(self.parallel, config, student.decoder, material, self.place / "student", self.run)
        if config.lora is not None:
            merge_lora(student.decoder)
        self._finish(made, student, origin)
        return made

    def distil_config(self) -> DistillConfig:
        named = {"seed": seed_of(self.plan.seed, "student"), "workers": self.config.workers}
        return self.config.student.distil.model_copy(update=named)

    def _finish(self, made: Path, loaded: Loaded, origin: Path | str) -> None:
        if self.parallel.is_first:
            self._save(made, loaded, origin)
            shutil.rmtree(made.parent / "states", ignore_errors=True)  # what it takes to go on is the model now
        self.parallel.barrier()

    def _save(self, folder: Path, loaded: Loaded, origin: Path | str) -> None:
        lineage = self.run.entry.lineage() if self.run else {}
        save_model(folder, loaded.decoder, Companions.of(origin, loaded), {"lineage.json": lineage})

    def _stage(self, name: str) -> Any:
        return self.run.stage(name) if self.run else nullcontext()


def placed(loaded: Loaded, config: ImproveConfig, parallel: Parallel) -> Loaded:
    """On the worker's device, in the precision of practice."""
    loaded.decoder.to(parallel.device)
    loaded.decoder.compute_dtype = compute_dtype(config.rl.learner.precision, parallel.device)
    return loaded


def speaker_of(parallel: Parallel, config: ImproveConfig, loaded: Loaded, world: World) -> Speaker:
    sampling, positions = config.rl.sampling, loaded.decoder.config.max_position_embeddings
    longest = min(sampling.max_prompt_tokens, positions // 2) + sampling.max_tokens
    engine = Engine(loaded.decoder.eval(), config.rl.max_rows, longest)
    return Speaker(parallel, loaded, prompts_of(config.rl, loaded, world), engine, sampling.max_tokens, Work(parallel))


def known_tasks(folder: Path, world: World, before: int) -> set[str]:
    """Identities of the tasks that models wrote in the rounds before this one."""
    found: set[str] = set()
    for number in range(1, before):
        path = folder / f"round_{number:03d}" / "propose" / TASKS
        if path.exists():
            found |= {world.identity(task) for task in _read_tasks(path)}
    return found


def _write_proposals(folder: Path, tasks: list[Task], card: dict[str, Any], save: Callable[[Path], None]) -> None:
    with folder_atomic(folder) as temporary:
        save(temporary / "model")
        rows = ({name: getattr(task, name) for name in ("world", "id", "prompt", "data", "level")} for task in tasks)
        with file_atomic(temporary / TASKS) as file:
            file.write_text("".join(canonical_json(row) + "\n" for row in rows), encoding="utf-8")
        write_json(temporary / CARD, card)


def _read_tasks(path: Path) -> list[Task]:
    try:
        return [Task(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} is damaged: {error}", hint="remove the folder it lies in; it is made again."
        ) from error


def _verified(world: World, speaker: Speaker, task: Task, group: list[Any]) -> list[Trace]:
    length = len(speaker.prompts.encode(task.prompt)) if group else 0
    return [
        Trace(task, answer.text, answer.token_ids, 1.0, speaker.loaded.digest, length, answer.length)
        for answer in group
        if not answer.is_truncated and paid(world, task, answer.text) == 1
        and second_opinion(world, task, answer.text) is not False
    ]  # fmt: skip


def _material(config: DistillConfig, student: Loaded, judge: Loaded | None, traces: list[Trace]) -> Material:
    """Raises: DataError if there is nothing to learn from."""
    prompts = prompt_format(student.tokenizer, student.template, student.eos_ids, config.chat, config.system)
    longest, longest_prompt = limits(config, student.decoder.config, judge.decoder.config if judge else None)
    lessons, tasks = [], []
    if config.method != "on_policy" or config.on_policy.share < 1:
        lessons, _ = lessons_of(traces, prompts, longest)
    if config.method == "on_policy":
        tasks, _ = tasks_of([trace.task for trace in traces], prompts, longest_prompt)
    told = [[lesson.prompt_ids, lesson.reply_ids] for lesson in (*lessons, *tasks)]
    origin = digest([student.digest, judge.digest if judge else "", told])
    return Material(prompts, lessons, tasks, judge.decoder if judge else None, origin)
