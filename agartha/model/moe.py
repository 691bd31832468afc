"""DeepSeekMoE with balancing free of an auxiliary loss (DeepSeek-V3, arXiv:2412.19437 §2.1.2), and the softmax routers of
DeepSeek-V2 (arXiv:2405.04434 §2.2) and Qwen3, which are read and run but not balanced.

Shapes: S tokens (rows and positions flattened), E experts, K chosen per token, H hidden, I expert width.
The selection bias decides who is chosen and never enters the gate; it is stepped from global counts by the learner.
"""

import torch
from torch import Tensor, nn

from agartha.model.config import ModelConfig
from agartha.model.layers import MLP
from agartha.model.ops import from_experts, grouped_linear, place_by_expert, swiglu, to_experts


class Router(nn.Module):
    """Affinities of a token to every expert, a selection limited to the best groups, gates normalised over the chosen."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.e_score_correction_bias: Tensor
        self.expert_load: Tensor
        self.is_biased = config.topk_method == "noaux_tc"
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts), persistent=self.is_biased)
        self.register_buffer("expert_load", torch.zeros(config.n_routed_experts), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [S, H] -> chosen experts [S, K], gates [S, K] float32, affinities [S, E] float32."""
        config = self.config
        logits = nn.functional.linear(x.float(), self.weight.float())
        scores = logits.sigmoid() if config.scoring_func == "sigmoid" else logits.softmax(-1)
        in_backward = torch._C._current_graph_task_id() != -1  # recomputation must not count twice
        counts = self.training and torch.is_grad_enabled() and not in_backward
        with torch.no_grad():
            chosen = self._select(scores + self.e_score_correction_bias if self.is_biased else scores)
            if counts:
                self.expert_load += torch.bincount(chosen.flatten(), minlength=config.n_routed_experts)
        gates = scores.gather(1, chosen)
        if config.norm_topk_prob:
            gates = gates / (gates.sum(-1, keepdim=True) + 1e-20)
        return chosen, gates * config.routed_scaling_factor, scores

    def _select(self, affinities: Tensor) -> Tensor:
        config = self.config
        if config.n_group > 1 and config.topk_method != "greedy":
            grouped = affinities.unflatten(1, (config.n_group, -1))
            group_scores = grouped.topk(min(2 if self.is_biased else 1, grouped.shape[-1]), -1).values.sum(-1)
            best = group_scores.topk(config.topk_group, -1).indices
            allowed = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(1, best, True)
            affinities = grouped.masked_fill(~allowed.unsqueeze(-1), float("-inf")).flatten(1)
        return affinities.topk(config.num_experts_per_tok, -1, sorted=False).indices

    @torch.no_grad()
    def step_bias(self, speed: float) -> None:
        """Raise the bias of experts under the mean load and lower the others, keep its mean at zero, reset the counts."""
        if self.is_biased:
            step = torch.sign(self.expert_load.mean() - self.expert_load) * speed
            self.e_score_correction_bias += step - step.mean()
        self.expert_load.zero_()


class Experts(nn.Module):
    """E gated feed-forwards as two stacks of matrices: [E, 2I, H] and [E, H, I]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        experts, width = config.n_routed_experts, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts, config.hidden_size, width))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x [S*K, H] sorted by expert; ends [E] is where each expert's segment ends."""
        return grouped_linear(swiglu(grouped_linear(x, self.gate_up_proj, ends)), self.down_proj, ends)


class MoE(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = (
            MLP(config, config.moe_intermediate_size * config.n_shared_experts) if config.n_shared_experts else None
        )
        self.track_balance = False
        self.balance_loss: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        chosen, gates, scores = self.gate(flat)
        if self.track_balance:
            self.balance_loss = sequence_balance_loss(chosen.view(*x.shape[:2], -1), scores.view(*x.shape[:2], -1))
        slots, ends = place_by_expert(chosen, self.config.n_routed_experts)
        out = from_experts(self.experts(to_experts(flat, slots, ends), ends), gates, slots)
        if self.shared_experts is not None:
            out = out + self.shared_experts(flat)
        return out.view_as(x)


def sequence_balance_loss(chosen: Tensor, scores: Tensor) -> Tensor:
    """Mean over sequences of sum_i f_i P_i (eq. 17-20): 1 when perfectly even. chosen [B, T, K], scores [B, T, E]."""
    experts, picks = scores.shape[-1], chosen.shape[1] * chosen.shape[2]
    counts = torch.zeros(chosen.shape[0], experts, device=scores.device)
    counts.scatter_add_(1, chosen.flatten(1), torch.ones(1, device=scores.device).expand(chosen.shape[0], picks))
    share = (scores / (scores.sum(-1, keepdim=True) + 1e-20)).mean(1)
    return (counts * (experts / picks) * share).sum(-1).mean()
