"""Episodes: tasks from a world, groups of attempts by the policy, verdicts from outside its reach."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from agartha.core.errors import ConfigError
from agartha.engine.request import Completion, Request
from agartha.engine.sampler import Sampling
from agartha.learn.learner import Learner
from agartha.rl.config import RLConfig
from agartha.text.prompt_format import PromptFormat
from agartha.worlds.types import Ended, Episode, Task
from agartha.worlds.world import World, judge

JUDGE_SECONDS = 5.0
TRIES = 8  # tasks of a level that may be too long to be asked


@dataclass(frozen=True, slots=True)
class Question:
    """A task, and all that the policy reads of it."""

    task: Task
    prompt_ids: list[int]


@dataclass(frozen=True, slots=True)
class Attempt:
    """An episode with the tokens it is made of."""

    episode: Episode
    prompt_ids: list[int]
    completion: Completion

    @property
    def reward(self) -> float | None:
        """None where a fault of ours kept the episode from being judged."""
        verdict = self.episode.verdict
        return None if self.episode.fault is not None or verdict is None else verdict.reward

    @property
    def length(self) -> int:
        return len(self.completion.token_ids)

    @property
    def is_truncated(self) -> bool:
        return self.episode.ended is Ended.max_tokens


def question(world: World, prompts: PromptFormat, level: int, seed: int, room: int) -> Question:
    """A task of `level` whose prompt has at most `room` tokens; of an easier level where some tries were all longer.

    Raises: ConfigError if the easiest has none either.
    """
    numbers = random.Random(seed)
    for possible in reversed(world.levels[: world.levels.index(level) + 1]):
        for _ in range(TRIES):
            task = world.task(seed, possible)
            prompt_ids = prompts.encode(task.prompt)
            if len(prompt_ids) <= room:
                return Question(task, prompt_ids)
            seed = numbers.getrandbits(62)
    raise ConfigError(f"{TRIES} prompts of the easiest level are longer than {room} tokens, the last {len(prompt_ids)}.",
                      hint="raise sampling.max_prompt_tokens, if the model has as many positions.")  # fmt: skip


def rollout(
    learner: Learner,
    world: World,
    prompts: PromptFormat,
    asked: Sequence[Question],
    seeds: Sequence[int],
    config: RLConfig,
) -> list[list[Attempt]]:
    """A group of `config.group_size` attempts at each task; an attempt's tokens depend on its seed, not on its neighbours."""
    requests = [
        Request(
            each.prompt_ids,
            Sampling(
                temperature=config.sampling.temperature,
                max_tokens=config.sampling.max_tokens,
                seed=seed,
                stop_ids=prompts.stop_ids,
            ),
            n=config.group_size,
        )
        for each, seed in zip(asked, seeds)
    ]
    groups = learner.sample(requests)
    return [[_judged(world, prompts, each, completion) for completion in group] for each, group in zip(asked, groups)]


def _judged(world: World, prompts: PromptFormat, asked: Question, completion: Completion) -> Attempt:
    task, prompt_ids = asked.task, asked.prompt_ids
    text = prompts.decode(completion.token_ids)
    if completion.finish == "length":
        # a cut-off answer is judged as it stands, and marked: the limit is the policy's business, not a fault
        episode = judge(world, task, text, JUDGE_SECONDS)
        verdict = episode.verdict
        episode = Episode(task, text, verdict, Ended.max_tokens, episode.fault)
        return Attempt(episode, prompt_ids, completion)
    return Attempt(judge(world, task, text, JUDGE_SECONDS), prompt_ids, completion)
