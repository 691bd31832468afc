"""The program `rl`: a policy that loads, a world, and the loop between them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from agartha.core.config import resolved
from agartha.core.errors import ConfigError
from agartha.core.files import write_json
from agartha.core.hashing import digest
from agartha.engine.engine import Engine
from agartha.learn.learner import Learner
from agartha.learn.parallel import Parallel, launch
from agartha.learn.precision import compute_dtype
from agartha.ledger.record import Run, record
from agartha.model.decoder import Decoder
from agartha.model.hf_folder import load_model, save_model
from agartha.rl.config import RLConfig
from agartha.rl.train import Setting, train
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.checks import preflight
from agartha.worlds.load import load_world

LONGEST_PROMPT = 512  # tokens, or half the model's positions where those are fewer


def run(config: RLConfig, folder: Path, command: Sequence[str]) -> dict[str, Any]:
    """Returns what was made: the model folder, tokens, seconds, dollars, last reward."""
    if not (Path(config.model) / "config.json").is_file():
        raise ConfigError(
            f"model={config.model!r} is no model folder.", hint="name a folder with config.json and weights."
        )
    preflight(load_world(config.world))  # a broken world is said before workers start
    folder.mkdir(parents=True, exist_ok=True)
    return launch(_worker, config.workers, config, folder, list(command))


def _worker(parallel: Parallel, config: RLConfig, folder: Path, command: list[str]) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    source = Path(config.model)
    tokenizer, decoder = Tokenizer.load(source), load_model(source)
    tokenizer.check_model(decoder.config.vocab_size)
    if not parallel.is_first:
        reinforce(parallel, config, decoder, tokenizer, folder, None)
        return {}
    parents = [digest(source / "config.json")]
    with record(folder, "rl", command, config, parents=parents, budget=config.budget) as entry:
        write_json(folder / "config.json", resolved(config))
        learner = reinforce(parallel, config, decoder, tokenizer, folder, entry)
        facts = entry.entry.model_dump(mode="json")
        lineage = {name: facts[name] for name in ("run_id", "program", "command", "config_digest", "parents", "code")}
        save_model(
            folder / "model",
            learner.decoder,
            tokenizer,
            {"lineage.json": lineage, "world.json": load_world(config.world).spec()},
        )
    totals = entry.entry.totals
    return {
        "model": str(folder / "model"),
        "tokens": totals.tokens,
        "seconds": totals.seconds,
        "dollars": totals.dollars,
    }


def reinforce(
    parallel: Parallel, config: RLConfig, decoder: Decoder, tokenizer: Tokenizer, folder: Path, entry: Run | None
) -> Learner:
    """Train `decoder` in place and return its learner."""
    decoder.compute_dtype = compute_dtype(config.learner.precision, parallel.device)
    reference = frozen_copy(decoder) if config.kl_weight > 0 else None
    learner = Learner(decoder, config.learner, parallel)
    longest = min(LONGEST_PROMPT, decoder.config.max_position_embeddings // 2) + config.sampling.max_tokens
    learner.sampler = Engine(decoder, config.max_rows, longest)
    train(config, learner, Setting(load_world(config.world), tokenizer, reference), folder, entry)
    return learner


def frozen_copy(decoder: Decoder) -> Decoder:
    """The policy as it is now, for the divergence term."""
    copy = Decoder(decoder.config, decoder.compute_dtype)
    copy.load_state_dict(decoder.state_dict())
    return copy.requires_grad_(False).eval()
