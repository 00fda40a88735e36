# B batch, T tokens, H heads, C head width, V a value's width, D model width
"""Nodes of softmax attention: groups of fields that belong together, such as the norm of queries and keys. A node with
weights lists them for its attention. In a node's methods `m` are the attention's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, PositiveFloat, PositiveInt

from zoo.lazy import F, Tensor, torch
from zoo.model.norm import WholeNorm
from zoo.model.position.base import Position
from zoo.spec import Linear, Node, Sized, Weight

if TYPE_CHECKING:
    from zoo.model.step import Weights


def check_word(*words: str) -> BeforeValidator:
    """Return a validator that raises ValueError, in one line, for a value other than true, false, null and `words`."""

    def check(value: object) -> Any:
        if value is not None and not isinstance(value, bool) and value not in words:
            raise ValueError(f"must be true, false or {' or '.join(words)}, found {value!r}")
        return value

    return BeforeValidator(check)


class OutputGate(Node, name="gate", word="activation"):
    """A gate on each head's output, y·σ(x·W) (Qiu et al., 2025; Qwen3-Next)."""

    over: Literal["channel", "head"] = "channel"
    """What one number of the gate multiplies: a channel, or a whole head."""
    activation: Literal["sigmoid", "softplus"] = "sigmoid"
    """Activation of the gate, applied to x·W; softplus in Laguna (2026)."""
    bias: Annotated[bool | Literal["head"] | None, check_word("head")] = None
    """Whether x·W has a bias; the same as the query projection unless given. "head" is one number for all channels of a
    head (Reflection, 2026, Beam)."""

    def __post_init__(self) -> None:
        if self.bias == "head" and self.over == "head":
            raise ValueError("bias: head is one number for the channels of a head, and over: head leaves one (true)")

    def list_parts(self, d_model: int, n_heads: int, v_width: int, bias: bool) -> dict[str, Any]:
        width = n_heads * (v_width if self.over == "channel" else 1)
        if self.bias == "head":
            return {"gate": Linear(d_model, width), "gate_bias": Weight((n_heads,))}
        return {"gate": Linear(d_model, width, bias if self.bias is None else self.bias)}

    def apply(self, m: Weights, x: Tensor, y: Tensor) -> Tensor:
        """Multiply the heads' outputs y [B, T, H, V] by the gate of x [B, T, D]: [B, T, H·V]."""
        gate = m.gate(x)
        if self.bias == "head":
            gate = (gate.unflatten(-1, y.shape[-2:]) + m.gate_bias[:, None]).flatten(-2)
        gate = torch.sigmoid(gate) if self.activation == "sigmoid" else F.softplus(gate.float()).to(y.dtype)
        return y.flatten(-2) * gate if self.over == "channel" else (y * gate[..., None]).flatten(-2)


class LatentGate(Node, name="gate", word="over"):
    """A gate on each head's output of multi-head latent attention, y·σ(x·W) (Ling 3, 2026)."""

    over: Literal["head", "channel"] = "head"
    """What one number of the gate multiplies: a whole head, or a channel (Hy4, 2026)."""
    reads: Literal["input", "latent"] = "input"
    """Input of the gate: x, or the input of the query projection (A.X K2, 2026)."""


class QKNorm(Node, name="qk_norm", word="norm"):
    """The norm of queries and keys (Dehghani et al., 2023)."""

    norm: WholeNorm
    """Norm of queries and of keys, with separate weights."""
    over: Literal["head", "heads", "whole"] = "head"
    """What is normalised together. "head": each head, with one weight for all heads (Qwen3). "heads": each head, with a
    weight of its own (Cohere). "whole": the channels of all heads (OLMo 2)."""
    last: bool = False
    """Whether the norm comes after the rotation (Llama 4) instead of before it."""

    def __post_init__(self) -> None:
        if self.last and self.over == "whole":
            raise ValueError("last: comes after heads are split, and over: whole before (one of them)")

    def list_parts(self, n_heads: int, n_kv_heads: int, head_dim: int) -> dict[str, Any]:
        counts = {"q_norm": n_heads, "k_norm": n_kv_heads}
        if self.over == "whole":
            return {name: Sized(self.norm, count * head_dim) for name, count in counts.items()}
        own = self.over == "heads"
        return {
            name: Sized(replace(self.norm, heads=count) if own else self.norm, head_dim)
            for name, count in counts.items()
        }


