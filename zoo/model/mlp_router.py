# B batch, T tokens, D model width, R router width, E experts
"""A router whose scores an MLP makes, of what routers of earlier layers made of the token as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, PositiveInt

from zoo.model.activation import GELU, PlainActivation
from zoo.model.norm import RMSNorm, WholeNorm
from zoo.model.router import Routes, SoftmaxTopK
from zoo.spec import Linear, Sized, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


class MLPTopK(SoftmaxTopK, kind="mlp_topk"):
    """Softmax top-k router with scores from an MLP of two hidden layers on norm(r), where r = x·W_down is `d_router`
    wide (Zyphra, 2026, ZAYA1). `bias` is of the last product; all others have one.
    """

    d_router: PositiveInt
    """Channels of r and of the hidden layers."""
    depth_average: bool = False
    """Whether r is an exponential average over depth: x·W_down + scale ⊙ r', with r' that of the nearest layer before
    that has such a router."""
    normalize: bool = False
    """Whether a token's weights sum to 1."""
    selection_bias: bool = True
    """Whether a bias is added to the scores for the choice alone, not for the weights (Wang et al., 2024)."""
    balance_coef: NonNegativeFloat = 0.0001
    """The weight of the load-balancing loss, as of the top-k routers."""
    mlp_norm: WholeNorm = RMSNorm()
    """The norm of r."""
    activation: PlainActivation = GELU()
    """The function behind each hidden layer."""

    def parts(self, d_model: int) -> dict[str, Any]:
        parts, width = super().parts(d_model), self.d_router
        return parts | {
            "down": Linear(d_model, width, bias=True),
            **({"average_scale": Weight((width,), init=1.0)} if self.depth_average else {}),
            "mlp_norm": Sized(self.mlp_norm, width),
            "first": Linear(width, width, bias=True),
            "second": Linear(width, width, bias=True),
            "gate": Linear(width, self.n_experts, self.bias),
        }

    def forward(self, m: Weights, x: Tensor, step: Step) -> Routes:
        r = m.down(self.input.read(m, x) if self.input else x)  # B T R
        if self.depth_average:
            r = r + step.take_average(r) * m.average_scale
        step.lend_average(r)
        return self.route(m, r, step)

    def score(self, m: Weights, x: Tensor) -> Tensor:
        """Score every expert for each token, of r [B, T, R]: [B, T, E] in float32."""
        hidden = m.mlp_norm(x)
        for product in (m.first, m.second):
            hidden = self.activation.apply(product(hidden))
        return m.gate(hidden).float()
