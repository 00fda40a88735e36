# B batch, T tokens, D model width, F feed-forward width
"""RWKV's channel mix: a feed-forward that sees the token before its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import Tensor
from zoo.model.activation import PlainActivation, SquaredReLU
from zoo.model.attention.recurrent import check_causal, check_width, shift_tokens
from zoo.model.attention.rwkv import mix, spread_mix
from zoo.model.ffn import FFN
from zoo.spec import Linear, Weight, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class ChannelMix(FFN, kind="channel_mix"):
    """Channel mix of RWKV-4 (Peng et al., 2023): act(k·W_k)·W_v, multiplied by σ(r·W_r) if `receptance` is true.

    k and r are x mixed with the token before it, x·µ + x'·(1 − µ). The state is the last token's x.
    """

    causal: ClassVar[bool | None] = True

    d_model: PositiveInt
    """Width of the residual stream, stated because the state's size follows from it."""
    d_ff: PositiveInt
    """Width of the hidden layer, in channels."""
    activation: PlainActivation = SquaredReLU()
    """Activation of the hidden units."""
    receptance: bool = True
    """Whether the output is gated by σ(r·W_r). Without it µ is the earlier token's share, x + (x' − x)·µ (RWKV-7; Peng
    et al., 2025)."""

    def parts(self, d_model: int) -> dict[str, Any]:
        check_width(self.d_model, d_model)
        gate = {"mix_r": Weight((d_model,), init=spread_mix), "receptance": Linear(d_model, d_model)}
        return {
            "mix_k": Weight((d_model,), init=spread_mix),
            "up": Linear(d_model, self.d_ff),
            **(gate if self.receptance else {}),
            "down": Linear(self.d_ff, d_model, residual=True),
        }

    def shard(self, ranks: int) -> ChannelMix:
        """Divide the hidden units over the ranks. Each rank has all of W_r, and gates its part of the output."""
        return split(self, ranks, equal=("d_ff",))

    def state(self) -> dict[str, tuple[int, ...]]:
        return {"ffn_shift": (self.d_model,)}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step, "ffn")
        before = shift_tokens(x, step, "ffn_shift")
        k = mix(x, before, m.mix_k) if self.receptance else mix(before, x, m.mix_k)
        y = m.down(step.drop_units(self.activation.apply(m.up(k))))
        return y * m.receptance(mix(x, before, m.mix_r)).sigmoid() if self.receptance else y