class ValueForm(Node, name="values"):
    """Settings of a head's values, where they differ from its keys."""

    head_dim: PositiveInt | None = None
    """Channels of a head's values; unless given, as many as its keys have (MiMo-V2-Flash, 2026)."""
    scale: PositiveFloat | None = None
    """Factor of the values (MiMo-V2-Flash, 2026)."""
    norm: WholeNorm | None = None
    """The norm of each head's values (Gemma 3n, 2025)."""
    rotate: bool = False
    """Whether values are rotated as keys are (Su et al., 2021, RoFormer's `rotary_value`)."""
    tied: bool = False
    """Whether one projection makes keys and values: values are the keys before the keys' norm and rotation (Gemma 4,
    2026)."""

    @property
    def changed(self) -> str | None:
        """Name of the first given field that changes projected values, such as `values.tied`; None if there is none."""
        return next((f"values.{name}" for name in ("tied", "rotate", "norm", "scale") if getattr(self, name)), None)

    def check(self, head_dim: int, position: Position) -> None:
        """Raises ValueError if values cannot be tied to keys `head_dim` wide, or rotated as these keys are."""
        if (self.tied or self.rotate) and (self.head_dim or head_dim) != head_dim:
            found = f"found values.head_dim={self.head_dim} and head_dim={head_dim}"
            raise ValueError(f"{self.changed}: makes of values what keys are, {found} (the same)")
        if self.rotate and not position.rotates:
            raise ValueError(f"values.rotate: position '{position.kind}' rotates nothing (rope, or leave it out)")


class OutNorm(Node, name="out_norm", word="norm"):
    """Norm of the heads' outputs before the output projection (Wang et al., 2022; BitNet b1.58)."""

    norm: WholeNorm
    """Norm of the outputs."""
    over: Literal["whole", "head"] = "whole"
    """What is normalised together. "whole": the outputs of all heads, after the gate. "head": each head's output,
    before the gate, with one weight for all heads (Meta, 2026, Muse Spark)."""


class QKVConvolution(Node, name="short_conv", word="width"):
    """A depthwise causal convolution of queries, keys and values along the tokens, right after their projections (So et
    al., 2021, Primer; Allen-Zhu, 2025, Canon layers)."""

    width: PositiveInt = 4
    """Tokens that each output reads. The state is the last width − 1 tokens."""
    over: Literal["qkv", "kv"] = "qkv"
    """What is convolved: queries, keys and values, or only keys and values."""
    residual: bool = False
    """Whether the convolution's input is added to its output (Thinking Machines, 2026, Inkling)."""


class DynamicConvolution(QKVConvolution, name="short_conv", word="width"):
    """A short convolution of keys and values whose weights may depend on the token (Wu et al., 2019)."""

    over: Literal["kv"] = "kv"
    """What is convolved: keys and values."""
    dynamic: bool = False
    """Whether each token adds weights of its own, x·W: one for every tap of every head of keys and of values."""
    scale: PositiveFloat = 1.0
    """Factor of the outputs."""


class Clip(Node, name="clip", word="bound"):
    """A bound on queries, keys and values (MPT, 2023; OLMo, 2024)."""

    bound: PositiveFloat
    """The largest magnitude of a channel."""
    normed: bool = False
    """Whether the bound comes after the norm of queries and keys (OLMoE, 2024) instead of before it."""

    def apply(self, x: Tensor) -> Tensor:
        return x.clamp(-self.bound, self.bound)
