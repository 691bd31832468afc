"""Pretraining: a training token's life, from the corpus to the checkpoint, in one loop.

corpus -> mixture (recorded with hash and weight) -> packed batch -> decoder -> loss terms -> gradients -> optimizer
"""

from pathlib import Path

from agartha.data.loader import Loader
from agartha.learn.learner import Learner
from agartha.learn.schedule import lr_scale
from agartha.learn.session import Session
from agartha.ledger.record import Run
from agartha.pretrain.config import PretrainConfig


def pretrain(
    config: PretrainConfig, learner: Learner, loader: Loader, folder: Path, run: Run | None, stage: str = "pretrain"
) -> None:
    """Train `learner` on `config.tokens` tokens of `loader`; goes on where an earlier attempt in `folder` stopped.

    Every worker calls it with its own share of the rows. Raises: BudgetReached, Interrupted after saving.
    """
    session = Session(folder, stage, learner, run, config.save_every)
    state = session.resume()
    step, seen = (state.step, state.extra["tokens"]) if state else (0, 0)
    if state:
        loader.restore(state.loader)
    per_step = config.rows_per_step * config.data.row_length
    total = -(-config.tokens // per_step)
    with session.steps(step, total):
        for batch in loader if step < total else ():
            metrics = learner.forward_backward([batch])
            progress = session.progress(step + 1, total, config.schedule)
            scale = lr_scale(progress, config.schedule)
            metrics |= learner.optim_step(scale, balance=progress < config.balance_until)
            step, seen = step + 1, seen + per_step
            numbers = {
                "loss": metrics.pop("cross_entropy"),
                "lr_scale": scale,
                **metrics,
                "padding_share": loader.padding_share,
            }
            keep = {"loader": loader.state(), "extra": {"tokens": seen}}
            flops = per_step * learner.decoder.config.flops_per_token(context=mean_context(batch))
            session.end_step(step, numbers, per_step, flops, keep, last=step == total)
            if step == total:
                break


def mean_context(batch) -> float:
    """How many earlier tokens of its document a token sees on average."""
    return float(batch.positions.float().mean())
