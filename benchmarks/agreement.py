"""The same greedy text as llama.cpp? One GGUF file, 40 varied prompts, 48 tokens each, and how close it was where they part.

Four sides: ours as it serves (packed weights, activations rounded to 8 bits), ours in float32 (the file's values exactly), and
llama.cpp with and without its flash attention; the last two say how far llama.cpp agrees with itself. For a pair: the share of
prompts with the same first 16 and the same 48 tokens, and at the first different token how far apart the two candidates' logits
were, in the eyes of each side (0 would be a tie; a row's logits spread over about 30).
"""

import importlib.metadata
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from decode import CACHED, LlamaCpp
from side_by_side import CORES, arguments, tell

from agartha.engine.load import load
from agartha.engine.steppers import PagedPacked, PagedTorch
from agartha.text.chat import ChatTemplate

NEW, FIRST, BLOCK = 48, 16, 16
SUBJECTS = ["the sea", "black holes", "bread", "France", "prime numbers"]
OPEN = ["Tell me about {}.", "Write a short poem about {}.", "List three facts about {}.", "Once upon a time, {}"]
CLOSED = [
    "What is the capital of France?", "What is 2+2?", "Count from 1 to 20.", "Recite the alphabet.", "Name the days of the week.",
    "Who wrote Romeo and Juliet?", "Translate 'good morning' to French.", "What is the opposite of hot?",
    "How many legs does a spider have?", "What is the chemical formula of water?", "Spell the word 'banana'.",
    "What is the largest planet in the solar system?", "What is the square root of 81?", "Write hello world in Python.",
    "What does CPU stand for?", "Which ocean is the largest?", "What year did World War II end?", "Name three primary colours.",
    "Repeat after me: the quick brown fox jumps over the lazy dog.", "Is the Earth flat?",
]  # fmt: skip
Text = tuple[list[int], list[np.ndarray]]
"""Token ids, and the logits [V] each was chosen from."""


@dataclass(frozen=True)
class Pair:
    first: float
    all: float
    gaps: list[float]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", type=Path, default=CACHED, help="a GGUF file; by default the one the tests fetch")
    options = parser.parse_args()
    torch.set_num_threads(CORES)
    loaded = load(options.model)
    template = ChatTemplate.of(loaded.template, loaded.tokenizer)
    texts = [form.format(subject) for form in OPEN for subject in SUBJECTS] + CLOSED
    prompts = [
        loaded.tokenizer.encode(text if i // 5 == 3 else template.render([{"role": "user", "content": text}]))
        for i, text in enumerate(texts)
    ][:: 8 if options.quick else 1]
    sides: dict[str, Callable[[list[int]], Text]] = {
        "ours": _ours(PagedPacked(loaded.decoder, 1024)),
        "ours float32": _ours(PagedTorch(load(options.model, "float32").decoder, 1024)),
        "llama.cpp": _peer(LlamaCpp(options.model, CORES)),
        "llama.cpp without flash": _peer(LlamaCpp(options.model, CORES, llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED)),
    }
    found = {name: [side(prompt) for prompt in prompts] for name, side in sides.items()}
    version = f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"
    for a, b in itertools.combinations(sides, 2):
        pair = compare(found[a], found[b])
        gaps = {"median_gap": float(np.median(pair.gaps)), "largest_gap": max(pair.gaps)} if pair.gaps else {}
        tell(f"{a} = {b}", options, prompts=len(prompts), same_first_16=pair.first, same_48=pair.all,
             parted=len(pair.gaps) // 2, **gaps, model=options.model.name, peer_version=version)  # fmt: skip


def compare(ours: list[Text], theirs: list[Text]) -> Pair:
    gaps = []
    for (a, a_logits), (b, b_logits) in zip(ours, theirs):
        at = next((i for i in range(NEW) if a[i] != b[i]), None)
        if at is not None:
            gaps += [abs(float(logits[at][a[at]] - logits[at][b[at]])) for logits in (a_logits, b_logits)]
    pairs = [(a, b) for (a, _), (b, _) in zip(ours, theirs)]
    return Pair(
        float(np.mean([a[:FIRST] == b[:FIRST] for a, b in pairs])), float(np.mean([a == b for a, b in pairs])), gaps
    )


def _ours(stepper: PagedPacked | PagedTorch) -> Callable[[list[int]], Text]:
    def write(prompt: list[int]) -> Text:
        table = torch.arange(1024 // BLOCK, dtype=torch.int32).view(1, -1)
        ids, found, logits, at = prompt, [], [], 0
        for _ in range(NEW):
            count = len(ids)
            row = torch.zeros(count, dtype=torch.int64)
            last = torch.tensor([count - 1])
            logits.append(stepper.step(torch.tensor(ids), at + torch.arange(count), row, table, last)[0].numpy().copy())
            at, ids = at + count, [int(logits[-1].argmax())]
            found += ids
        return found, logits

    return write


def _peer(model: LlamaCpp) -> Callable[[list[int]], Text]:
    def write(prompt: list[int]) -> Text:
        logits: list[np.ndarray] = []
        (found,) = model.generate([prompt], NEW, logits)
        return found, logits

    return write


if __name__ == "__main__":
    with torch.inference_mode():
        main()
