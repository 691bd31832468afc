"""The program `rl`: a policy that loads, a world, and the loop between them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from agartha.core.config import resolved
from agartha.core.errors import ConfigError
from agartha.core.files import write_json
from agartha.engine.engine import Engine
from agartha.engine.export import save_trained
from agartha.engine.load import Loaded, digest_of, found_at, load, prompts_in
from agartha.learn.learner import Learner
from agartha.learn.parallel import Parallel, launch
from agartha.learn.precision import compute_dtype
from agartha.ledger.record import Run, record
from agartha.model.decoder import Decoder
from agartha.model.lora import add_lora
from agartha.model.open import open_source
from agartha.rl.config import RLConfig
from agartha.rl.train import Setting, train
from agartha.text.prompt_format import PromptFormat
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.checks import preflight
from agartha.worlds.load import load_world
from agartha.worlds.world import World


def run(config: RLConfig, folder: Path, command: Sequence[str]) -> dict[str, Any]:
    """Returns what was made: the model or adapter folder, tokens, seconds, dollars."""
    if not config.model:
        raise ConfigError("no model is named.", hint="model=FOLDER, FILE.gguf or hf:OWNER/NAME.")
    open_source(found_at(config.model))  # what is missing or damaged, and a broken world, are said before workers start
    preflight(load_world(config.world))
    folder.mkdir(parents=True, exist_ok=True)
    return launch(_worker, config.workers, config, folder, list(command))


def _worker(parallel: Parallel, config: RLConfig, folder: Path, command: list[str]) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    loaded = load(config.model, config.weights)
    if not parallel.is_first:
        reinforce_loaded(parallel, config, loaded, folder, None)
        return {}
    with record(folder, "rl", command, config, parents=[loaded.digest], budget=config.budget) as entry:
        write_json(folder / "config.json", resolved(config))
        reinforce_loaded(parallel, config, loaded, folder, entry)
        cards = {"lineage.json": entry.entry.lineage(), "world.json": load_world(config.world).spec()}
        made = save_trained(folder, loaded, config.model, config.lora, cards)
        entry.entry.made = [digest_of(Path(made[name])) for name in ("model", "adapter") if name in made]
    totals = entry.entry.totals
    return made | {"tokens": totals.tokens, "seconds": totals.seconds, "dollars": totals.dollars}


def reinforce(
    parallel: Parallel, config: RLConfig, decoder: Decoder, tokenizer: Tokenizer, folder: Path, entry: Run | None
) -> Learner:
    """Train a decoder of ours, which was made on plain text, in place and return its learner."""
    loaded = Loaded(decoder, tokenizer, None, (tokenizer.eos_id,), "", "")
    return reinforce_loaded(parallel, config, loaded, folder, entry)


def reinforce_loaded(
    parallel: Parallel, config: RLConfig, loaded: Loaded, folder: Path, entry: Run | None, world: World | None = None
) -> Learner:
    """Train the loaded decoder, or an adapter beside it, and return its learner. world: instead of the one `config` names."""
    decoder, world = loaded.decoder, world or load_world(config.world)
    decoder.compute_dtype = compute_dtype(config.learner.precision, parallel.device)
    reference = None
    if config.lora is not None:
        add_lora(decoder, config.lora, config.seed)
    elif config.kl_weight > 0:
        reference = frozen_copy(decoder, parallel.device)
    learner = Learner(decoder, config.learner, parallel)
    sampling = config.sampling
    longest = min(sampling.max_prompt_tokens, decoder.config.max_position_embeddings // 2) + sampling.max_tokens
    learner.sampler = Engine(decoder, config.max_rows, longest)
    base = loaded.digest if config.lora is not None else ""
    train(config, learner, Setting(world, prompts_of(config, loaded, world), reference, base), folder, entry)
    return learner


def prompts_of(config: RLConfig, loaded: Loaded, world: World) -> PromptFormat:
    """How tasks are put to this model. Raises: ConfigError for a chat that it cannot have."""
    return prompts_in(world, loaded, config.chat, config.system, config.examples)


def frozen_copy(decoder: Decoder, device: torch.device) -> Decoder:
    """The policy as it is now, for the divergence term, where the learner will be."""
    copy = Decoder(decoder.config, decoder.compute_dtype)
    copy.load_state_dict(decoder.state_dict())
    return copy.requires_grad_(False).eval().to(device)
