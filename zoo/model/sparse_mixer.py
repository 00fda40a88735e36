# B batch, T tokens, D model width, E experts
"""A router that draws two experts, one after the other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.router import Router, Routes, check_count, compute_losses, make_routes

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class SparseMixer(Router, kind="sparsemixer"):
    """Two experts drawn one after the other, with a gradient for the draw (Liu et al., 2023; GRIN, 2024; Phi-3.5-MoE).

    Each is drawn among the experts whose score is near the best; the second draw leaves out the first expert. An
    expert's weight is its softmax probability among the experts that it was drawn from, so the two weights need not sum
    to 1. Training samples, inference takes the best expert. If a sample is not the best expert, its weight is scaled by
    1/3 with probability 3/4; the gradient of the weight is not scaled (Heun's third-order estimate). Losses are those
    of TopK.
    """

    top_k: PositiveInt = 2
    """Number of experts of each token: two."""
    jitter: NonNegativeFloat = 0.01
    """Half the distance from the best score within which experts are drawn, relative to the larger of the best score
    and the score's own magnitude."""
    balance_coef: NonNegativeFloat = 0.001
    """Coefficient of the load-balancing loss, as for the top-k routers."""
    z_coef: NonNegativeFloat = 0.0
    """Coefficient of the z loss, mean(logsumexp²) of the scores (Zoph et al., 2022)."""

    def __post_init__(self) -> None:
        if self.top_k != 2:
            raise ValueError(f"top_k={self.top_k}: sparsemixer draws exactly two (softmax_topk takes any number)")
        check_count(self)

    @property
    def draws(self) -> int:  # type: ignore[override]
        return 2 * (self.n_experts + 1)

    def forward(self, m: Weights, x: Tensor, step: Step) -> Routes:
        scores = self.score(m, x)  # B T E
        chance = step.draw(scores, self.draws) if m.training else None
        one, other = (None, None) if chance is None else chance.chunk(2, -1)
        first, weight = self._draw(scores, scores, one)
        others = scores.scatter(-1, first, -math.inf)
        second, second_weight = self._draw(others, scores, other)
        chosen = torch.cat((first, second), -1)  # B T 2
        if m.training:
            step.losses += compute_losses(self, scores, scores.softmax(-1), chosen, step.real)
        return make_routes(self, chosen, torch.cat((weight, second_weight), -1) * self.scale, None, step)

    def _draw(self, open_scores: Tensor, scores: Tensor, chance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Draw an expert [B, T, 1] among those with finite `open_scores` [B, T, E], and compute its weight [B, T, 1].
        In training `chance` [B, T, E + 1], uniform between 0 and 1, decides the expert, and whether its weight is
        scaled by 1/3."""
        with torch.no_grad():
            best, chosen = open_scores.max(-1, keepdim=True)
            far = (best - scores) / scores.abs().maximum(best) > 2 * self.jitter
        near = open_scores.masked_fill(far, -math.inf)
        probs = near.softmax(-1)
        if chance is None:
            return chosen, probs.gather(-1, chosen)
        noise = -(-chance[..., :-1].log()).log()
        drawn = (near + noise).argmax(-1, keepdim=True)  # the Gumbel-max trick
        weight = probs.gather(-1, drawn)
        whole = (drawn == chosen) | (chance[..., -1:] > 0.75)
        return drawn, weight - (weight * torch.where(whole, 0.0, 2 / 3)).detach()
