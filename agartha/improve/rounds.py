"""One worker's walk through the loop: what is finished is found, what is not is done, and every decision stands in the journal.

A round's decisions depend on seeds and results alone, never on the clock: a budget ends the loop, it does not bend a round.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from agartha.core.config import resolved
from agartha.core.errors import BudgetReached, NumericsError
from agartha.core.files import folder_atomic, read_json, write_json
from agartha.core.hashing import digest
from agartha.engine.load import Loaded, digest_of, found_at, load
from agartha.improve.config import ImproveConfig
from agartha.improve.exam import Examiner, Sheet
from agartha.improve.journal import Candidate, Generation, Journal, Round
from agartha.improve.plan import Plan, seed_of
from agartha.improve.rule import next_plan
from agartha.improve.stages import Stages, known_tasks, placed, speaker_of
from agartha.improve.verdict import elect, weigh
from agartha.learn.parallel import Parallel
from agartha.ledger.record import Run
from agartha.model.hf_folder import save_model
from agartha.pretrain.program import build_and_train
from agartha.worlds.load import load_world

NOT_ORIGIN = ("rounds", "budget", "keep")  # what may change while the loop goes on


class Rounds:
    """The loop in `folder`. entry: the first worker's record; the others have none."""

    def __init__(self, parallel: Parallel, config: ImproveConfig, folder: Path, entry: Run | None):
        self.parallel, self.config, self.folder, self.entry = parallel, config, folder, entry
        self.world = load_world(config.world)
        self.examiner = Examiner(config, self.world)
        self.journal = Journal(folder, self._origin())
        parallel.barrier()  # all have read the journal before anybody writes it

    def all(self) -> Iterator[Round | None]:
        """Every round that is left, each after it was written down; first None for the model to begin with."""
        if self.journal.start is None:
            self._begin()
        self._tidy()
        yield None
        while len(self.journal.rounds) < self.config.rounds:
            yield self._round(next_plan(self.config, self.journal.rounds))

    def _begin(self) -> None:
        """The first model: made or taken as it is, and examined."""
        place = self.folder / "round_000"
        made_by = resolved(self.config.base) if self.config.base else {"model": self.config.model}
        with self._part(place, "generation", made_by, []) as run:
            base = self._base(place, run)
            sheet = self._examined(place, "start", base, run)
            model = os.path.relpath(base, self.folder) if self.config.base else str(self.config.model)
            found = digest_of(found_at(base))
            if run:
                run.entry.made, run.entry.outcome = [found], f"first model: {sheet['summary']['accuracy']:.1%}"
        self.journal.start = Generation(round=0, name="start", model=model, digest=found, sheet=sheet["summary"])
        self._write()

    def _base(self, place: Path, run: Run | None) -> Path | str:
        config = self.config.base
        if config is None:
            return self.config.model
        base = place / "model"
        if not (base / "config.json").exists():
            named = {"seed": seed_of(self.config.seed, "pretrain"), "workers": self.config.workers}
            torch.manual_seed(named["seed"])
            learner, tokenizer, mixture = build_and_train(self.parallel, config.model_copy(update=named), place, run)
            if self.parallel.is_first:
                save_model(base, learner.decoder, tokenizer, {"mixture.json": mixture.card()})
            self.parallel.barrier()
        return base

    def _round(self, plan: Plan) -> Round:
        champion, place = self.journal.champion, self.folder / f"round_{plan.number:03d}"
        with self._part(place, "generation", plan.as_json(), [champion.digest]) as run:
            stages = Stages(self.parallel, self.config, plan, place, run, self._check)
            try:
                found = self._candidates(stages, champion)
            except NumericsError as error:  # the steps were too large for the numbers
                found = Round(
                    plan=plan, parent=champion.round, reasons=["numerics"], details={"numerics": error.message}
                )
            if run:
                run.entry.made = [candidate.digest for candidate in found.candidates.values()]
                run.entry.outcome = outcome(found)
        self.journal.rounds.append(found)
        self._write()
        self._tidy()
        return found

    def _candidates(self, stages: Stages, champion: Generation) -> Round:
        """Makes and weighs them. Raises: NumericsError from the learner."""
        parent, plan = self._model(champion), stages.plan
        known = known_tasks(self.folder, self.world, plan.number)
        proposed = stages.proposed(parent, self.world, known, self.examiner.held_out)
        made = {"rl": stages.reinforced(proposed, self.world)}
        if self.config.student.start != "none":
            traces = stages.traces(made["rl"], proposed, self.world)
            taught = stages.taught(traces, made["rl"], parent, self._model(self._start()))
            made |= {"student": taught} if taught else {}
        sheets = {name: self._examined(stages.place, name, model, stages.run) for name, model in made.items()}
        told = {"start": self._sheet(self._start()), "parent": self._sheet(champion)}
        candidates: dict[str, Candidate] = {}
        for name, model in made.items():
            facts = {"model": os.path.relpath(model, self.folder), "digest": digest_of(model)}
            candidates[name] = weigh(self.config, facts, told | {"found": sheets[name]}, proposed.counts, len(made))
        promoted, reasons, details = elect(candidates)
        return Round(
            plan=plan, parent=champion.round, proposals=proposed.counts, candidates=candidates, promoted=promoted,
            reasons=reasons, details=details,
        )  # fmt: skip

    def _examined(self, place: Path, name: str, model: Path | str, run: Run | None) -> Sheet:
        """The sheet of a model, made once; what the first worker found is what counts."""
        path = place / "judge" / f"{name}.json"
        if not path.exists():
            self._check()
            loaded: Loaded = placed(load(model, self.config.rl.weights), self.config, self.parallel)
            speaker = speaker_of(self.parallel, self.config, loaded, self.world)
            with _stage(run, "judge") as counter:
                sheet = self.examiner.examine(speaker)
                work = speaker.work.taken()  # every worker says its part
                if counter:
                    counter.add(*work)
            if self.parallel.is_first:
                write_json(path, sheet)
            self.parallel.barrier()
        return read_json(path)

    def _sheet(self, generation: Generation) -> Sheet:
        return read_json(self.folder / f"round_{generation.round:03d}" / "judge" / f"{generation.name}.json")

    def _start(self) -> Generation:
        assert self.journal.start is not None
        return self.journal.start

    def _model(self, generation: Generation) -> Path | str:
        """Where it lies. The first one may have been named on the command line."""
        is_named = generation.round == 0 and self.config.base is None
        return generation.model if is_named else self.folder / generation.model

    def _origin(self) -> str:
        settings = {name: value for name, value in resolved(self.config).items() if name not in NOT_ORIGIN}
        model = digest_of(found_at(self.config.model)) if self.config.model else ""
        worlds = [self.world, self.examiner.world, *(world for world, _ in self.examiner.untouched.values())]
        return digest([settings | {"model": model}, [world.spec() for world in worlds]])

    def _check(self) -> None:
        """Raises: BudgetReached, on every worker, once the budget is spent."""
        text = ""
        if self.entry:
            try:
                self.entry.check_budget()
            except BudgetReached as error:
                text = error.message
        text = self.parallel.all_gather_object(text)[0]
        if text:
            raise BudgetReached(text, hint="raise budget.minutes or budget.dollars and give the same command to go on.")

    @contextmanager
    def _part(self, place: Path, program: str, config: dict[str, Any], parents: list[str]) -> Iterator[Run | None]:
        """A record of its own for the round, within that of the loop; None for the other workers."""
        if self.entry is None:
            yield None
            return
        with self.entry.stage(place.name.replace("_", " ")), self.entry.part(place, program, config, parents) as run:
            yield run

    def _write(self) -> None:
        if self.parallel.is_first:
            self.journal.write()
        self.parallel.barrier()

    def _tidy(self) -> None:
        """After a decision: the best model under the name `model`, and nothing kept that nobody will ask for again."""
        if self.parallel.is_first:
            self._publish(self.journal.champion)
            for found in self.journal.rounds:
                place = self.folder / f"round_{found.plan.number:03d}"
                leftovers = [place / "propose" / "model", *(place / name / "states" for name in ("rl", "student"))]
                if self.config.keep == "promoted":
                    leftovers += [place / name / "model" for name in ("rl", "student") if name != found.promoted]
                for path in leftovers:
                    shutil.rmtree(path, ignore_errors=True)
            shutil.rmtree(self.folder / "round_000" / "states", ignore_errors=True)
        self.parallel.barrier()

    def _publish(self, champion: Generation) -> None:
        model, made = self._model(champion), self.folder / "model"
        if champion.round == 0 and self.config.base is None:
            return  # it is the user's own
        if made.exists() and digest_of(made) == champion.digest:
            return
        with folder_atomic(made) as temporary:
            shutil.copytree(model, temporary, copy_function=_link, dirs_exist_ok=True)


@contextmanager
def _stage(run: Run | None, name: str) -> Iterator[Any]:
    if run is None:
        yield None
        return
    with run.stage(name) as counter:
        yield counter


def _link(source: str, target: str) -> None:
    """The same file under two names where the disk can, else a copy."""
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def outcome(found: Round) -> str:
    """What came of a round, in a few words."""
    told = "" if found.best is None else f", {found.best.sheet['accuracy']:.1%} ({found.gain:+.1%})"
    changed = f", {found.plan.changed} changed: {found.plan.why}" if found.plan.changed else ""
    kind = f"promoted {found.promoted}" if found.promoted else f"rolled back: {', '.join(found.reasons)}"
    return kind + told + changed
