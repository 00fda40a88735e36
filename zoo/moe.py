# B batch, T tokens, D model width, N = B·T tokens, K chosen experts a token, E experts
"""Mixture of experts in place of one feed-forward."""

from __future__ import annotations

from functools import partial
from typing import Any

from zoo.ffn import FFN
from zoo.lazy import torch
from zoo.router import Router
from zoo.spec import Experts, Group


class MoE(FFN, kind="moe"):
    """Each token through the few experts its router chooses (Shazeer et al., 2017), none dropped (Gale et al., 2022).

    `expert` is the feed-forward every expert is a copy of; `shared` is one more that all tokens pass (Dai et al.,
    2024).
    """

    expert: FFN
    router: Router
    shared: FFN | None = None

    def __post_init__(self) -> None:
        if isinstance(self.expert, MoE) or isinstance(self.shared, MoE):
            raise ValueError("an expert cannot itself be a mixture of experts (mlp and gated can)")

    def parts(self, d_model: int) -> dict[str, Any]:
        router = self.router
        stacked = {
            name: Experts(of=part, count=router.n_experts, active_count=router.top_k)
            for name, part in self.expert.parts(d_model).items()
        }
        shared = {"shared": self.shared} if self.shared else {}
        return {"router": router, "experts": Group(stacked), **shared}

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        tokens = x.flatten(0, 1)  # N D
        chosen, weights = m.router(tokens, step)  # N K
        order = chosen.flatten().argsort(stable=True)  # N·K: choices, sorted by expert
        expert_of_row = chosen.flatten()[order]
        experts = torch.arange(self.router.n_experts, device=x.device)
        ends = torch.searchsorted(expert_of_row, experts, right=True).to(torch.int32)  # E
        rows = tokens[order // self.router.top_k]  # N·K D
        y = self.expert.forward(_Routed(m.experts, ends, expert_of_row), rows, step)
        y = y[order.argsort()].unflatten(0, chosen.shape)  # N K D: back in the tokens' order
        y = (y * weights[..., None].to(y.dtype)).sum(1).unflatten(0, x.shape[:2])  # B T D
        return y + m.shared(x, step) if self.shared else y


class _Routed:
    """The experts' stacked weights under the names that one expert's forward uses, for rows sorted by expert."""

    def __init__(self, experts: Any, ends: Any, expert_of_row: Any) -> None:
        for name, linear in experts.items():
            setattr(self, name, partial(linear, offsets=ends, expert_of_row=expert_of_row))
