# N tokens, E experts, K chosen experts a token
"""Which experts a token goes to, and with what weight."""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeFloat, PositiveInt

from zoo.lazy import torch
from zoo.spec import Linear, Spec


class Router(Spec, axis="router"):
    """Chooses experts for each token. Scores in float32."""

    n_experts: PositiveInt
    top_k: PositiveInt


class SoftmaxTopK(Router, kind="softmax_topk"):
    """Softmax over all experts, the top_k of it (Shazeer et al., 2017); `normalize` makes their weights sum to 1
    (Mixtral).

    Two losses keep it healthy in training: `balance_coef` times E·Σ fᵢ·Pᵢ, with fᵢ the share of choices that expert
    i got
    and Pᵢ its mean probability, 1 when balanced (Fedus et al., 2021); `z_coef` times mean(logsumexp²) (Zoph et al.,
    2022).
    """

    normalize: bool = True
    balance_coef: NonNegativeFloat = 0.01
    z_coef: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k={self.top_k} is more than n_experts={self.n_experts}")

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"gate": Linear(d_model, self.n_experts)}

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        """x [N, D] → the chosen experts [N, K] and their weights [N, K] in float32."""
        scores = m.gate(x).float()  # N E
        chances = scores.softmax(-1)
        weights, chosen = chances.topk(self.top_k, -1)  # N K
        if m.training:
            step.losses += self._losses(scores, chances, chosen)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return chosen, weights

    def _losses(self, scores: Any, chances: Any, chosen: Any) -> list[tuple[str, Any]]:
        losses = []
        if self.balance_coef:
            experts = torch.arange(self.n_experts, device=chosen.device)
            share = (chosen[..., None] == experts).float().mean((0, 1))
            balance = self.n_experts * (share * chances.mean(0)).sum()
            losses.append(("balance", self.balance_coef * balance))
        if self.z_coef:
            losses.append(("z", self.z_coef * scores.logsumexp(-1).square().mean()))
        return losses
