# B batch, T queries, S keys, H heads, K kv heads, C head width, W tokens of the short convolution, D model width
"""Grouped-query attention whose sinks and short convolution may depend on the token."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.kernels.base import AttentionQuery
from zoo.lazy import Tensor, torch
from zoo.model.attention.base import Passes
from zoo.model.attention.gqa import GQA
from zoo.model.attention.nodes import DynamicConvolution
from zoo.model.ffn import multiply
from zoo.model.norm import WholeNorm
from zoo.spec import Linear, Sized

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class DynamicGQA(GQA, kind="dynamic_gqa"):
    """Grouped-query attention that can compute its sinks and its convolution's weights from its input (Thinking
    Machines, 2026, Inkling 2)."""

    memory: ClassVar[None] = None  # type: ignore[misc]
    moved: ClassVar[dict[str, str]] = GQA.moved | {
        "dynamic_conv": "short_conv: {dynamic: true}",
        "conv_scale": "short_conv: {scale: …}",
    }

    short_conv: DynamicConvolution | None = None
    """A short convolution of keys and values, whose weights may depend on the token."""
    token_sinks: bool = True
    """Whether the logits of the sinks are computed for each token and head, x·W."""
    k_norm: WholeNorm | None = None
    """Norm of keys; `qk_norm` unless given."""
    separate_inputs: bool = False
    """Whether the block makes three input vectors for each token: one for queries, gate, sinks and positions, one for
    keys, and one for values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks and self.token_sinks:
            raise ValueError("sinks are one logit a head, and token_sinks one for each token and head (one of them)")
        for name, given in (("kv_from", self.kv_from), ("values.tied", self.values and self.values.tied)):
            if given:
                raise ValueError(f"{name} is of keys and values that gqa makes alone (attention: gqa, or leave it out)")
        if self.short_conv and self.short_conv.dynamic and len(set(self.head_widths)) > 1:
            widths = f"values.head_dim={self.head_widths[1]} and head_dim={self.head_dim}"
            raise ValueError(f"short_conv.dynamic is of keys as wide as their values, found {widths} (the same)")

    @property
    def needs_block(self) -> str:  # type: ignore[override]
        return "attention_residual" if self.separate_inputs else ""

    @property
    def joins(self) -> tuple[tuple[str, ...], ...]:  # type: ignore[override]
        return (("q", "gate"),) if self.separate_inputs else (("q", "k", "v", "gate"),)

    @property
    def n_inputs(self) -> int:
        """Number N of input vectors that attention reads for each token, 1 or 3. Its input x is [B, T, D] or [B, T, 3,
        D]."""
        return 3 if self.separate_inputs else 1

    @property
    def passes(self) -> Passes:
        return Passes(split=super().passes.split and not self.token_sinks)

    def parts(self, d_model: int) -> dict[str, Any]:
        conv = self.short_conv
        taps = Linear(d_model, self.n_kv_heads * conv.width, precise=True) if conv and conv.dynamic else None
        return {
            **super().parts(d_model),
            **({"k_norm": Sized(self.k_norm, self.head_dim)} if self.k_norm else {}),
            **({"sinks": Linear(d_model, self.n_heads, precise=True)} if self.token_sinks else {}),
            **({"k_taps": taps, "v_taps": taps} if taps else {}),
        }

    def ask(self, dtype: str, **features: Any) -> AttentionQuery:
        return replace(
            super().ask(dtype, **features), sinks=self.sinks or self.token_sinks, token_sinks=self.token_sinks
        )

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        of_q, of_k, of_v = x.unbind(2) if self.separate_inputs else (x, x, x)  # B T D
        q = self._queries(m, m.q(of_q), step)  # B T H C
        k, v = m.k(of_k), m.v(of_v)
        if self.short_conv is not None:
            k, v = self._mix(m, self.short_conv, k, v, (of_k, of_v), step)
        k, own = self._keys_values(m, k, v, step)  # B T K C, B T K V
        k, v = step.remember(k=k, v=own)
        return self._attend(m, of_q, q, k, v, step, own)

    def _mix(
        self,
        m: Weights,
        conv: DynamicConvolution,
        k: Tensor,
        v: Tensor,
        made_of: tuple[Tensor, Tensor],
        step: Step,
    ) -> tuple[Tensor, ...]:
        """Convolve keys [B, T, K·C] and values along the tokens. `made_of` are the inputs [B, T, D] of the projections
        to keys and values; the dynamic weights are computed from them."""
        taps = None
        if conv.dynamic:
            each = (m.k_taps(made_of[0]), m.v_taps(made_of[1]))
            taps = torch.cat(each, -1).unflatten(-1, (2 * self.n_kv_heads, -1))  # B T 2K W
        return multiply(self._convolve(m, (k, v), step, taps), conv.scale).split(self._mixed, -1)

    def _sink(self, m: Weights, x: Tensor) -> Tensor | None:
        return m.sinks(x) if self.token_sinks else super()._sink(m, x)

    def _key_norm(self, m: Weights) -> Any:
        return m.k_norm if self.k_norm else super()._key_norm(m)
