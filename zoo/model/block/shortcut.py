"""Two attentions and two feed-forwards in a layer, and a third feed-forward in parallel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from zoo.lazy import Tensor
from zoo.model.block.base import Block
from zoo.model.ffn import FFN
from zoo.model.moe import MoE
from zoo.model.step import SECOND, BesideStep

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class Shortcut(Block, kind="shortcut"):
    """Connect a mixture of experts by a shortcut (Cai et al., 2024, ScMoE; Meituan, 2025, LongCat-Flash): the mixture
    reads the input of the first of two dense feed-forwards, and its output joins the stream at the layer's end.

    a = x + attention(norm(x)), n = norm(a), b = a + dense(n), c = b + attention'(norm(b)), y = c + dense'(norm(c)) +
    ffn(n), where ' marks a second set of weights. Communication of experts could overlap with an attention and two
    feed-forwards; here it does not yet. Each attention has a KV cache of its own.
    """

    divided: ClassVar[tuple[str, ...]] = ("attention", "dense", "second_attention", "second_dense", "ffn")

    ffn: FFN
    """Feed-forward on the shortcut, most often a mixture of experts."""
    dense: FFN
    """Feed-forward that every token passes, one after each of the two attentions, each with weights of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.dense, MoE) or self.dense.state():
            found = f"dense: every token passes it alone, and '{self.dense.kind}'"
            raise ValueError(f"{found} {'chooses' if isinstance(self.dense, MoE) else 'sees others'} (gated or mlp)")
        for what, given in (
            ("reads another layer's keys", self.attention.loan is not None),
            ("chooses keys by an indexer", self.attention.chooser is not None),
            ("makes one key of several tokens", self.attention.sight.rate > 1),
        ):
            if given:
                raise ValueError(f"attention: one that {what} has no place in a '{self.kind}' block, which has two")

    def cache(self) -> dict[str, tuple[int, ...]]:
        own = super().cache()
        return own | {SECOND + name: shape for name, shape in own.items()}

    def state(self) -> dict[str, tuple[int, ...]]:
        second = {SECOND + name: shape for name, shape in self.attention.state().items()}
        return super().state() | second

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "attention_norm": self.norm,
            "attention": self.attention,
            "ffn_norm": self.norm,
            "ffn": self.ffn,
            "dense": self.dense,
            "second_attention_norm": self.norm,
            "second_attention": self.attention,
            "second_dense_norm": self.norm,
            "second_dense": self.dense,
        }

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        first, second, last = (
            BesideStep(step, place, keeps)
            for place, keeps in (("dense", ""), ("second_attention", SECOND), ("second_dense", SECOND))
        )
        x = self.add(x, m.attention(m.attention_norm(x), step))
        normed = m.ffn_norm(x)
        beside = m.ffn(normed, step)
        x = self.add(x, m.dense(normed, first))
        x = self.add(x, m.second_attention(m.second_attention_norm(x), second))
        return self.add(x, m.second_dense(m.second_dense_norm(x), last) + beside)
