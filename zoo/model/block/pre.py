"""Norms before the sub-layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from zoo.model.block.base import Block
from zoo.model.ffn import FFN
from zoo.spec import CROSS, Sized

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


class Pre(Block, kind="pre"):
    """x + f(norm(x)) (Xiong et al., 2020; GPT-2, Llama).

    Without `input_norm` attention reads the stream as it is (ModernBERT's first layer). With `residual_from_norm` the
    stream goes on from the norms' outputs rather than their inputs (BLOOM's option).
    """

    takes_cross: ClassVar[bool] = True

    ffn: FFN
    input_norm: bool = True
    residual_from_norm: bool = False

    def parts(self, d_model: int) -> dict[str, Any]:
        cross = {"cross_norm": self.norm, "cross": Sized(self.cross, d_model, role=CROSS)} if self.cross else {}
        return {
            **({"attention_norm": self.norm} if self.input_norm else {}),
            "attention": self.attention,
            **cross,
            "ffn_norm": self.norm,
            "ffn": self.ffn,
        }

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        normed = m.attention_norm(x) if self.input_norm else x
        x = self.add(normed if self.residual_from_norm else x, m.attention(normed, step))
        if self.cross is not None:
            x = self.add(x, m.cross(m.cross_norm(x), step.cross))
        normed = m.ffn_norm(x)
        return self.add(normed if self.residual_from_norm else x, m.ffn(normed, step))
