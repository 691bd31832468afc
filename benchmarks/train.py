"""Training tokens per second: ours over transformers, same shape, same batch, AdamW on both sides; and the share of the machine.

Ours runs as agartha's programs do: on a CPU one worker of one thread per core, gradients summed over them; on a GPU one worker.
"""

import time

import torch
from models import config, peer
from side_by_side import CORES, arguments, compare, tell

from agartha.data.batch import Batch
from agartha.learn.config import LearnerConfig, OptimizerConfig
from agartha.learn.learner import Learner
from agartha.learn.parallel import Parallel, launch, local_device
from agartha.model.config import ModelConfig
from agartha.model.decoder import Decoder

ROWS, LENGTH = 32, 256
DEVICE = local_device(0)
LARGE_ROWS = 8 if DEVICE.type == "cpu" else 256
WORKERS = CORES if DEVICE.type == "cpu" else 1
ADAMW = LearnerConfig(
    optimizer=OptimizerConfig(matrices="adamw", matrix_learning_rate=1e-3), precision="auto", balance_loss_weight=0
)
WIDE = {
    "hidden_size": 768, "intermediate_size": 1536, "moe_intermediate_size": 384, "num_attention_heads": 12, "kv_lora_rank": 192,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64, "num_hidden_layers": 6,
}  # fmt: skip
MUON = LearnerConfig(precision="auto", balance_loss_weight=0)


def batch_of(rows: int, length: int, vocab: int) -> Batch:
    ids = torch.randint(0, vocab, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(length).expand(rows, length).contiguous()
    start = torch.zeros(rows, length, dtype=torch.int32)
    return Batch(ids[:, :-1].contiguous(), positions, start, ids[:, 1:].contiguous(), torch.ones(rows, length))


def worker(
    parallel: Parallel, model: ModelConfig, learner_config: LearnerConfig, rows: int, length: int, steps: int
) -> float:
    learner = Learner(Decoder(model), learner_config, parallel)
    batch = batch_of(rows // parallel.world_size, length, model.vocab_size)
    for step in range(steps + 2):
        if step == 2:
            began = time.perf_counter()
        learner.forward_backward([batch])
        learner.optim_step()
    wait()
    return rows * length * steps / (time.perf_counter() - began)


def ours(
    model: ModelConfig, learner_config: LearnerConfig, rows: int = ROWS, length: int = LENGTH, steps: int = 8
) -> float:
    return launch(worker, WORKERS, model, learner_config, rows, length, steps)


def wait() -> None:
    """For what a GPU still has to do."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def theirs(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, dtype: torch.dtype, rows: int = ROWS
) -> float:
    ids = torch.randint(0, model.config.vocab_size, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    ids = ids.to(DEVICE)
    for step in range(steps + 1):
        if step == 1:
            wait()
            began = time.perf_counter()
        with torch.autocast(DEVICE.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    wait()
    return rows * LENGTH * steps / (time.perf_counter() - began)


def peak(seconds: float = 2.0, size: int = 2048) -> float:
    """Measured bfloat16 matrix product, FLOP/s."""
    a = torch.randn(size, size, device=DEVICE).bfloat16()
    a @ a
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        a @ a
        count += 1
        if count % 64 == 0:
            wait()
    wait()
    return 2 * size**3 * count / (time.perf_counter() - began)


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(CORES)
    steps = 1 if options.quick else 3
    second = ("train_float32", {}, torch.float32, ROWS)
    if DEVICE.type == "cuda":  # which a small model cannot fill
        second = ("train_large_bfloat16", WIDE, torch.bfloat16, LARGE_ROWS)
    for name, shape, dtype, rows in (("train_bfloat16", {}, torch.bfloat16, ROWS), second):
        model = peer(**shape).to(DEVICE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        compare(
            name,
            lambda shape=shape, rows=rows: ours(config(**shape), ADAMW, rows, steps=2 * steps),
            lambda model=model, optimizer=optimizer, dtype=dtype, rows=rows: theirs(
                model, optimizer, steps, dtype, rows
            ),
            "tokens/s",
            options,
            peer_precision=str(dtype),
            ours_precision="auto",
            workers=WORKERS,
            parameters=config(**shape).num_parameters(),
        )
    tell("train_muon", options, tokens_per_second=ours(config(), MUON, steps=2 * steps))
    ceiling = peak(0.2 if options.quick else 2.0, 2048 if DEVICE.type == "cpu" else 8192)
    for name, shape, rows in (("peak_share_small", config(), ROWS), ("peak_share_large", config(**WIDE), LARGE_ROWS)):
        speed = ours(shape, ADAMW, rows, LENGTH, 1 if options.quick else 4)
        flops = speed * shape.flops_per_token(LENGTH / 2)
        tell(
            name,
            options,
            parameters=shape.num_parameters(),
            tokens_per_second=speed,
            gflops=flops / 1e9,
            peak_gflops=ceiling / 1e9,
            share=flops / ceiling,
        )


if __name__ == "__main__":
    main()
