"""A published model on this machine: ours against llama.cpp, the same GGUF file, the same threads, by turns.

`decode_batch_1`, `decode_batch_16`: new tokens/s of 1 and 16 greedy completions, their short prompts included.
`prefill_512`: prompt tokens/s to the first token of a new prompt. Then, without a peer: the time to the first token of a prompt
of 2,000 tokens, first and again, and the peak memory of a process that loads the file and answers.
"""

import importlib.metadata
import subprocess
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from side_by_side import CORES, arguments, compare, tell

from agartha.engine.engine import Engine
from agartha.engine.load import load
from agartha.engine.request import Request
from agartha.engine.sampler import Sampling

CACHED = Path.home() / ".cache" / "agartha" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT, ROWS, LENGTH = 16, 16, 2304
MEMORY = """
import sys
import torch
from agartha.engine.engine import Engine
from agartha.engine.load import load
from agartha.engine.request import Request
from agartha.engine.sampler import Sampling
peak = lambda: next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
torch.set_num_threads(int(sys.argv[2]))
torch.ones(64, 64) @ torch.ones(64, 64)
before = peak()
engine = Engine(load(sys.argv[1]).decoder, max_rows=1, max_length=1024)
engine.generate([Request(list(range(100, 612)), Sampling(0.0, max_tokens=32))])
print(before, peak(), engine.stepper.cache_bytes)
"""


class LlamaCpp:
    """Greedy completions by its own C interface: one batch a step, as its server does."""

    def __init__(self, path: Path, threads: int, flash: int = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO):
        llama_cpp.llama_log_set(_quiet, None)
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = ROWS * 512, ROWS
        settings.n_batch = settings.n_ubatch = 512
        settings.flash_attn_type = flash
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(model, settings)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def generate(self, prompts: list[list[int]], new: int, seen: list[np.ndarray] | None = None) -> list[list[int]]:
        """seen: where the logits of each choice are kept."""
        self.seen = seen
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        found: list[list[int]] = [[] for _ in prompts]
        work = [(row, at, token, at + 1 == len(ids)) for row, ids in enumerate(prompts) for at, token in enumerate(ids)]
        for step in range(new):
            for row, token in self._decode(work):
                found[row].append(token)
            work = [(row, len(prompts[row]) + step, ids[-1], True) for row, ids in enumerate(found)]
        return found

    def _decode(self, work: list[tuple[int, int, int, bool]]) -> list[tuple[int, int]]:
        batch = self.batch
        batch.n_tokens = len(work)
        for i, (row, position, token, is_wanted) in enumerate(work):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = row, is_wanted
        assert llama_cpp.llama_decode(self.context, batch) == 0, "llama.cpp could not decode"
        wanted = [(i, row) for i, (row, *_, is_wanted) in enumerate(work) if is_wanted]
        if self.seen is not None:
            self.seen += [self._logits(i).copy() for i, _ in wanted]
        return [(row, int(self._logits(i).argmax())) for i, row in wanted]

    def _logits(self, i: int) -> np.ndarray:
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, i), (self.vocab,))


@llama_cpp.llama_log_callback
def _quiet(level, text, data) -> None:
    pass


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", type=Path, default=CACHED, help="a GGUF file; by default the one the tests fetch")
    options = parser.parse_args()
    torch.set_num_threads(CORES)
    new = 8 if options.quick else 128
    engine = Engine(load(options.model).decoder, ROWS, LENGTH)
    peer = LlamaCpp(options.model, CORES)
    draw = np.random.default_rng(0)
    facts = {"model": options.model.name, "threads": CORES, "peer_version": f"llama-cpp-python {_version()}"}

    def prompts(count: int, length: int) -> list[list[int]]:
        return draw.integers(100, peer.vocab, (count, length)).tolist()

    def ours(some: list[list[int]], tokens: int) -> None:
        engine.generate([Request(prompt, Sampling(0.0, max_tokens=tokens)) for prompt in some])

    def rate(side, count: int, length: int, tokens: int, counted: int):
        def measure() -> float:
            some = prompts(count, length)
            began = time.perf_counter()
            side(some, tokens)
            return counted / (time.perf_counter() - began)

        return measure

    for name, count, length, tokens, counted in (
        ("decode_batch_1", 1, PROMPT, new, new),
        ("decode_batch_16", ROWS, PROMPT, new, ROWS * new),
        ("prefill_512", 1, 512, 1, 512),
    ):
        sides = [rate(side, count, length, tokens, counted) for side in (ours, peer.generate)]
        for side in sides:
            side()
        compare(name, *sides, "tokens/s", options, new_tokens=tokens, prompt_tokens=length, rows=count, **facts)
    _first_token(engine, prompts(3, 2000), options, facts)
    _memory(options, facts)


def _first_token(engine: Engine, prompts: list[list[int]], options, facts: dict) -> None:
    seconds = []
    for prompt in prompts:
        for _ in range(2):
            began = time.perf_counter()
            engine.generate([Request(prompt, Sampling(0.0, max_tokens=1))])
            seconds.append(time.perf_counter() - began)
    first, again = np.median(seconds[::2]), np.median(seconds[1::2])
    tell("first_token_2000", options, first_s=float(first), again_s=float(again), share=float(again / first), **facts)


def _memory(options, facts: dict) -> None:
    command = [sys.executable, "-c", MEMORY, str(options.model), str(CORES)]
    before, peak, cache = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    size = options.model.stat().st_size
    share = (peak - before - cache) / size
    tell("memory", options, file=size, interpreter=before, peak=peak, cache=cache, over_file=share, **facts)


def _version() -> str:
    return importlib.metadata.version("llama-cpp-python")


if __name__ == "__main__":
    main()
