"""Experts and latent attention against a dense model of equal compute, by wall clock, on this machine.

The demonstration's corpus and optimizer; every shape has the same active parameters. Held-out loss after equal seconds and
after equal tokens, training and decoding speed. Two factors, each on and off, so that they are told apart.
"""

import statistics
import time

import torch
from side_by_side import CORES, arguments, tell

from agartha.data.loader import Loader
from agartha.data.mixture import Mixture, SourceSpec
from agartha.engine.engine import Engine
from agartha.engine.request import Request
from agartha.engine.sampler import Sampling
from agartha.learn.config import LearnerConfig, OptimizerConfig, ScheduleConfig
from agartha.learn.learner import Learner
from agartha.learn.parallel import Parallel, launch
from agartha.learn.schedule import lr_scale
from agartha.model.config import ModelConfig
from agartha.model.decoder import Decoder
from agartha.model.ops import target_logprobs
from agartha.text.tokenizer import Tokenizer

BASE = {"vocab_size": 128, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "rope_theta": 1000.0}
LATENT = {"kv_lora_rank": 64, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32}
GROUPED = {"model_type": "llama", "head_dim": 32}
EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "intermediate_size": 384}
DENSE = {"n_routed_experts": 0, "intermediate_size": 384}
SHAPES = {
    "latent + experts": LATENT | EXPERTS,
    "latent + dense": LATENT | DENSE,
    "grouped + experts": GROUPED | EXPERTS,
    "grouped + dense": GROUPED | DENSE,
}
SOURCE = SourceSpec(name="countdown", kind="countdown", parameters={"sizes": [0.15, 0.45, 0.4], "searchers": 0.6})
OPTIMIZER = OptimizerConfig(matrix_learning_rate=0.03, embedding_learning_rate=0.003, weight_decay=0.0)


def worker(parallel: Parallel, shape: dict, seconds: float, seed: int) -> dict[str, float]:
    """Train for `seconds`, the learning rate following the clock; returns loss and speeds."""
    torch.manual_seed(seed)
    mixture = Mixture.open([SOURCE])
    tokenizer = Tokenizer.from_words(mixture.words() or [])
    learner = Learner(Decoder(ModelConfig.model_validate(BASE | shape)), LearnerConfig(optimizer=OPTIMIZER), parallel)
    loader = Loader(mixture, tokenizer, 512, 12 // parallel.world_size, seed, parallel.rank, parallel.world_size)
    held = next(Loader(mixture, tokenizer, 512, 48, 10**6))
    began, tokens = time.perf_counter(), 0
    for batch in loader:
        spent = max(parallel.all_gather_object(time.perf_counter() - began)) / seconds
        if spent >= 1:
            break
        learner.forward_backward([batch])
        learner.optim_step(lr_scale(max(spent, 1e-3), ScheduleConfig(warmup=0.03, decay=0.5)), balance=spent < 0.9)
        tokens += 12 * 512
    with torch.no_grad():
        learner.decoder.eval()
        logits = learner.decoder.logits(learner.decoder(held.input_ids, held.positions, held.document_start))
        weight = held.cross_entropy_weight
        assert weight is not None
        loss = float((-target_logprobs(logits, held.targets) * weight).sum() / weight.sum())
    engine = Engine(learner.decoder, 128, 160)
    wanted = [Request([1, 2, 3], Sampling(1.0, max_tokens=100, seed=i)) for i in range(128)]
    engine.generate(wanted)
    at = time.perf_counter()
    engine.generate(wanted)
    decode = 128 * 100 / (time.perf_counter() - at)
    return {"loss": loss, "tokens": tokens, "tokens_per_second": tokens / seconds, "decode_tokens_per_second": decode}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    seconds = 3.0 if options.quick else options.seconds
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SHAPES}
    for seed in range(1 if options.quick else options.rounds):
        for name, shape in SHAPES.items():
            found[name].append(launch(worker, CORES, shape, seconds, seed))
    for name, results in found.items():
        config = ModelConfig.model_validate(BASE | SHAPES[name])
        medians = {key: statistics.median(result[key] for result in results) for key in results[0]}
        spread = [min(r["loss"] for r in results), max(r["loss"] for r in results)]
        tell(
            f"architecture: {name}",
            options,
            seconds=seconds,
            parameters=config.num_parameters(),
            active=config.num_parameters(active=True),
            loss_spread=spread,
            **medians,
        )


if __name__ == "__main__":
    main()
