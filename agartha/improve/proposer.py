"""The model writes tasks, a program checks and solves them, and the model is paid for those at the edge of its ability.

After Absolute Zero (arXiv:2505.03335 §3.2): a task that the solver, the same model, solves with a mean rate p earns the
proposer 1 - p if 0 < p < 1, and nothing if it is trivial or impossible (eq. 4). What is no task, was written before, is held
out, or cannot be solved by the program earns nothing, costs nothing but itself, and is never practised.
"""

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

from agartha.core.errors import WorldError
from agartha.engine.request import Completion
from agartha.improve.exam import JUDGE_SECONDS, Answer, paid
from agartha.worlds.isolated import read_task_isolated
from agartha.worlds.types import Ended, Episode, Task, Verdict
from agartha.worlds.world import World

LONGEST = 2000  # characters of a task

LEARNABLE, TRIVIAL, IMPOSSIBLE = "learnable", "trivial", "impossible"
DUPLICATE, HELD_OUT, HUGE, FAULT = "duplicate", "held_out", "huge", "fault"


@dataclass(frozen=True, slots=True)
class Proposal:
    """One text that the model wrote, opening included. outcome: one of the above, or the code by which the world refused it.

    task: None unless it is accepted. rate: share of the attempts that were paid, where there were some.
    """

    text: str
    outcome: str
    task: Task | None = None
    rate: float | None = None

    @property
    def reward(self) -> float:
        """In [0, 1)."""
        return 1.0 - self.rate if self.outcome == LEARNABLE and self.rate is not None else 0.0


def read(world: World, texts: Sequence[str], known: Set[str], held_out: Set[str]) -> list[Proposal]:
    """Each text as far as a program can tell; known: identities of tasks written before. An accepted one is still `impossible`.

    The same text twice is a duplicate the second time.
    """
    seen, found = set(known), []
    for text in texts:
        task = accepted(world, text, held_out)
        if isinstance(task, Task) and world.identity(task) in seen:
            task = DUPLICATE
        if isinstance(task, Task):
            seen.add(world.identity(task))
            found.append(Proposal(text, IMPOSSIBLE, task))
        else:
            found.append(Proposal(text[:LONGEST], task))
    return found


def accepted(world: World, text: str, held_out: Set[str]) -> Task | str:
    """The task, or a code for what is wrong with it."""
    if len(text) > LONGEST:
        return HUGE
    try:
        task = read_task_isolated(world, text, JUDGE_SECONDS) if world.isolated else world.read_task(text)
    except WorldError as error:
        code = error.message.partition(":")[0]
        return code if code.isidentifier() else "refused"
    except Exception:  # the world's own code, on a hostile text
        return FAULT
    if not isinstance(task, Task) or task.level not in world.levels or len(task.prompt) > LONGEST:
        return "refused"
    if not world.in_training(task) or world.key(task) in held_out:
        return HELD_OUT
    return task


def measured(world: World, proposal: Proposal, answers: Sequence[Answer]) -> Proposal:
    """The accepted proposal with the rate at which these attempts solve it."""
    assert proposal.task is not None
    rewards = [paid(world, proposal.task, answer.text) for answer in answers]
    judged = [reward for reward in rewards if reward is not None]
    if not judged:
        return Proposal(proposal.text, FAULT)
    rate = sum(judged) / len(judged)
    outcome = IMPOSSIBLE if rate == 0 else TRIVIAL if rate == 1 else LEARNABLE
    return Proposal(proposal.text, outcome, proposal.task, rate)


def counts(proposals: Sequence[Proposal]) -> dict[str, int]:
    """How many of each outcome."""
    return dict(sorted(Counter(proposal.outcome for proposal in proposals).items()))


def episode(opening: str, proposal: Proposal, completion: Completion) -> Episode:
    """The writing of a task, as reinforcement sees it; a fault of ours earns no reward, not even 0."""
    asked = Task("proposals", opening, opening)
    verdict = None if proposal.outcome == FAULT else Verdict(proposal.reward, proposal.outcome)
    ended = Ended.max_tokens if completion.finish == "length" else Ended.completed
    return Episode(asked, proposal.text, verdict, ended if verdict else Ended.world_error, None if verdict else FAULT)
