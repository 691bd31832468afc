"""The answers that reinforcement learning was paid for, kept as traces: who distils the model need not ask for them again.

Every step leaves a file of its own, the same one when it is taken again after a kill; the last step makes one of them all.
"""

from collections.abc import Sequence
from pathlib import Path

from agartha.data.traces import Trace, distinct, read_traces, write_traces
from agartha.learn.parallel import Parallel
from agartha.rl.rollout import Attempt
from agartha.worlds.world import World

FILE, STEPS = "answers.parquet", "answers"


def keep_step(folder: Path, step: int, groups: Sequence[Sequence[Attempt]], parallel: Parallel) -> None:
    """Write what all workers' attempts of this step (from 1) have verified; nothing if there is none."""
    mine = [_trace(attempt, step) for group in groups for attempt in group if attempt.reward == 1.0]
    everyone = [trace for part in parallel.all_gather_object(mine) for trace in part]
    verified = distinct(everyone)
    if parallel.is_first and verified:
        write_traces(folder / STEPS / f"step-{step:06d}.parquet", verified, {"step": step})


def gather(folder: Path, world: World, parallel: Parallel) -> None:
    """One file of all the steps', where there are any; every worker may read it after this."""
    if parallel.is_first:
        files = sorted((folder / STEPS).glob("step-*.parquet"))
        traces = distinct(trace for file in files for trace in read_traces(file))
        card = {"world": world.spec(), "rule": "reward 1 and not cut off", "steps": [file.stem for file in files]}
        if traces:
            write_traces(folder / FILE, traces, card)
    parallel.barrier()


def _trace(attempt: Attempt, step: int) -> Trace:
    episode, said = attempt.episode, attempt.completion
    return Trace(
        episode.task, episode.completion, tuple(said.token_ids), 1.0, f"policy of step {step}",
        len(attempt.prompt_ids), attempt.length, said.finish,
    )  # fmt: skip
