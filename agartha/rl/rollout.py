"""Episodes: tasks from a world, groups of attempts by the policy, verdicts from outside its reach."""

from collections.abc import Sequence
from dataclasses import dataclass

from agartha.engine.request import Completion, Request
from agartha.engine.sampler import Sampling
from agartha.learn.learner import Learner
from agartha.rl.config import RLConfig
from agartha.text.prompt_format import PromptFormat
from agartha.worlds.types import Ended, Episode, Task
from agartha.worlds.world import World, judge

JUDGE_SECONDS = 5.0


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


def rollout(
    learner: Learner, world: World, prompts: PromptFormat, tasks: Sequence[Task], seeds: Sequence[int], config: RLConfig
) -> list[list[Attempt]]:
    """A group of `config.group_size` attempts at each task; an attempt's tokens depend on its seed, not on its neighbours."""
    asked = [prompts.encode(task.prompt) for task in tasks]
    requests = [
        Request(
            prompt,
            Sampling(
                temperature=config.sampling.temperature,
                max_tokens=config.sampling.max_tokens,
                seed=seed,
                stop_ids=prompts.stop_ids,
            ),
            n=config.group_size,
        )
        for prompt, seed in zip(asked, seeds)
    ]
    groups = learner.sample(requests)
    return [
        [_judged(world, prompts, task, prompt, completion) for completion in group]
        for task, prompt, group in zip(tasks, asked, groups)
    ]


def _judged(world: World, prompts: PromptFormat, task: Task, prompt_ids: list[int], completion: Completion) -> Attempt:
    text = prompts.decode(completion.token_ids)
    if completion.finish == "length":
        # a cut-off answer is judged as it stands, and marked: the limit is the policy's business, not a fault
        episode = judge(world, task, text, JUDGE_SECONDS)
        verdict = episode.verdict
        episode = Episode(task, text, verdict, Ended.max_tokens, episode.fault)
        return Attempt(episode, prompt_ids, completion)
    return Attempt(judge(world, task, text, JUDGE_SECONDS), prompt_ids, completion)
