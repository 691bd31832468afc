"""What a rolled-back round changes: one thing, within its limits, the same for the same reasons."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agartha.improve.config import ImproveConfig, ProposerConfig
from agartha.improve.journal import Candidate, Round
from agartha.improve.plan import Plan, first_plan
from agartha.improve.rule import INBRED, TOO_FAST, WIDEST, band, next_plan

CONFIG = ImproveConfig(model="m", proposer=ProposerConfig(openings=8, share=0.4))
KNOBS = ("rate", "difficulty", "mix")


def candidate(gain: float = 0.0, reward: float = 0.3, reasons: tuple[str, ...] = ()) -> Candidate:
    sheet = {"reward": reward, "accuracy": 0.5}
    return Candidate(model="x", digest="d", sheet=sheet, gain=gain, low=gain - 1, high=gain + 1, reasons=list(reasons))


def rolled_back(plan: Plan, *reasons: str, **facts: float) -> Round:
    return Round(plan=plan, parent=0, candidates={"rl": candidate(reasons=reasons, **facts)}, reasons=list(reasons))


def promoted(plan: Plan) -> Round:
    return Round(plan=plan, parent=0, candidates={"rl": candidate(0.1)}, promoted="rl")


def differing(one: Plan, other: Plan) -> list[str]:
    return [knob for knob in KNOBS if getattr(one, knob) != getattr(other, knob)]


def test_the_first_plan_is_the_recipe_and_a_promotion_changes_nothing_but_seeds() -> None:
    first = next_plan(CONFIG, [])
    assert first == first_plan(CONFIG) and (first.rate, first.difficulty, first.mix) == (1.0, 0.0, 0.4)
    second = next_plan(CONFIG, [promoted(first)])
    assert differing(first, second) == [] and second.changed is None and second.seed != first.seed
    assert next_plan(ImproveConfig(model="m"), []).mix == 0.0


@pytest.mark.parametrize("reason", TOO_FAST)
def test_collapse_halves_the_rate(reason: str) -> None:
    plan = next_plan(CONFIG, [rolled_back(first_plan(CONFIG), reason, "not_better")])
    assert (plan.rate, plan.changed, plan.why) == (0.5, "rate", reason) and differing(plan, first_plan(CONFIG)) == [
        "rate"
    ]


@pytest.mark.parametrize("reason", INBRED)
def test_inbreeding_halves_the_mix_and_then_the_rate(reason: str) -> None:
    first = first_plan(CONFIG)
    plan = next_plan(CONFIG, [rolled_back(first, reason)])
    assert plan.mix == 0.2 and plan.changed == "mix" and differing(plan, first) == ["mix"]
    without = ImproveConfig(model="m")
    assert next_plan(without, [rolled_back(first_plan(without), reason)]).changed == "rate"


def test_not_better_turns_from_rate_to_difficulty_to_mix() -> None:
    rounds: list[Round] = []
    for _ in range(4):
        rounds.append(rolled_back(next_plan(CONFIG, rounds), "not_better", gain=0.01, reward=0.9))
    plans = [found.plan for found in rounds]
    assert [plan.changed for plan in plans] == [None, "rate", "difficulty", "mix"]
    assert plans[1].rate == 2.0 and plans[2].difficulty == -0.1 and plans[3].mix == 0.2
    worse = rolled_back(first_plan(CONFIG), "not_better", gain=-0.01)
    assert next_plan(CONFIG, [worse]).rate == 0.5


def test_tasks_become_easier_for_who_fails_in_practice() -> None:
    first = rolled_back(first_plan(CONFIG), "not_better", gain=0.0)
    second = rolled_back(next_plan(CONFIG, [first]), "not_better", reward=0.1)
    plan = next_plan(CONFIG, [first, second])
    assert plan.changed == "difficulty" and plan.difficulty == 0.1
    low, high = band(CONFIG, plan)
    assert (low, high) == pytest.approx((CONFIG.rl.curriculum.low + 0.1, CONFIG.rl.curriculum.high + 0.1))


REASONS = st.sampled_from([*TOO_FAST, *INBRED, "not_better"])


@given(
    st.lists(
        st.one_of(st.none(), st.tuples(st.lists(REASONS, min_size=1, unique=True), st.floats(-1, 1), st.floats(0, 1)))
    )
)
def test_whatever_happens_at_most_one_thing_changes_and_stays_within_its_limits(history: list) -> None:
    rounds: list[Round] = []
    for event in history:
        plan = next_plan(CONFIG, rounds)
        assert plan == next_plan(CONFIG, rounds)
        if rounds:
            changes = differing(rounds[-1].plan, plan)
            assert changes == ([plan.changed] if plan.changed else [])
            assert not changes or rounds[-1].promoted is None
        assert 1 / 8 <= plan.rate <= 8 and abs(plan.difficulty) <= WIDEST and 0 <= plan.mix <= 0.4
        low, high = band(CONFIG, plan)
        assert 0 <= low < high <= 1
        reasons, gain, reward = event or ((), 0.1, 0.5)
        rounds.append(rolled_back(plan, *reasons, gain=gain, reward=reward) if event else promoted(plan))
