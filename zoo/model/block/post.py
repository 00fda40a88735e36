"""Norms after the residual sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from zoo.model.block.base import Block
from zoo.model.ffn import FFN
from zoo.spec import CROSS, Sized

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


class Post(Block, kind="post"):
    """norm(x + f(x)) (Vaswani et al., 2017; GPT-1, BERT)."""

    normalises_output: ClassVar[bool] = True
    takes_cross: ClassVar[bool] = True

    ffn: FFN
    """Feed-forward of the layer."""

    def parts(self, d_model: int) -> dict[str, Any]:
        cross = {"cross": Sized(self.cross, d_model, role=CROSS)} if self.cross else {}
        cross |= {"cross_norm": self.norm} if self.crosses else {}
        return {
            "attention": self.attention,
            "attention_norm": self.norm,
            **cross,
            "ffn": self.ffn,
            "ffn_norm": self.norm,
        }

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        x = m.attention_norm(self.add(x, m.attention(x, step)))
        if self.crosses:
            x = m.cross_norm(self.add(x, m.cross(x, step.cross)))
        return m.ffn_norm(self.add(x, m.ffn(x, step)))
