"""Sampled tokens per second at batch 1, 32 and 256: ours over `transformers.generate`, same shape, temperature 1, no stop.

On a CPU a batch large enough to be shared goes through one worker a core, as rollouts of reinforcement learning do.
"""

import time

import torch
from models import config, peer
from side_by_side import CORES, arguments, compare

from agartha.engine.engine import Engine
from agartha.engine.request import Request
from agartha.engine.sampler import Sampling
from agartha.learn.parallel import Parallel, launch, local_device
from agartha.learn.precision import compute_dtype
from agartha.model.decoder import Decoder

DEVICE = local_device(0)
PROMPT, NEW, SHARED = 16, 96, 64 if DEVICE.type == "cpu" else 256


def requests_of(batch: int, new: int) -> list[Request]:
    prompts = torch.randint(1, 512, (batch, PROMPT), generator=torch.Generator().manual_seed(batch))
    return [Request(prompt.tolist(), Sampling(1.0, max_tokens=new, seed=i)) for i, prompt in enumerate(prompts)]


def engine_of(rows: int) -> Engine:
    decoder = Decoder(config()).eval().to(DEVICE)
    decoder.compute_dtype = compute_dtype("auto", DEVICE)
    return Engine(decoder, rows, PROMPT + NEW)


def worker(parallel: Parallel, batch: int, new: int) -> float:
    """Tokens per second of all workers together."""
    mine = requests_of(batch, new)[parallel.rank :: parallel.world_size]
    engine = engine_of(len(mine))
    engine.generate(mine)
    parallel.barrier()
    began = time.perf_counter()
    engine.generate(mine)
    parallel.barrier()
    return batch * new / (time.perf_counter() - began)


def main() -> None:
    options = arguments(__doc__).parse_args()
    new = 8 if options.quick else NEW
    torch.set_num_threads(CORES)
    model, engine = peer().eval().to(DEVICE), engine_of(SHARED)
    for batch in (1, 32, 256):
        requests = requests_of(batch, new)
        prompts = torch.tensor([request.prompt_ids for request in requests]).to(DEVICE)

        def ours(requests=requests, batch=batch) -> float:
            if batch > SHARED:
                return launch(worker, CORES, batch, new)
            began = time.perf_counter()
            engine.generate(requests)
            return batch * new / (time.perf_counter() - began)

        def theirs(prompts=prompts, batch=batch, dtype=torch.float32) -> float:
            began = time.perf_counter()
            with torch.no_grad(), torch.autocast(DEVICE.type, dtype=dtype, enabled=dtype != torch.float32):
                model.generate(
                    prompts,
                    attention_mask=torch.ones_like(prompts),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    max_new_tokens=new,
                    min_new_tokens=new,
                    pad_token_id=0,
                    use_cache=True,
                )
            return batch * new / (time.perf_counter() - began)

        ours(), theirs()
        faster = max((torch.float32, torch.bfloat16), key=lambda dtype: theirs(dtype=dtype))
        compare(
            f"rollout_batch_{batch}",
            ours,
            lambda theirs=theirs, dtype=faster: theirs(dtype=dtype),
            "tokens/s",
            options,
            new_tokens=new,
            peer_precision=str(faster),
            workers=CORES if batch > SHARED else 1,
            cores=CORES,
        )


if __name__ == "__main__":
    main()
