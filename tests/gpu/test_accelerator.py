"""The same numbers on an accelerator as on a CPU: decoder, learner, engine and programs. Run where there is one."""

import json
import sys
from pathlib import Path

import pytest
import torch
from models import EXPERTS, GROUPED, SHAPES, random_decoder, some_batch, some_tokens

from agartha.data.packing import Document, pack
from agartha.engine.engine import Engine
from agartha.engine.request import Request
from agartha.engine.sampler import Sampling
from agartha.learn.config import LearnerConfig, OptimizerConfig
from agartha.learn.learner import Learner
from agartha.learn.parallel import Parallel
from agartha.learn.polar import orthogonalize
from agartha.model.ops import grouped_linear
from agartha.rl.program import frozen_copy

sys.path.insert(0, str(Path(__file__).parents[1] / "programs"))
from small_runs import PRETRAIN, RL, finish, start

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator"),
]
GPU = torch.device("cuda", 0)
ADAMW = OptimizerConfig(matrices="adamw", matrix_learning_rate=3e-3)


def learner_on(device: torch.device, shape: dict, precision: str = "float32", **optimizer) -> Learner:
    config = LearnerConfig(precision=precision, optimizer=OptimizerConfig(**optimizer))  # type: ignore[arg-type]
    return Learner(random_decoder(shape), config, Parallel(device=device))


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_gradients_are_those_of_the_cpu(name: str) -> None:
    found = []
    for device in (torch.device("cpu"), GPU):
        learner = learner_on(device, SHAPES[name], matrices="adamw")
        ids, positions = (x.to(device) for x in some_tokens())
        with torch.no_grad():
            logits = learner.decoder.logits(learner.decoder(ids, positions)).cpu()
        learner.forward_backward([some_batch()])
        found.append((logits, learner.optimizers.gradients.cpu()))
    (logits, gradients), (its_logits, its_gradients) = found
    assert (logits - its_logits).abs().max() < 1e-4
    assert (gradients - its_gradients).abs().max() < 1e-4 * gradients.abs().max()


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_ten_steps_learn_what_the_cpu_learns(matrices: str) -> None:
    losses = []
    for device in (torch.device("cpu"), GPU):
        learner = learner_on(device, EXPERTS | {"num_nextn_predict_layers": 1}, matrices=matrices)
        of = []
        for _ in range(10):
            of.append(learner.forward_backward([some_batch()])["loss"])
            learner.optim_step()
        losses.append(of)
    assert losses[1] == pytest.approx(losses[0], rel=2e-2) and losses[1][-1] < losses[1][0] - 0.1


def test_learning_in_bfloat16_is_near_that_in_float32() -> None:
    ends = {}
    for precision in ("float32", "bfloat16"):
        learner = learner_on(GPU, EXPERTS, precision)
        for _ in range(60):
            loss = learner.forward_backward([some_batch(4)])["loss"]
            learner.optim_step()
        ends[precision] = loss
    assert max(ends.values()) < 0.2, ends


def test_products_of_experts_agree_with_one_at_a_time() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(size, generator=generator).to(GPU) for size in ((96, 64), (4, 48, 64)))
    ends = torch.tensor([32, 32, 72, 96], device=GPU)
    expected = torch.cat(
        [x[first:last] @ weight[i].T for i, (first, last) in enumerate([(0, 32), (32, 32), (32, 72), (72, 96)])]
    )
    found = grouped_linear(x.bfloat16(), weight, ends).float()
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    assert (grouped_linear(x, weight, ends) - expected).abs().max() < 1e-4


def test_polar_factors_are_orthogonal_in_its_own_type() -> None:
    matrices = torch.randn(3, 128, 64, generator=torch.Generator().manual_seed(0)).to(GPU)
    singular = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert singular.min() > 0.7 and singular.max() < 1.2


@pytest.mark.parametrize("name", ["experts", "qwen3", "llama"])
def test_the_engine_answers_as_on_the_cpu_and_training_agrees(name: str) -> None:
    answers, shape = [], SHAPES[name]
    prompts = [some_tokens(1, n)[0][0].tolist() for n in (3, 17, 40)]
    for device in (torch.device("cpu"), GPU):
        learner = learner_on(device, shape, matrices="adamw")
        learner.decoder.eval()
        engine = Engine(learner.decoder, 8, 80)
        greedy = engine.generate([Request(p, Sampling(0.0, max_tokens=20)) for p in prompts])
        answers.append([c.token_ids for group in greedy for c in group])
    assert answers[0] == answers[1]
    drawn = engine.generate([Request(p, Sampling(max_tokens=20, seed=i), 3) for i, p in enumerate(prompts)])
    for prompt, group in zip(prompts, drawn):
        for completion in group:
            batch = pack([Document(prompt + completion.token_ids, {"policy_weight": 1.0}, len(prompt))], 80)
            scored = learner.logprobs(batch).cpu()[batch.policy_weight != 0]  # type: ignore[operator]
            assert (scored - torch.tensor(completion.logprobs)).abs().max() < 1e-3


def test_a_saved_state_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    batches = [some_batch(4 + i) for i in range(8)]

    def losses(learner: Learner, some: list) -> list[float]:
        found = []
        for batch in some:
            found.append(learner.forward_backward([batch])["loss"])
            learner.optim_step()
        return found

    learner = learner_on(GPU, EXPERTS, "bfloat16")
    losses(learner, batches[:4])
    learner.save(tmp_path, 4)
    undisturbed = losses(learner, batches[4:])
    again = learner_on(GPU, EXPERTS, "bfloat16")
    again.load(tmp_path)
    assert losses(again, batches[4:]) == undisturbed


def test_the_reference_of_a_divergence_lies_on_the_same_device() -> None:
    learner = learner_on(GPU, GROUPED | {"model_type": "llama"}, matrices="adamw")
    assert frozen_copy(learner.decoder, GPU).norm.weight.device == GPU


def test_programs_run_there_and_say_so(tmp_path: Path) -> None:
    base, rl = tmp_path / "base", tmp_path / "rl"
    made = finish(start("pretrain", *PRETRAIN, "--folder", base))
    assert made.returncode == 0, made.stderr
    words = [f"model={base / 'model'}", "world=countdown", "kl_weight=0.01", *RL]
    practised = finish(start("rl", *words, "--folder", rl))
    assert practised.returncode == 0, practised.stderr
    ledger = json.loads((rl / "ledger.json").read_text())
    assert torch.cuda.get_device_name(0) in json.dumps(ledger)
