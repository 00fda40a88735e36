"""Where the norms stand around attention and feed-forward, and how both join the residual stream."""

from __future__ import annotations

from typing import Any, ClassVar

from zoo.attention import Attention
from zoo.ffn import FFN
from zoo.moe import MoE
from zoo.norm import Norm
from zoo.spec import Spec

__all__ = ["Block", "MoE"]


class Block(Spec, axis="block"):
    """One layer: x [B, T, D] → x [B, T, D]."""

    normalises_output: ClassVar[bool] = (
        False  # whether a norm stands last on the stream, so that no final one is needed
    )

    attention: Attention
    ffn: FFN
    norm: Norm


class Pre(Block, kind="pre"):
    """x + f(norm(x)) (Xiong et al., 2020; GPT-2, Llama)."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"attention_norm": self.norm, "attention": self.attention, "ffn_norm": self.norm, "ffn": self.ffn}

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        x = x + m.attention(m.attention_norm(x), step)
        return x + m.ffn(m.ffn_norm(x), step)


class Post(Block, kind="post"):
    """norm(x + f(x)) (Vaswani et al., 2017; GPT-1, BERT)."""

    normalises_output: ClassVar[bool] = True

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"attention": self.attention, "attention_norm": self.norm, "ffn": self.ffn, "ffn_norm": self.norm}

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        x = m.attention_norm(x + m.attention(x, step))
        return m.ffn_norm(x + m.ffn(x, step))


class Sandwich(Block, kind="sandwich"):
    """x + norm(f(norm(x))) (Ding et al., 2021, CogView; Gemma 2)."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "attention_norm": self.norm,
            "attention": self.attention,
            "attention_out_norm": self.norm,
            "ffn_norm": self.norm,
            "ffn": self.ffn,
            "ffn_out_norm": self.norm,
        }

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        x = x + m.attention_out_norm(m.attention(m.attention_norm(x), step))
        return x + m.ffn_out_norm(m.ffn(m.ffn_norm(x), step))


class PostInside(Block, kind="post_inside"):
    """x + norm(f(x)): the norm on what a sub-layer gives, inside the residual (Liu et al., 2021, Swin v2; OLMo 2)."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"attention": self.attention, "attention_norm": self.norm, "ffn": self.ffn, "ffn_norm": self.norm}

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        x = x + m.attention_norm(m.attention(x, step))
        return x + m.ffn_norm(m.ffn(x, step))


class Parallel(Block, kind="parallel"):
    """x + attention(norm(x)) + ffn(norm(x)) (Wang and Komatsuzaki, 2021, GPT-J; PaLM, Falcon).

    `shared_norm` gives both the same norm (GPT-J); otherwise each has its own (GPT-NeoX).
    """

    shared_norm: bool = True

    def parts(self, d_model: int) -> dict[str, Any]:
        second = {} if self.shared_norm else {"ffn_norm": self.norm}
        return {"attention_norm": self.norm, "attention": self.attention, **second, "ffn": self.ffn}

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        normed = m.attention_norm(x)
        inner = normed if self.shared_norm else m.ffn_norm(x)
        return x + m.attention(normed, step) + m.ffn(inner, step)
