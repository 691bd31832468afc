"""llama.cpp as the reference for GGUF files, by `cyllama`, whose wheels hold it compiled: no test waits for a compiler."""

from pathlib import Path

import pytest
import torch

FLASH_ATTENTION_OFF, FLOAT32 = 0, 0  # of llama.h and ggml.h


class LlamaCpp:
    """One GGUF file opened by llama.cpp. Skips the test where `cyllama` has no wheel for the machine."""

    def __init__(self, path: Path):
        self.api = pytest.importorskip("cyllama.llama.llama_cpp")
        self.api.disable_logging()

        class Model(self.api.LlamaModel):  # cyllama 0.2's `get_logits_ith` asks the model for what it lacks
            n_vocab = property(lambda model: model.get_vocab().n_vocab)

        self.model = Model(str(path), self.api.LlamaModelParams(), verbose=False)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, control tokens included, nothing put before or behind."""
        return list(self.model.get_vocab().tokenize(text, False, True))

    def logits(self, ids: list[int]) -> torch.Tensor:
        """[len(ids), vocabulary], each position's, in float32 all through."""
        settings = self.api.LlamaContextParams()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 64
        settings.n_threads = settings.n_threads_batch = 1
        settings.flash_attn_type, settings.type_k, settings.type_v = FLASH_ATTENTION_OFF, FLOAT32, FLOAT32
        context = self.api.LlamaContext(self.model, settings, verbose=False)
        batch = self.api.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1, verbose=False)
        for position, token in enumerate(ids):
            batch.add(token, position, [0], True)
        context.decode(batch)
        return torch.tensor([context.get_logits_ith(position) for position in range(len(ids))])
