"""Sampled tokens per second at batch 1, 32 and 256: ours over `transformers.generate`, same shape, temperature 1, no stop."""

import time

import torch
from models import config, peer
from side_by_side import CORES, arguments, compare

from agartha.engine.engine import Engine
from agartha.engine.request import Request
from agartha.engine.sampler import Sampling
from agartha.learn.precision import compute_dtype
from agartha.model.decoder import Decoder

PROMPT, NEW = 16, 96


def main() -> None:
    options = arguments(__doc__).parse_args()
    new = 8 if options.quick else NEW
    torch.set_num_threads(CORES)
    decoder = Decoder(config()).eval()
    decoder.compute_dtype = compute_dtype("auto", torch.device("cpu"))
    model = peer().eval()
    engine = Engine(decoder, 256, PROMPT + NEW)
    for batch in (1, 32, 256):
        prompts = torch.randint(1, 512, (batch, PROMPT), generator=torch.Generator().manual_seed(batch))
        requests = [Request(prompt.tolist(), Sampling(1.0, max_tokens=new, seed=i)) for i, prompt in enumerate(prompts)]

        def ours(requests=requests, batch=batch) -> float:
            began = time.perf_counter()
            engine.generate(requests)
            return batch * new / (time.perf_counter() - began)

        def theirs(prompts=prompts, batch=batch, dtype=torch.float32) -> float:
            began = time.perf_counter()
            with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
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
            threads=CORES,
        )


if __name__ == "__main__":
    main()
