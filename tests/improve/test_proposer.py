"""A proposer that writes nonsense loses only the nonsense; one that writes what is neither trivial nor impossible is paid."""

from pathlib import Path

import pytest
import torch
from loops import TOKENIZER, WORLD, furnish, settings

from agartha.engine.load import load
from agartha.improve.exam import Answer
from agartha.improve.plan import first_plan
from agartha.improve.proposer import LEARNABLE, LONGEST, Proposal, accepted, counts, episode, measured, read
from agartha.improve.proposing import propose
from agartha.improve.stages import Stages, speaker_of
from agartha.learn.parallel import Parallel
from agartha.worlds.countdown import Countdown
from agartha.worlds.load import load_world
from agartha.worlds.types import Task

COUNTDOWN = Countdown()
FAIR = "3 5 8 -> 16 :"


def outcomes(*texts: str, known: frozenset[str] = frozenset(), held_out: frozenset[str] = frozenset()) -> list[str]:
    return [proposal.outcome for proposal in read(COUNTDOWN, texts, known, held_out)]


def said(text: str) -> Answer:
    return Answer(text, (1,), 0.5, False)


@pytest.mark.parametrize(("text", "outcome"), [
    ("1 1 1 -> 99 :", "unsolvable"), ("", "malformed"), ("7 " * 3_000, "huge"), ("9" * 1_500 + " 3 5 -> 7 :", "malformed"),
    ("__import__('os').system('true') :", "malformed"), ("<answer> 1 </answer> :", "malformed"),
    ("3 5 8 -> 100 :", "out_of_bounds"),
    ("\x00\ud7ff :", "malformed"), ("3 5 8 9 11 -> 16 :", "wrong_size"),
])  # fmt: skip
def test_unsolvable_huge_and_hostile_tasks_are_lost_alone(text: str, outcome: str) -> None:
    found = read(COUNTDOWN, [FAIR, text, "8 5 2 -> 6 :"], set(), set())
    assert (
        found[1].outcome == outcome and found[1].task is None and found[1].reward == 0 and len(found[1].text) <= LONGEST
    )
    assert found[0].task is not None and found[2].task is not None
    assert counts(found) == {"impossible": 2, outcome: 1}  # until the solver has tried


def test_duplicates_within_the_round_and_of_earlier_rounds_are_lost() -> None:
    assert outcomes(FAIR, FAIR, "8 5 3 -> 16 :") == ["impossible", "duplicate", "duplicate"]
    known = frozenset({COUNTDOWN.identity(COUNTDOWN.read_task(FAIR))})
    assert outcomes(FAIR, "8 5 2 -> 6 :", known=known) == ["duplicate", "impossible"]


def test_tasks_of_the_gate_are_never_practised() -> None:
    key = COUNTDOWN.key(COUNTDOWN.read_task(FAIR))
    assert outcomes(FAIR, held_out=frozenset({key})) == ["held_out"]


def test_a_reader_that_crashes_or_hangs_loses_that_task_alone(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "import time\nfrom agartha.worlds.types import Task, Verdict\nfrom agartha.worlds.world import World\n"
        "class Odd(World):\n    name = 'odd'\n"
        "    def verify(self, task, completion): return Verdict(1.0, 'fine')\n"
        "    def read_task(self, text):\n"
        "        if text == 'crash': import os; os._exit(3)\n"
        "        if text == 'level': return Task('odd', text, text, {}, 7)\n"
        "        if text == 'nothing': return None\n"
        "        return Task('odd', text, text, {}, 0)\n"
    )
    world = load_world(str(tmp_path / "odd.py"))
    found = [accepted(world, text, set()) for text in ("crash", "level", "nothing")]
    assert found == ["fault", "refused", "fault"]
    assert isinstance(accepted(world, "fine and", set()), Task | str)


def test_reward_is_for_tasks_neither_trivial_nor_impossible() -> None:
    task = COUNTDOWN.read_task(FAIR)
    right, wrong = said(COUNTDOWN.oracle(task)), said("<answer> 3 </answer>")
    proposal = Proposal(FAIR, "impossible", task)
    never = measured(COUNTDOWN, proposal, [wrong] * 4)
    seldom = measured(COUNTDOWN, proposal, [wrong] * 3 + [right])
    often = measured(COUNTDOWN, proposal, [wrong] + [right] * 3)
    always = measured(COUNTDOWN, proposal, [right] * 4)
    assert [one.outcome for one in (never, seldom, often, always)] == [
        "impossible",
        "learnable",
        "learnable",
        "trivial",
    ]
    assert [one.reward for one in (never, seldom, often, always)] == [0.0, 0.75, 0.25, 0.0]
    assert measured(COUNTDOWN, proposal, []).outcome == "fault"


def test_a_fault_of_ours_is_no_reward_of_zero() -> None:
    class Ended:
        finish = "stop"

    assert episode("say", Proposal("x", "fault"), Ended()).verdict is None  # type: ignore[arg-type]
    made = episode("say", Proposal("x", "malformed"), Ended()).verdict  # type: ignore[arg-type]
    assert made is not None and made.reward == 0.0 and made.reason == "malformed"


def test_what_earned_more_becomes_likelier_and_only_learnable_tasks_are_practised(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = settings(*furnish(tmp_path), "proposer.openings=24", "proposer.group_size=8", "proposer.share=0.5")
    world, parallel = load_world(str(WORLD)), Parallel()
    loaded = load(config.model)
    stages = Stages(parallel, config, first_plan(config), tmp_path, None, lambda: None)
    speaker = speaker_of(parallel, config, loaded, world)

    def likelihood(texts: list[str]) -> float:
        ids = torch.tensor([TOKENIZER.encode(text) for text in texts])
        with torch.no_grad():
            hidden = loaded.decoder(
                ids, torch.arange(ids.shape[1]).expand_as(ids), torch.zeros_like(ids, dtype=torch.int32)
            )
            logprobs = loaded.decoder.logits(hidden).log_softmax(-1)
        return float(logprobs[:, :-1].gather(2, ids[:, 1:, None]).sum((1, 2)).mean())

    before = load(config.model).decoder
    found = propose(speaker, stages.rl_config("m"), config.proposer, world, (set(), set()), seed=3)
    assert found.tasks and found.counts[LEARNABLE] == len(found.tasks) == len({task.prompt for task in found.tasks})
    assert found.counts.get("malformed", 0) > 0 and sum(found.counts.values()) == 192 and found.work[0] > 192
    paid_for = [task.prompt for task in found.tasks]
    after = likelihood(paid_for)
    loaded.decoder.load_state_dict(before.state_dict())
    assert after > likelihood(paid_for)
