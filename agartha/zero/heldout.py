"""Both models, and the controls, before the same fresh problems."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agartha.core.files import write_json
from agartha.engine.engine import Engine
from agartha.engine.sampler import Sampling
from agartha.evaluate.config import HeldOutConfig
from agartha.evaluate.run import Record, evaluate_together, heldout_tasks, summarise
from agartha.learn.parallel import Parallel
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.world import World

TRANSCRIPTS = 12


@dataclass(frozen=True, slots=True)
class Question:
    """One way of asking."""

    name: str
    temperature: float = 1.0
    forced: str = ""


class Examiner:
    """Asks, splits the problems over the workers, and keeps every result in `heldout.json`."""

    def __init__(self, folder: Path, parallel: Parallel, world: World, tokenizer: Tokenizer, config: HeldOutConfig):
        self.path, self.parallel, self.world, self.tokenizer, self.config = (
            folder / "heldout.json",
            parallel,
            world,
            tokenizer,
            config,
        )
        self.tasks = {level: heldout_tasks(world, level, config.problems, config.seed) for level in config.levels}
        self.results: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def has(self, question: Question) -> bool:
        return question.name in self.results

    def ask(self, engine: Engine, question: Question) -> None:
        """Fill `results[question.name][level]`: the summary, and the first transcripts."""
        found = {str(level): self._level(engine, question, level) for level in self.config.levels}
        self.results[question.name] = found
        if self.parallel.is_first:
            write_json(self.path, self.results)

    def _level(self, engine: Engine, question: Question, level: int) -> dict[str, Any]:
        sampling = Sampling(question.temperature, max_tokens=self.config.max_tokens, seed=self.config.seed)
        groups = evaluate_together(
            self.parallel, engine, self.tokenizer, self.world, self.tasks[level], sampling, question.forced
        )
        return summarise(groups) | {"transcripts": [_transcript(g[0]) for g in groups[:TRANSCRIPTS] if g]}


def _transcript(record: Record) -> dict[str, Any]:
    facts = asdict(record)
    return {
        "prompt": record.task.prompt,
        **{name: facts[name] for name in ("completion", "reward", "reason", "answer")},
    }
