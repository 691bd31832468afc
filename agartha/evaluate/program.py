"""The program `eval`: a model folder, a world, and what it scores there."""

import json
from pathlib import Path
from typing import Any

from agartha.core.errors import AgarthaError, DataError
from agartha.engine.engine import Engine
from agartha.engine.load import load, prompts_in
from agartha.engine.sampler import Sampling
from agartha.evaluate.config import EvalConfig
from agartha.evaluate.run import Record, evaluate, heldout_tasks, summarise
from agartha.learn.parallel import local_device
from agartha.learn.precision import compute_dtype
from agartha.worlds.checks import preflight
from agartha.worlds.countdown import problem
from agartha.worlds.load import load_world
from agartha.worlds.types import Task
from agartha.worlds.world import World

LONGEST_PROMPT = 1024
MAX_PROBLEM_FILE = 64 * 2**20  # bytes


def run(model: Path | str, world_name: str, config: EvalConfig, problems: Path | None = None) -> dict[str, Any]:
    """Scores on held-out problems by level, or, with a file of the user's own problems, a record for each.

    model: whatever `engine.load` opens. Raises: as `load`; ConfigError for a chat that it cannot have.
    """
    world = load_world(world_name)
    preflight(world)
    own = read_problems(problems, world) if problems is not None else None
    device, loaded = local_device(0), load(model, config.weights)
    prompts = prompts_in(world, loaded, config.chat, config.system, config.examples)
    decoder = loaded.decoder.to(device)
    decoder.compute_dtype = compute_dtype("auto", device)
    longest = min(decoder.config.max_position_embeddings, LONGEST_PROMPT + config.max_tokens)
    engine = Engine(decoder.eval(), config.max_rows, longest)
    sampling = Sampling(config.temperature, max_tokens=config.max_tokens, seed=config.seed)
    if own is not None:
        groups = evaluate(engine, prompts, world, own, sampling, config.samples)
        records = [describe(world, task, group) for task, group in zip(own, groups)]
        return {
            "model": str(model),
            "world": world.name,
            "problems": records,
            **summarise(groups, config.k, config.seed),
        }
    result: dict[str, Any] = {"model": str(model), "world": world.name, "levels": {}}
    for level in world.levels if config.level is None else (config.level,):
        tasks = heldout_tasks(world, level, config.problems, config.seed)
        groups = evaluate(engine, prompts, world, tasks, sampling, config.samples)
        how = "sampled" if config.temperature > 0 else "greedy"
        scores = {how: summarise(groups, config.k, config.seed)}
        if config.greedy and config.temperature > 0:
            once = Sampling(0.0, max_tokens=config.max_tokens)
            scores["greedy"] = summarise(evaluate(engine, prompts, world, tasks, once), seed=config.seed)
        result["levels"][str(level)] = scores
    return result


def describe(world: World, task: Task, group: list[Record]) -> dict[str, Any]:
    """One of the user's problems: the first completion, its answer as an expression, whether training could hold it.

    A problem that could not be asked has no reward: that is no wrong answer.
    """
    seen = {"seen": world.in_training(task)}
    if not group:
        reason = "unknown_words: the model's tokenizer does not know a number of this problem"
        return {**task.data, "completion": None, "answer": None, "reward": None, "reason": reason, **seen}
    first = group[0]
    facts = {"completion": first.completion, "answer": first.answer, "reward": first.reward, "reason": first.reason}
    return {**task.data, **facts, **seen, "rewards": [record.reward for record in group]}


def read_problems(path: Path, world: World) -> list[Task]:
    """JSON lines: `{"numbers": [3, 12, 8, 9], "target": 13}` for countdown; `{"prompt": ..., "data": {...}}` elsewhere.

    Raises: DataError naming the line.
    """
    try:
        if path.stat().st_size > MAX_PROBLEM_FILE:
            raise DataError(f"{path} has {path.stat().st_size} bytes, the limit is {MAX_PROBLEM_FILE}.")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}", hint="give a file of JSON lines.") from error
    tasks = [_task(f"{path}, line {i}", line, world) for i, line in enumerate(lines, 1) if line.strip()]
    if not tasks:
        raise DataError(f"{path} holds no problems.", hint='a line such as {"numbers": [3, 12, 8, 9], "target": 13}')
    return tasks


def _task(where: str, line: str, world: World) -> Task:
    try:
        record = json.loads(line)
        if world.name == "countdown":
            return problem(record["numbers"], record["target"])
        return Task(world.name, where, record["prompt"], record.get("data", {}))
    except AgarthaError as error:
        raise DataError(f"{where}: {error.message}", hint=error.hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where} is no problem: {error!r}", hint='write {"numbers": [3, 12, 8, 9], "target": 13}'
        ) from error
