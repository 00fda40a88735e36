"""Softmax attention and a recurrent mixer side by side in one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.lazy import Tensor
from zoo.model.attention.two_mixers import TwoMixers
from zoo.model.ffn import multiply

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class SideBySide(TwoMixers, kind="side_by_side"):
    """Sum of two mixers, b·softmax(a·x) + d·recurrent(c·x): both read the output of one norm (Zuo et al., 2025,
    Falcon-H1). a, b, c and d are constant µP multipliers."""

    softmax_in_scale: float = 1.0
    """Constant factor a of the softmax attention's input."""
    softmax_out_scale: float = 1.0
    """Constant factor b of the softmax attention's output."""
    recurrent_in_scale: float = 1.0
    """Constant factor c of the recurrent mixer's input."""
    recurrent_out_scale: float = 1.0
    """Constant factor d of the recurrent mixer's output."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"softmax": self.softmax, "recurrent": self.recurrent}

    def core_flops(self, pairs: int) -> int:
        return self.softmax.core_flops(pairs)

    def state_flops(self) -> int:
        return self.recurrent.state_flops()

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        seen = m.softmax(multiply(x, self.softmax_in_scale), step)
        held = m.recurrent(multiply(x, self.recurrent_in_scale), step)
        return multiply(seen, self.softmax_out_scale) + multiply(held, self.recurrent_out_scale)
