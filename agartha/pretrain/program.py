"""The program `pretrain`: opens the mixture and the tokenizer, trains, and leaves a model folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from agartha.core.config import resolved
from agartha.core.errors import ConfigError
from agartha.core.files import write_json
from agartha.data.loader import Loader
from agartha.data.mixture import Mixture
from agartha.engine.load import digest_of
from agartha.learn.learner import Learner
from agartha.learn.parallel import Parallel, launch
from agartha.ledger.record import Run, record
from agartha.model.decoder import Decoder
from agartha.model.hf_folder import load_model, save_model
from agartha.pretrain.config import DataConfig, PretrainConfig
from agartha.pretrain.train import pretrain
from agartha.text.tokenizer import Tokenizer


def run(config: PretrainConfig, folder: Path, command: Sequence[str]) -> dict[str, Any]:
    """Returns what was made: the model folder, tokens, seconds, dollars."""
    if not config.data.sources:
        raise ConfigError("data.sources is empty.", hint="name at least one corpus; see recipes/pretrain.toml.")
    folder.mkdir(parents=True, exist_ok=True)
    return launch(_worker, config.workers, config, folder, list(command))


def _worker(parallel: Parallel, config: PretrainConfig, folder: Path, command: list[str]) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    if not parallel.is_first:
        build_and_train(parallel, config, folder, None)
        return {}
    parents = [digest_of(Path(config.start_from))] if config.start_from is not None else []
    with record(folder, "pretrain", command, config, parents, budget=config.budget) as entry:
        write_json(folder / "config.json", resolved(config))
        learner, tokenizer, mixture = build_and_train(parallel, config, folder, entry)
        extra = {"mixture.json": mixture.card(), "lineage.json": entry.entry.lineage()}
        save_model(folder / "model", learner.decoder, tokenizer, extra)
        entry.entry.made = [digest_of(folder / "model")]
    totals = entry.entry.totals
    return {
        "model": str(folder / "model"),
        "tokens": totals.tokens,
        "seconds": totals.seconds,
        "dollars": totals.dollars,
    }


def build_and_train(
    parallel: Parallel, config: PretrainConfig, folder: Path, entry: Run | None, stage: str = "pretrain"
) -> tuple[Learner, Tokenizer, Mixture]:
    mixture, tokenizer = open_data(config.data)
    learner = Learner(build_decoder(config, tokenizer), config.learner, parallel)
    pretrain(config, learner, open_loader(config, mixture, tokenizer, parallel), folder, entry, stage)
    return learner, tokenizer, mixture


def open_data(config: DataConfig) -> tuple[Mixture, Tokenizer]:
    """The mixture, and its tokenizer: the procedural sources' words, one trained on the texts, or one loaded."""
    mixture = Mixture.open(config.sources)
    words = mixture.words()
    if config.tokenizer != "train":
        return mixture, Tokenizer.load(Path(config.tokenizer))
    if words:
        return mixture, Tokenizer.from_words(words)
    return mixture, Tokenizer.train(mixture.texts(), config.vocab_size)


def open_loader(
    config: PretrainConfig, mixture: Mixture, tokenizer: Tokenizer, parallel: Parallel, seed: int = 0
) -> Loader:
    rows, remainder = divmod(config.rows_per_step, parallel.world_size)
    if remainder or not rows:
        raise ConfigError(
            f"rows_per_step={config.rows_per_step} cannot be shared by {parallel.world_size} workers.",
            hint="make it a multiple.",
        )
    return Loader(
        mixture,
        tokenizer,
        config.data.row_length,
        rows,
        config.seed + seed,
        rank=parallel.rank,
        world_size=parallel.world_size,
        planned=config.tokens // parallel.world_size,
    )


def build_decoder(config: PretrainConfig, tokenizer: Tokenizer) -> Decoder:
    """Random weights of the wanted shape, or the weights to go on from.

    Raises: ConfigError if a document as long as a row would not fit into the model's positions.
    """
    if config.start_from is not None:
        decoder = load_model(Path(config.start_from))
        tokenizer.check_model(decoder.config.vocab_size)
    else:
        decoder = Decoder(config.model.fitted(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id))
    longest = decoder.config.max_position_embeddings
    if config.data.row_length > longest:
        raise ConfigError(
            f"data.row_length={config.data.row_length} exceeds the model's max_position_embeddings={longest}.",
            hint="shorten the rows, or give the model more positions.",
        )
    return decoder
