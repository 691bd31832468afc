"""A teacher at the learner's side: a frozen decoder whose distribution the divergence term draws the learner to."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agartha.data.batch import Batch
from agartha.model.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Teacher:
    """Shapes: N learnt positions of a batch, in order; V, V' rows of the two vocabularies."""

    decoder: Decoder
    """Frozen and in eval mode, on the learner's device; its weights may be packed."""
    divergence: Callable[[Tensor, Tensor], Tensor]
    """(student's logits [N, V], teacher's logits [N, V']) -> the divergence at each [N], in nats."""

    def divergences(self, batch: Batch, places: Tensor, student_logits: Tensor) -> Tensor:
        """places [N]: which positions of the flattened batch `student_logits` [N, V] belong to -> [N]."""
        return self.divergence(student_logits, self.logits(batch, places))

    @torch.no_grad()
    def logits(self, batch: Batch, places: Tensor) -> Tensor:
        """[N, V'] float32 at those places, each token seeing what it sees in `batch`."""
        hidden = self.decoder(batch.input_ids, batch.positions, batch.document_start)
        return self.decoder.logits(hidden.flatten(0, 1).index_select(0, places))
