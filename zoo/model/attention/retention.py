# B batch, T tokens, H heads, K key width, V value width
"""Multi-scale retention: linear attention with rotated keys and a fixed decay for each head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from zoo.lazy import Tensor, torch
from zoo.model.attention.linear import GatedLinear
from zoo.model.norm import LayerNorm, WholeNorm
from zoo.model.position.base import Position
from zoo.spec import Buffer, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class Retention(GatedLinear, kind="retention"):
    """Multi-scale retention (Sun et al., 2023, RetNet).

    With q, k [H, K], rotated by `position`, v [H, V] and γ = 1 − 2^(−4−h) for head h of 1 … H,

        S ← γ·S + k⊗v [H, K, V],   y = Sᵀq/√K,   out = (norm(y) ⊙ silu(x·W_g))·W_out.

    The slopes −ln γ are a saved buffer, so that a rank of tensor parallelism has the slopes of its own heads.
    """

    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v", "gate"),)

    position: Position
    """Position scheme that rotates q and k. xPos (Sun et al., 2022) scales them, too; here that scale is part of the
    decay."""
    norm: WholeNorm = LayerNorm(eps=1e-5, weight=False, bias=False)
    """Norm of each head's output y: the paper's GroupNorm."""

    def __post_init__(self) -> None:
        if self.position.inside and not self.position.rotates:
            raise ValueError(f"position: '{self.position.kind}' changes scores, and retention has none (rope, or none)")
        self.position.check(self.head_k_dim)

    @property
    def positioning(self) -> Position:  # type: ignore[override]
        return self.position

    @property
    def rotary_width(self) -> int:  # type: ignore[override]
        return self.head_k_dim

    def _list_decays(self, d_model: int) -> dict[str, Any]:
        return {"slopes": Buffer((self.n_heads,), init=_fill_slopes)}

    def _decay(self, m: Weights, x: Tensor) -> Tensor:
        return -m.slopes.float().expand(*x.shape[:2], -1)  # B T H

    def _turn(self, x: Tensor, step: Step) -> Tensor:
        return self.position.rotate(x, step.tables)

    def shard(self, ranks: int) -> Retention:
        return split(self, ranks, equal=("n_heads",))


def _fill_slopes(tensor: Tensor) -> None:
    """Fill [H] with −ln(1 − 2^(−5−h)), h = 0 … H − 1."""
    tensor.copy_(-(-(2.0 ** (-5 - torch.arange(tensor.shape[0], device=tensor.device)))).log1p())
