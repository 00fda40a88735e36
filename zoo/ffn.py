# D model width, F feed-forward width
"""Position-wise feed-forward layers."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveInt

from zoo.activation import Activation
from zoo.spec import Linear, Spec


class FFN(Spec, axis="ffn"):
    """What each token goes through on its own. Its parts are all Linear, so that a mixture can stack them."""

    def parts(self, d_model: int) -> dict[str, Any]:
        raise NotImplementedError


class MLP(FFN, kind="mlp"):
    """act(x·W_up)·W_down (Vaswani et al., 2017)."""

    d_ff: PositiveInt
    activation: Activation
    bias: bool = False

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "up": Linear(d_model, self.d_ff, self.bias),
            "down": Linear(self.d_ff, d_model, self.bias, residual=True),
        }

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        return m.down(self.activation.apply(m.up(x)))


class Gated(FFN, kind="gated"):
    """(act(x·W_gate) ⊙ x·W_up)·W_down (Shazeer, 2020): SwiGLU with SiLU, GEGLU with GELU, ReGLU with ReLU."""

    d_ff: PositiveInt
    activation: Activation
    bias: bool = False

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "gate": Linear(d_model, self.d_ff, self.bias),
            "up": Linear(d_model, self.d_ff, self.bias),
            "down": Linear(self.d_ff, d_model, self.bias, residual=True),
        }

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        return m.down(self.activation.apply(m.gate(x)) * m.up(x))
