"""`agartha compare`: the same start and the same money, spent in several ways; accuracy against cost, and a verdict.

Seed by seed and way by way, so that an early stop leaves a comparison of fewer seeds. Every run is a program's own, in a folder
and with a ledger of its own. What is finished is kept in `results.json`; the same command goes on after any end.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agartha.compare.config import CompareConfig
from agartha.compare.examine import Candidate, check_room, examine, proof
from agartha.compare.runs import Trial, go
from agartha.compare.story import compose
from agartha.compare.teacher import charged
from agartha.core.config import resolved
from agartha.core.errors import CheckpointError, ConfigError, DataError, NumericsError, WorldError
from agartha.core.files import read_json, write_json
from agartha.core.hashing import digest
from agartha.distill.material import check_same_vocabulary
from agartha.distill.teachers import describe_teacher
from agartha.engine.load import digest_of, found_at, load
from agartha.learn.parallel import launch
from agartha.ledger.record import Run, record
from agartha.ledger.runs import read_record
from agartha.model.open import open_source
from agartha.report.html import write_report
from agartha.worlds.checks import preflight
from agartha.worlds.load import load_world

MAY_CHANGE = ("seeds", "ways", "at", "charge_teacher")
"""Settings that may be others when a comparison goes on: what is there keeps its meaning."""


def run(config: CompareConfig, folder: Path, command: Sequence[str]) -> dict[str, Any]:
    """Returns report.json's content."""
    heldout = check(config)
    parents = [digest_of(found_at(name)) for name in _models(config)]
    folder.mkdir(parents=True, exist_ok=True)
    with record(folder, "compare", command, config, parents) as entry:
        comparison = Comparison(config, folder, entry, command, heldout)
        write_json(folder / "config.json", resolved(config))
        comparison.all()
        return comparison.tell()


def check(config: CompareConfig) -> dict[str, Any]:
    """What is missing, damaged or does not fit is said before any money is spent; returns facts of the held-out problems.

    Raises: ConfigError, CheckpointError, DataError or WorldError.
    """
    for name in _models(config):
        open_source(found_at(name))
    if "pretraining" in config.ways and not Path(config.start).is_dir():
        raise ConfigError(
            f"start={config.start!r} is no folder, which more pretraining needs.", hint="name a model folder."
        )
    preflight(load_world(config.world))
    facts, start = proof(config), load(config.start)
    check_room(config, start)
    if "on_policy" in config.ways:
        check_same_vocabulary(load(config.teacher).tokenizer, start.tokenizer)
    if "traces" in config.ways:
        describe_teacher(config.collecting_settings(0, config.money))
    if config.charge_teacher:
        charged(config.teacher, config.start)
    return facts


def _models(config: CompareConfig) -> list[str]:
    return [config.start, *([config.teacher] if config.needs_teacher else [])]


class Comparison:
    """A walk through all trials; `results` is what is known so far."""

    def __init__(
        self, config: CompareConfig, folder: Path, entry: Run, command: Sequence[str], heldout: dict[str, Any]
    ):
        self.config, self.folder, self.entry, self.command, self.heldout = config, folder, entry, command, heldout
        self.path = folder / "results.json"
        self.results = self._earlier()

    def all(self) -> None:
        """Every trial that is not finished yet."""
        self._examine_models()
        for seed in self.config.seeds:
            for way in self.config.ways:
                trials = [Trial(way, seed, share) for share in sorted(self.config.at)]
                for trial in trials:
                    self._train(trial)
                self._examine(trials)
                self.tell()

    def tell(self) -> dict[str, Any]:
        """The table, the plot and the verdict of what is known, written as report.json and report.html."""
        self.entry.flush()
        report = compose(self.config, self.results, self.entry.entry.model_dump(mode="json"))
        write_json(self.folder / "report.json", report)
        write_report(self.folder / "report.html", report, [])
        return report

    def _examine_models(self) -> None:
        names = {"start": self.config.start} | ({"teacher": self.config.teacher} if self.config.needs_teacher else {})
        missing = [name for name in names if name not in self.results]
        if missing:
            self.results |= dict(zip(missing, self._asked([Candidate(names[name]) for name in missing])))
            self._keep()

    def _train(self, trial: Trial) -> None:
        """A way that cannot be gone is told in the table, with its reason; the others go on."""
        if "costs" in self.results["trials"].get(trial.name, {}):
            return
        facts = {"way": trial.way, "seed": trial.seed, "share": trial.share, "folder": str(trial.folder(Path()))}
        try:
            found = go(self.config, trial, self.folder, self.entry, self.command)
        except (NumericsError, DataError, CheckpointError, WorldError) as error:
            found = {"error": error.message}
        self.results["trials"][trial.name] = facts | found
        self._keep()

    def _examine(self, trials: Sequence[Trial]) -> None:
        known = self.results["trials"]
        due = [trial for trial in trials if "costs" in known[trial.name] and "scores" not in known[trial.name]]
        if not due:
            return
        for trial, scores in zip(due, self._asked([self._candidate(trial) for trial in due])):
            known[trial.name]["scores"] = scores
        self._keep()

    def _candidate(self, trial: Trial) -> Candidate:
        folder = trial.folder(self.folder)
        lora = getattr(getattr(self.config, trial.way), "lora", None)
        states = folder / self.results["trials"][trial.name]["states"]
        return Candidate(self.config.start, states, folder / "model", lora, read_record(folder).lineage())

    def _asked(self, candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
        with self.entry.stage("evaluation"):
            return launch(examine, self.config.workers, self.config, candidates)

    def _earlier(self) -> dict[str, Any]:
        """Raises: ConfigError if the folder holds a comparison of other models, or with other settings."""
        settings = {name: value for name, value in resolved(self.config).items() if name not in MAY_CHANGE}
        origin = digest([[digest_of(found_at(name)) for name in _models(self.config)], settings])
        fresh = {"origin": origin, "heldout": self.heldout, "trials": {}}
        if not self.path.exists():
            return fresh
        found = read_json(self.path)
        if not isinstance(found, dict) or found.get("origin") != origin:
            raise ConfigError(
                f"{self.folder} holds a comparison of other models, or with other settings.",
                hint=f"only {', '.join(MAY_CHANGE)} may differ: choose another folder.",
            )
        return found

    def _keep(self) -> None:
        write_json(self.path, self.results)
