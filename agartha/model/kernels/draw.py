"""Drawing tokens, by `draw.c`."""

import numpy as np
import torch
from torch import Tensor

from agartha.model.kernels.build import library
from agartha.model.kernels.linear import INT, kernels, pointer


def drawable(logits: Tensor) -> bool:
    """Whether the kernel takes this tensor."""
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and library() is not None


def draw(logits: Tensor, scale: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """logits [S, V], divided by `scale` [S] -> tokens [S] and their log-probabilities [S], NaN where a logit is.

    share [S]: the token at which the running sum of probabilities passes it; below 0, the likeliest one.
    """
    logits, (rows, vocab) = logits.contiguous(), logits.shape
    inverse, shares = torch.from_numpy(1 / scale).float(), torch.from_numpy(share).double()
    chosen, logprobs = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    sizes, threads = (INT(rows), INT(vocab)), INT(torch.get_num_threads())
    parts = (pointer(x) for x in (inverse, shares, chosen, logprobs))
    kernels().draw(pointer(logits), *sizes, *parts, threads)
    return chosen.numpy(), logprobs.numpy()
