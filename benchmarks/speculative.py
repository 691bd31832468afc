"""Does guessing ahead pay? New tokens/s with and without guesses, and how many were right, by turns, the same texts either way.

`mtp`: a model trained here with one prediction module (the demonstration's shape and corpus, a few minutes' pretraining), on
countdown problems. `lookup`: the same, and a published model on prompts it answers in its own words or by copying.
"""

import tempfile
import time
from pathlib import Path

import torch
from decode import CACHED
from side_by_side import CORES, arguments, compare

from agartha.core.config import load as read_recipe
from agartha.engine.engine import Engine
from agartha.engine.load import load
from agartha.engine.request import Request
from agartha.engine.sampler import Sampling
from agartha.model.decoder import Decoder
from agartha.pretrain.program import run as pretrain
from agartha.text.chat import ChatTemplate
from agartha.worlds.load import load_world
from agartha.zero.config import ZeroConfig

STORY = (
    "The lighthouse keeper counted the ships each evening and wrote their names into a long green book that nobody else "
    "had ever opened. When the fog came he rang the bell once for every name, slowly, until the harbour answered."
)
COPY = [
    f"Repeat this text exactly, word for word:\n{STORY}",
    f"Correct the spelling, and change nothing else:\n{STORY}",
]
OWN = ["Tell me about the sea.", "Write a short story about a clock.", "Why is the sky blue?", "What is bread made of?"]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="of pretraining, for the model with a module")
    parser.add_argument("--trained", type=Path, help="a model folder with a prediction module, instead of training one")
    parser.add_argument("--model", type=Path, default=CACHED, help="a GGUF file; by default the one the tests fetch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trained = load(options.trained or _trained(Path(folder), 20_000 if options.quick else options.tokens))
    torch.set_num_threads(CORES)
    world = load_world("countdown")
    problems = [trained.tokenizer.encode(world.task(seed, 4).prompt) for seed in range(64)]
    published = load(options.model)
    template = ChatTemplate.of(published.template, published.tokenizer)
    copies, own = (
        [published.tokenizer.encode(template.render([{"role": "user", "content": text}])) for text in texts]
        for texts in (COPY, OWN)
    )
    for temperature in (0.0, 1.0):
        for rows in (1, 16):
            for draft in ("mtp", "lookup"):
                name = f"{draft}, countdown, {rows} at once, temperature {temperature:g}"
                _measure(name, trained.decoder, problems, (rows, draft, temperature, trained.eos_ids), options)
    for what, prompts in (("copying", copies), ("own words", own)):
        for rows in (1, len(prompts)):
            setting = (rows, "lookup", 0.0, published.eos_ids)
            _measure(f"lookup, {what}, {rows} at once, {published.name}", published.decoder, prompts, setting, options)


def _trained(folder: Path, tokens: int) -> Path:
    recipe = read_recipe(ZeroConfig, "zero", [f"pretrain.tokens={tokens}", "pretrain.model.num_nextn_predict_layers=1"])
    config = recipe.pretrain.model_copy(update={"workers": recipe.workers})
    return Path(pretrain(config, folder, ["benchmarks/speculative.py"])["model"])


def _measure(name: str, decoder: Decoder, prompts: list[list[int]], setting: tuple, options) -> None:
    rows, draft, temperature, eos_ids = setting
    new = 16 if options.quick else 128
    sampling = [Sampling(temperature, max_tokens=new, seed=seed, stop_ids=eos_ids) for seed in range(len(prompts))]
    requests = [Request(ids, how) for ids, how in zip(prompts, sampling)][: 64 if rows > 1 else 16]
    engines = [Engine(decoder, rows, 512, draft=how) for how in (draft, None)]
    texts: list[list[list[int]]] = [[], []]

    def side(which: int):
        def measure() -> float:
            began = time.perf_counter()
            found = engines[which].generate(requests)
            texts[which] = [completion.token_ids for group in found for completion in group]
            return sum(map(len, texts[which])) / (time.perf_counter() - began)

        return measure

    side(0)(), side(1)()
    seen = engines[0].stats()
    share = seen.accepted_tokens / max(1, seen.drafted_tokens)
    same = sum(a == b for a, b in zip(*texts)) / len(requests)
    steps = seen.steps / max(1, engines[1].stats().steps)
    compare(name, side(0), side(1), "tokens/s", options, accepted=round(share, 3), drafted=seen.drafted_tokens,
            same_text=same, steps_ratio=round(steps, 3))  # fmt: skip


if __name__ == "__main__":
    main()
