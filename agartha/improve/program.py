"""`agartha improve`: a loop that needs nobody. Rounds of proposing, practising, teaching, judging; promoted or rolled back.

    FOLDER/journal.json     every round: plan, candidates, decision and its reasons
    FOLDER/round_NNN/       ledger.json, propose/, rl/, traces.parquet, student/, judge/
    FOLDER/model/           the newest promoted model
    FOLDER/report.html      the generations as a picture

Killed at any moment, the same command goes on and ends with the same journal.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agartha.core.config import resolved
from agartha.core.errors import ConfigError, WorldError
from agartha.core.files import write_json
from agartha.core.metrics import Metrics, read_metrics
from agartha.engine.load import digest_of, found_at
from agartha.improve.config import ImproveConfig
from agartha.improve.exam import Examiner
from agartha.improve.journal import Journal, Round
from agartha.improve.rounds import Rounds
from agartha.improve.story import compose, measurements
from agartha.learn.parallel import Parallel, launch
from agartha.ledger.record import Run, record
from agartha.model.open import open_source
from agartha.report.html import write_report
from agartha.worlds.checks import preflight
from agartha.worlds.load import load_world


def run(config: ImproveConfig, folder: Path, command: Sequence[str]) -> dict[str, Any]:
    """Returns report.json's content. Raises: BudgetReached or Interrupted with everything saved."""
    check(config)  # what is missing or damaged, and a broken world, are said before workers start
    folder.mkdir(parents=True, exist_ok=True)
    return launch(_worker, config.workers, config, folder, list(command))


def check(config: ImproveConfig) -> None:
    """Raises: ConfigError, CheckpointError, DataError or WorldError for what the settings name and is not there."""
    if config.model:
        open_source(found_at(config.model))
    for name in dict.fromkeys([config.world, config.gate.world, *(probe.world for probe in config.untouched)]):
        if name:
            preflight(load_world(name))
    world = load_world(config.world)
    if config.proposer.openings:
        try:
            world.opening(0)
        except WorldError as error:
            raise ConfigError(f"proposer.openings={config.proposer.openings}, but {error.message}",
                              hint="proposer.openings=0, or define opening and read_task.") from error  # fmt: skip
    gate = load_world(config.gate.world or config.world)
    if unknown := sorted(set(config.gate.levels) - set(gate.levels)):
        raise ConfigError(f"gate.levels has {unknown[0]}, the world has {list(gate.levels)}.")
    Examiner(config, world)  # the worlds have as many problems as are asked for


def _worker(parallel: Parallel, config: ImproveConfig, folder: Path, command: list[str]) -> dict[str, Any]:
    if not parallel.is_first:
        for _ in Rounds(parallel, config, folder, None).all():
            pass
        return {}
    parents = [digest_of(found_at(config.model))] if config.model else []
    with record(folder, "improve", command, config, parents, budget=config.budget) as entry:
        rounds = Rounds(
            parallel, config, folder, entry
        )  # before anything is written: this may be another loop's folder
        write_json(folder / "config.json", resolved(config))
        for found in rounds.all():
            _tell(config, folder, rounds.journal, found, entry)
    return _report(config, folder, rounds.journal, entry)


def _tell(config: ImproveConfig, folder: Path, journal: Journal, found: Round | None, entry: Run) -> None:
    """The report and the metrics as they stand after a round."""
    champion = journal.champion
    entry.entry.made = [champion.digest] if champion.round else []
    entry.entry.outcome = (
        f"{len(journal.rounds)} rounds, round {champion.round} leads: {champion.sheet['accuracy']:.1%}"
    )
    entry.flush()
    with Metrics(folder) as metrics:
        metrics.rewind(-1)
        for number, numbers in measurements(journal):
            metrics.log(number, stage="improve", **numbers)
    _report(config, folder, journal, entry)


def _report(config: ImproveConfig, folder: Path, journal: Journal, entry: Run) -> dict[str, Any]:
    report = compose(config, folder, journal, entry.entry)
    write_json(folder / "report.json", report)
    write_report(folder / "report.html", report, read_metrics(folder / "metrics.jsonl"))
    return report
