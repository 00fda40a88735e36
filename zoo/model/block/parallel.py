"""Attention and feed-forward side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from zoo.distributed.group import cast_for_products
from zoo.lazy import Tensor
from zoo.model.block.base import Block
from zoo.model.ffn import FFN

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class Parallel(Block, kind="parallel"):
    """Parallel attention and feed-forward, x + attention(norm(x)) + ffn(norm(x)) (Wang and Komatsuzaki, 2021, GPT-J;
    PaLM, Falcon)."""

    divided: ClassVar[tuple[str, ...]] = ()

    ffn: FFN
    """Feed-forward of the layer."""
    shared_norm: bool = True
    """Whether attention and feed-forward read the same norm (GPT-J). If false, each has its own (GPT-NeoX)."""

    @property
    def reductions(self) -> int:
        """One sum over ranks: each rank first adds up its attention and feed-forward (Wang and Komatsuzaki, 2021)."""
        return 1

    @property
    def gathers(self) -> int:
        return 1 if self.shared_norm else 2

    def parts(self, d_model: int) -> dict[str, Any]:
        second = {} if self.shared_norm else {"ffn_norm": self.norm}
        return {"attention_norm": self.norm, "attention": self.attention, **second, "ffn": self.ffn}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        seam, tokens = m.seam, step.mask.n_queries
        normed = seam.gather(cast_for_products(m.attention_norm(x)), tokens)
        inner = normed if self.shared_norm else seam.gather(cast_for_products(m.ffn_norm(x)), tokens)
        return self.add(x, seam.reduce(m.attention(normed, step) + m.ffn(inner, step)))
