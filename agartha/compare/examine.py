"""Every model of a comparison before the same held-out problems. What it costs is nobody's money but ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agartha.compare.config import CompareConfig
from agartha.core.errors import ConfigError, DataError
from agartha.core.hashing import digest
from agartha.engine.engine import Engine
from agartha.engine.export import Companions
from agartha.engine.load import Loaded, load
from agartha.engine.sampler import Sampling
from agartha.evaluate.run import Record, evaluate_together, heldout_tasks, summarise
from agartha.learn import checkpoint
from agartha.learn.parallel import Parallel
from agartha.learn.precision import compute_dtype
from agartha.model.hf_folder import save_model
from agartha.model.lora import add_lora, merge_lora
from agartha.model.lora_config import LoraConfig
from agartha.text.prompt_format import PromptFormat, prompt_format
from agartha.worlds.load import load_world
from agartha.worlds.types import Task
from agartha.worlds.world import World

ROWS = 256


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who is examined. states: training states of a run that went on from `model`; without them the model itself is meant.

    folder: where the trained model is left. lineage: what is said there of where it comes from.
    """

    model: str
    states: Path | None = None
    folder: Path | None = None
    lora: LoraConfig | None = None
    lineage: dict[str, Any] | None = None


def problems(config: CompareConfig) -> dict[int, list[Task]]:
    """By level. Raises: WorldError if there are not so many, or if training could hold one of them."""
    world, asked = load_world(config.world), config.heldout
    return {level: heldout_tasks(world, level, asked.problems, asked.seed) for level in asked.levels}


def proof(config: CompareConfig) -> dict[str, Any]:
    """How many problems there are, that the world gives none of them to training, and a digest to tell them by."""
    found, world = problems(config), load_world(config.world)
    every = [task for tasks in found.values() for task in tasks]
    return {
        "problems": {str(level): len(tasks) for level, tasks in found.items()},
        "in_training": sum(world.in_training(task) for task in every),
        "digest": digest([task.prompt for task in every]),
    }


def check_room(config: CompareConfig, start: Loaded) -> None:
    """Raises: ConfigError if the longest problem and answer do not fit into the start model; DataError if it can read none."""
    prompts = prompt_format(start.tokenizer, start.template, start.eos_ids)
    positions, longest = start.decoder.config.max_position_embeddings, _longest(prompts, problems(config))
    if longest + config.heldout.max_tokens > positions:
        raise ConfigError(f"heldout.max_tokens={config.heldout.max_tokens} and a prompt of {longest} tokens exceed the model's "
                          f"{positions} positions.", hint="lower heldout.max_tokens.")  # fmt: skip


def examine(parallel: Parallel, config: CompareConfig, candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Of each candidate: by level the reward of every problem, accuracy, length, share cut off. Every worker calls it."""
    world, asked = load_world(config.world), problems(config)
    return [_examined(parallel, config, candidate, world, asked) for candidate in candidates]


def _examined(
    parallel: Parallel, config: CompareConfig, candidate: Candidate, world: World, asked: dict[int, list[Task]]
) -> dict[str, Any]:
    loaded = load(candidate.model, "float32")
    if candidate.states is not None:
        _restore(parallel, candidate, loaded)
    decoder = loaded.decoder.to(parallel.device).eval()
    decoder.compute_dtype = compute_dtype("auto", parallel.device)
    prompts = prompt_format(loaded.tokenizer, loaded.template, loaded.eos_ids)
    engine = Engine(decoder, ROWS, _longest(prompts, asked) + config.heldout.max_tokens)
    sampling = Sampling(config.temperature, max_tokens=config.heldout.max_tokens, seed=config.heldout.seed)
    return {
        str(level): _facts(evaluate_together(parallel, engine, prompts, world, tasks, sampling))
        for level, tasks in asked.items()
    }


def _restore(parallel: Parallel, candidate: Candidate, loaded: Loaded) -> None:
    """The weights of the run's last state; the model is also left as a folder that opens again."""
    assert candidate.states is not None
    path = checkpoint.latest(candidate.states)
    assert path is not None, f"a run that stopped in good order left no state in {candidate.states}"
    if candidate.lora is not None:
        add_lora(loaded.decoder, candidate.lora, 0)
    checkpoint.restore_trained(loaded.decoder, checkpoint.load(path).model)
    if candidate.lora is not None:
        merge_lora(loaded.decoder)
    if parallel.is_first and candidate.folder is not None:
        cards = {"lineage.json": candidate.lineage or {}}
        save_model(candidate.folder, loaded.decoder, Companions.of(candidate.model, loaded), cards)


def _longest(prompts: PromptFormat, asked: dict[int, list[Task]]) -> int:
    """Tokens of the longest prompt; those that the tokenizer cannot write are not asked. Raises: DataError if none can be."""
    lengths = [length for tasks in asked.values() for task in tasks if (length := _length(prompts, task))]
    if not lengths:
        raise DataError("the start model's tokenizer cannot write one of the held-out problems.", hint="another world?")
    return max(lengths)


def _length(prompts: PromptFormat, task: Task) -> int:
    try:
        return len(prompts.encode(task.prompt))
    except DataError:
        return 0


def _facts(groups: list[list[Record]]) -> dict[str, Any]:
    shown = ("accuracy", "low", "high", "tokens", "truncated")
    found = summarise(groups)
    return {"rates": [group[0].reward if group else None for group in groups]} | {name: found[name] for name in shown}
