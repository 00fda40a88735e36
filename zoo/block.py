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
    """One layer: x [B, T, D] → x [B, T, D].

    `cross` is attention to an encoder's output, after that to the tokens themselves. What a sub-layer gives is
    multiplied by `residual_scale` before it joins the stream (Granite).
    """

    normalises_output: ClassVar[bool] = (
        False  # whether a norm stands last on the stream, so that no final one is needed
    )
    takes_cross: ClassVar[bool] = False

    attention: Attention
    norm: Norm
    cross: Attention | None = None
    residual_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.cross is not None and not self.takes_cross:
            raise ValueError(f"a '{self.kind}' block has no place for cross-attention (pre and post do)")
        scheme = None if self.cross is None else self.cross.positioning
        if self.cross is not None and (scheme is None or scheme.kind != "none"):
            found = "nothing" if scheme is None else f"position '{scheme.kind}'"
            raise ValueError(f"cross is softmax attention without positions, found {found} (gqa, with position: none)")

    def state(self) -> dict[str, tuple[int, ...]]:
        """Of its attention, and of a feed-forward that counts tokens."""
        ffn: FFN | None = getattr(self, "ffn", None)
        return self.attention.state() | (ffn.state() if ffn else {})

    def add(self, x: Any, y: Any) -> Any:
        """The stream with what a sub-layer gave."""
        return x + y if self.residual_scale == 1.0 else x + y * self.residual_scale


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
        cross = {"cross_norm": self.norm, "cross": self.cross} if self.cross else {}
        return {
            **({"attention_norm": self.norm} if self.input_norm else {}),
            "attention": self.attention,
            **cross,
            "ffn_norm": self.norm,
            "ffn": self.ffn,
        }

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        normed = m.attention_norm(x) if self.input_norm else x
        x = self.add(normed if self.residual_from_norm else x, m.attention(normed, step))
        if self.cross is not None:
            x = self.add(x, m.cross(m.cross_norm(x), step.cross))
        normed = m.ffn_norm(x)
        return self.add(normed if self.residual_from_norm else x, m.ffn(normed, step))


class Post(Block, kind="post"):
    """norm(x + f(x)) (Vaswani et al., 2017; GPT-1, BERT)."""

    normalises_output: ClassVar[bool] = True
    takes_cross: ClassVar[bool] = True

    ffn: FFN

    def parts(self, d_model: int) -> dict[str, Any]:
        cross = {"cross": self.cross, "cross_norm": self.norm} if self.cross else {}
        return {
            "attention": self.attention,
            "attention_norm": self.norm,
            **cross,
            "ffn": self.ffn,
            "ffn_norm": self.norm,
        }

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        x = m.attention_norm(self.add(x, m.attention(x, step)))
        if self.cross is not None:
            x = m.cross_norm(self.add(x, m.cross(x, step.cross)))
        return m.ffn_norm(self.add(x, m.ffn(x, step)))


class Sandwich(Block, kind="sandwich"):
    """x + norm(f(norm(x))) (Ding et al., 2021, CogView; Gemma 2)."""

    ffn: FFN

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
        x = self.add(x, m.attention_out_norm(m.attention(m.attention_norm(x), step)))
        return self.add(x, m.ffn_out_norm(m.ffn(m.ffn_norm(x), step)))


class PostInside(Block, kind="post_inside"):
    """x + norm(f(x)): the norm on what a sub-layer gives, inside the residual (Liu et al., 2021, Swin v2; OLMo 2)."""

    ffn: FFN

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"attention": self.attention, "attention_norm": self.norm, "ffn": self.ffn, "ffn_norm": self.norm}

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        x = self.add(x, m.attention_norm(m.attention(x, step)))
        return self.add(x, m.ffn_norm(m.ffn(x, step)))


class Parallel(Block, kind="parallel"):
    """x + attention(norm(x)) + ffn(norm(x)) (Wang and Komatsuzaki, 2021, GPT-J; PaLM, Falcon).

    `shared_norm` gives both the same norm (GPT-J); otherwise each has its own (GPT-NeoX).
    """

    ffn: FFN
    shared_norm: bool = True

    def parts(self, d_model: int) -> dict[str, Any]:
        second = {} if self.shared_norm else {"ffn_norm": self.norm}
        return {"attention_norm": self.norm, "attention": self.attention, **second, "ffn": self.ffn}

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        normed = m.attention_norm(x)
        inner = normed if self.shared_norm else m.ffn_norm(x)
        return self.add(x, m.attention(normed, step) + m.ffn(inner, step))


class Mixer(Block, kind="mixer"):
    """x + attention(norm(x)), without a feed-forward (Gu and Dao, 2023, Mamba)."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"attention_norm": self.norm, "attention": self.attention}

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        return self.add(x, m.attention(m.attention_norm(x), step))


from zoo import convolved  # noqa: E402, F401  (registers its kind)
