"""A whole GRPO step: ours over TRL's GRPOTrainer. Same shape, prompts, group of 16, 256 samples of 64 tokens, AdamW.

Both are rewarded for the share of even token ids in an answer, and both must learn.
"""

import statistics
import tempfile
import time
from functools import partial

import datasets
import torch
import transformers
import trl
from models import config, peer
from side_by_side import CORES, arguments, compare, tell

from agartha.data.packing import Document, pack
from agartha.engine.engine import Engine
from agartha.engine.request import Request
from agartha.engine.sampler import Sampling
from agartha.learn.config import LearnerConfig, OptimizerConfig
from agartha.learn.learner import Learner, Objective
from agartha.learn.parallel import Parallel, launch
from agartha.model.decoder import Decoder
from agartha.rl.advantages import group_advantages
from agartha.rl.losses import grpo_loss, token_weights
from agartha.text.tokenizer import Tokenizer

PROMPTS, GROUP, NEW, RATE = 16, 16, 64, 1e-3
WORDS = [f"w{i}" for i in range(500)]


def even_share(ids: list[int]) -> float:
    return sum(i % 2 == 0 for i in ids) / max(1, len(ids))


def worker(parallel: Parallel, steps: int, new: int) -> tuple[list[float], list[float]]:
    """Seconds and mean reward of each step."""
    torch.manual_seed(0)
    rates = dict.fromkeys(
        ("matrix_learning_rate", "embedding_learning_rate", "head_learning_rate", "other_learning_rate"), RATE
    )
    settings = LearnerConfig(optimizer=OptimizerConfig(matrices="adamw", **rates), microbatch_rows=8)
    learner = Learner(Decoder(config(initializer_range=0.02)), settings, parallel)  # as wide as the peer's
    learner.sampler = Engine(learner.decoder, PROMPTS * GROUP // parallel.world_size, 16 + new)
    objective = Objective(policy_loss=partial(grpo_loss, clip_low=0.2, clip_high=0.2))
    seconds, rewards = [], []
    for step in range(steps):
        began = time.perf_counter()
        mine = range(parallel.rank, PROMPTS, parallel.world_size)
        prompts = [[(7 * i + k) % 500 for k in range(8)] for i in mine]
        wanted = [Request(p, Sampling(1.0, max_tokens=new, seed=step * 1000 + i), GROUP) for i, p in zip(mine, prompts)]
        documents, found = [], []
        for prompt, group in zip(prompts, learner.sample(wanted)):
            scores = torch.tensor([even_share(c.token_ids) for c in group])
            found.append(float(scores.mean()))
            weights = token_weights([len(c.token_ids) for c in group], "sequence")
            for completion, advantage, weight in zip(group, group_advantages(scores, "standardised").tolist(), weights):
                logprobs = torch.tensor([0.0] * len(prompt) + completion.logprobs).numpy()
                values = {"policy_weight": weight, "advantages": advantage, "sampling_logprobs": logprobs}
                documents.append(Document(prompt + completion.token_ids, values, len(prompt)))
        learner.forward_backward([pack(documents, 4 * (new + 8))], objective)
        learner.optim_step(balance=False)
        seconds.append(time.perf_counter() - began)
        rewards.append(statistics.mean(r for part in parallel.all_gather_object(found) for r in part))
    return seconds, rewards


def theirs(steps: int, new: int) -> tuple[list[float], list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        return _theirs(steps, new, folder)


def _theirs(steps: int, new: int, folder: str) -> tuple[list[float], list[float]]:
    from pathlib import Path

    Tokenizer.from_words(WORDS).save(Path(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = peer(eos_token_id=None, pad_token_id=501)
    rewards, marks = [], []

    def reward(completion_ids: list[list[int]], **_: object) -> list[float]:
        scores = [even_share(ids) for ids in completion_ids]
        rewards.append(statistics.mean(scores))
        return scores

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            marks.append(time.perf_counter())

    settings = trl.GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=new,
        max_steps=steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        beta=0.0,
        temperature=1.0,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=False,
        loss_type="grpo",
        seed=0,
        generation_kwargs={"min_new_tokens": new, "top_k": 0},
        disable_tqdm=True,
    )
    prompts = [" ".join(f"w{(7 * i + k) % 500}" for k in range(8)) for i in range(PROMPTS)]
    data = datasets.Dataset.from_dict({"prompt": prompts * steps})
    trl.GRPOTrainer(
        model, reward, settings, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]
    ).train()
    return [end - begin for begin, end in zip(marks[::2], marks[1::2])], rewards


def main() -> None:
    options = arguments(__doc__).parse_args()
    steps, new = (2, 8) if options.quick else (6, NEW)
    torch.set_num_threads(CORES)
    learnt: dict[str, list[float]] = {}

    def side(name: str, run) -> float:
        seconds, rewards = run()
        learnt.setdefault(name, []).append(rewards[-1] - rewards[0])
        return PROMPTS * GROUP / statistics.median(seconds[1:])

    ours = partial(side, "ours", lambda: launch(worker, CORES, steps, new))
    compare(
        "grpo_step",
        ours,
        partial(side, "peer", lambda: theirs(steps, new)),
        "samples/s",
        options,
        new_tokens=new,
        workers=CORES,
    )
    tell(
        "grpo_learning",
        options,
        **{f"{name}_reward_gained": statistics.median(gains) for name, gains in learnt.items()},
    )


if __name__ == "__main__":
    main()
