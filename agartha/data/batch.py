"""A batch: packed rows of tokens, and per-token weights that say what is learnt from them.

Shapes: B rows, T positions. Where a term is not learnt at all, its fields are None.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of packed documents. Position t of a field belongs to the prediction of token t + 1."""

    input_ids: Tensor
    """[B, T] int64"""
    positions: Tensor
    """[B, T] int64, from 0 in each document"""
    document_start: Tensor
    """[B, T] int32: where the document of t begins in its row; padding is a document of its own"""
    targets: Tensor
    """[B, T] int64: the next token of the same document, -100 where there is none"""
    cross_entropy_weight: Tensor | None = None
    policy_weight: Tensor | None = None
    divergence_weight: Tensor | None = None
    """[B, T] float32, 0 for tokens not learnt"""
    advantages: Tensor | None = None
    sampling_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    """[B, T] float32"""

    @property
    def num_tokens(self) -> int:
        """Tokens of documents, without padding."""
        return int((self.targets >= 0).sum()) + self.num_documents

    @property
    def num_documents(self) -> int:
        """Documents of at least two tokens: each ends in one position without a target."""
        ends = (self.targets[:, :-1] >= 0) & (self.targets[:, 1:] < 0)
        return int(ends.sum()) + int((self.targets[:, -1] >= 0).sum())

    def learnt(self) -> Tensor:
        """Which positions some term learns, as indices [N] int64 into the flattened [B * T], ascending."""
        weights = (self.cross_entropy_weight, self.policy_weight, self.divergence_weight)
        counts = torch.zeros_like(self.targets, dtype=torch.bool)
        for weight in weights:
            if weight is not None:
                counts |= weight != 0
        return counts.flatten().nonzero().squeeze(1)

    def to(self, device: torch.device | str) -> "Batch":
        return self._map(lambda tensor: tensor.to(device))

    def microbatches(self, rows: int) -> Iterator["Batch"]:
        """Parts of at most `rows` rows, in order."""
        for first in range(0, len(self.input_ids), rows):
            yield self._map(lambda tensor: tensor[first : first + rows])  # noqa: B023 (used at once)

    def _map(self, change) -> "Batch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items() if tensor is not None})
