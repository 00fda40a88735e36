# B batch, T tokens, H heads, C head width, D model width
"""Sliding-window attention in both directions, and a few global tokens that see and are seen by all (Longformer)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.lazy import Tensor, torch
from zoo.model.attention.base import MultiHead, Sight
from zoo.spec import Linear, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


@dataclasses.dataclass(frozen=True)
class ForGlobal(Linear):
    """A matrix product that runs only if the input has global tokens. It counts no FLOPs: pricing does not know the
    input."""

    @property
    def flops(self) -> int:
        return 0


class Longformer(MultiHead, kind="longformer"):
    """Sliding window and global tokens (Beltagy et al., 2020), for bidirectional models.

    A local token i sees every j with |i − j| ≤ `window`, and all global tokens. A global token sees all tokens.
    Separate weights (q_global, k_global, v_global) make its query, and the keys and values that it reads. Global tokens
    are part of the input: `step.extra["global"]` [B, T] marks them; None for none.

    FLOPs are counted without global tokens: q, k, v, o and the pairs in the window. If there are global tokens, a pass
    of T tokens adds 6·T·D·H·C for the global projections, and each global token adds 8·T·H·C for its pairs. The code
    computes more: it compares all T² pairs by the global projections.
    """

    causal: ClassVar[bool | None] = False
    extras: ClassVar[tuple[str, ...]] = ("global",)
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v"), ("q_global", "k_global", "v_global"))

    window: PositiveInt
    """Distance, in tokens, that a local token sees to either side."""
    bias: bool = True
    """Whether the projections have a bias."""

    def __post_init__(self) -> None:
        self.position.check(self.head_dim)
        self.check_shared_position()

    @property
    def sight(self) -> Sight:
        return Sight(self.window)

    def parts(self, d_model: int) -> dict[str, Any]:
        width = self.n_heads * self.head_dim
        local = {name: Linear(d_model, width, self.bias) for name in ("q", "k", "v")}
        everywhere = {f"{name}_global": ForGlobal(d_model, width, self.bias) for name in ("q", "k", "v")}
        return {**local, **everywhere, "o": Linear(width, d_model, self.bias, residual=True)}

    def shard(self, ranks: int) -> Longformer:
        return split(self, ranks, equal=("n_heads",))

    def prepare(self, m: Weights | None, step: Step) -> None:
        everywhere = step.extra.get("global")
        if everywhere is None:
            return
        old = step.mask
        tokens, hidden = old.n_queries, {"padding": old.padding, "documents": old.documents}
        also = everywhere[:, None, :].expand(-1, tokens, -1)  # B T T
        mask = Mask(tokens, tokens, causal=False, window=self.window, also=also, **hidden)
        step.keys = KeyView(mask, step.keys.index, step.keys.bias)
        whole = step.extra["all"] = Mask(tokens, tokens, causal=False, **hidden)
        if not whole.sees_all:
            whole.dense(everywhere.device)  # makes the mask tensor once, for all layers

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        y = self._read((m.q, m.k, m.v), x, step, step.mask)  # B T H C
        everywhere = step.extra.get("global")
        if everywhere is not None:
            seen = self._read((m.q_global, m.k_global, m.v_global), x, step, step.extra["all"])  # B T H C
            y = torch.where(everywhere[:, :, None, None], seen, y)
        return m.o(y.flatten(-2))  # B T D

    def _read(self, parts: tuple[Any, Any, Any], x: Tensor, step: Step, mask: Mask) -> Tensor:
        """Attend under `mask`, with `parts` as the projections of q, k and v: [B, T, H, C]."""
        q, k, v = self.project(parts, x, step)
        return step.attend_under(mask, q, k, v, self.head_dim**-0.5, step.keys.bias)
