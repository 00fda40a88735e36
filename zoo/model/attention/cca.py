# B batch, T queries, S keys, H heads, K kv heads, G heads of a kv head, C head width, D model width
"""Softmax attention whose queries and keys pass through convolutions along the tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.kernels.base import AttentionQuery
from zoo.lazy import Tensor, torch
from zoo.model.attention.base import MultiHead, Passes, Sight, check_multiple
from zoo.model.attention.recurrent import check_causal, convolve, shift_tokens
from zoo.model.norm import RMSNorm, WholeNorm
from zoo.spec import READ, Conv, Linear, Sized, Weight, refuse_ranks

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class CCA(MultiHead, kind="cca"):
    """Compressed convolutional attention (Figliolia et al., 2025; Zyphra, 2026, ZAYA1): attention in heads that
    together are narrower than the stream.

    With the projections q and k, queries are conv(q) + q̄ and keys are conv(k) + k̄: q̄ is the mean of a query head's q
    and its kv head's k, k̄ the mean of q̄ over the query heads of a kv head. conv is a depthwise causal convolution,
    followed by one that mixes the channels of each head. In place of tokens before a text, the second convolution reads
    the bias of the first, not zeros. Queries and keys are normalised and rotated, and keys are multiplied by a learned
    number for each of `n_kv_heads`. A value's first half of channels comes from the token itself, its second half from
    the token before it.
    """

    passes: ClassVar[Passes] = Passes()  # type: ignore[misc]
    causal: ClassVar[bool | None] = True
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v", "v_before"),)

    n_kv_heads: PositiveInt
    """Number of heads of keys and values, a divisor of `n_heads`."""
    token_width: PositiveInt = 2
    """Width, in tokens, of the first convolution of queries and keys, the depthwise one."""
    head_width: PositiveInt = 2
    """Width, in tokens, of the second convolution of queries and keys, the one that mixes a head's channels."""
    qk_norm: WholeNorm = RMSNorm(weight=False)
    """Norm of each head's queries and keys."""
    bias: bool = False
    """Whether the projections have a bias; the convolutions always do."""
    window: PositiveInt | None = None
    """Number of keys that a query sees, itself included; all keys unless given."""

    def __post_init__(self) -> None:
        check_multiple(self, "n_heads", "n_kv_heads")
        if self.n_kv_heads * self.head_dim % 2:
            found = f"n_kv_heads={self.n_kv_heads} times head_dim={self.head_dim} is odd"
            raise ValueError(f"{found}, and half of the values are of the token before (an even one)")
        self.position.check(self.head_dim)

    @property
    def sight(self) -> Sight:
        return Sight(self.window)

    @property
    def _mixed(self) -> tuple[int, int]:
        return self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim

    def parts(self, d_model: int) -> dict[str, Any]:
        (q, k), mixed = self._mixed, sum(self._mixed)
        return {
            "q": Linear(d_model, q, self.bias),
            "k": Linear(d_model, k, self.bias, role=READ),
            "v": Linear(d_model, k // 2, self.bias, role=READ),
            "v_before": Linear(d_model, k // 2, role=READ),
            **({"v_before_bias": Weight((k // 2,))} if self.bias else {}),
            "token_conv": Conv(mixed, mixed, self.token_width, groups=mixed),
            "token_bias": Weight((mixed,)),
            "head_conv": Conv(mixed, mixed, self.head_width, groups=self.n_heads + self.n_kv_heads, bias=True),
            "q_norm": Sized(self.qk_norm, self.head_dim),
            "k_norm": Sized(self.qk_norm, self.head_dim),
            "key_scale": Weight((self.n_kv_heads,), init=1.0),
            "o": Linear(q, d_model, self.bias, residual=True),
            **({"position": self.position} if self.position.per_layer else {}),
        }

    shard = refuse_ranks("ranks divide heads, and 'cca' makes the values of some of the token before, of others not")

    def cache(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys("kv", (self.n_kv_heads, self.head_dim))

    def state(self) -> dict[str, tuple[int, ...]]:
        mixed = sum(self._mixed)
        widths = {"token_conv": self.token_width, "head_conv": self.head_width}
        held = {name: (width - 1, mixed) for name, width in widths.items() if width > 1}
        return held | {"value": (self._mixed[1] // 2,)}

    def ask(self, dtype: str, **features: Any) -> AttentionQuery:
        return replace(super().ask(dtype, **features), n_kv_heads=self.n_kv_heads)

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step)
        q, k = self._mix(m, m.q(x), m.k(x), step)  # B T H C, B T K C
        q, k = m.q_norm(q), m.k_norm(k) * m.key_scale[:, None]
        q, k = (self.position.rotate(each, step.tables) for each in (q, k))
        before = shift_tokens(m.v_before(x), step, "value")
        before = before + m.v_before_bias if self.bias else before  # also for a text's first token
        v = torch.cat((m.v(x), before), -1).unflatten(-1, (self.n_kv_heads, -1))  # B T K C
        k, v = step.remember(k=k, v=v)
        y = self.attend(m, step, q, k, v, self.head_dim**-0.5)
        return m.o(y.flatten(-2))  # B T D

    def _mix(self, m: Weights, q: Tensor, k: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Convolve queries [B, T, H·C] and keys [B, T, K·C], and add q̄ and k̄: [B, T, H, C] and [B, T, K, C]."""
        mixed = convolve(m.token_conv, torch.cat((q, k), -1), step, "token_conv")
        mixed = convolve(m.head_conv, mixed, step, "head_conv", m.token_bias)
        mixed = mixed.contiguous().unflatten(-1, (-1, self.head_dim))  # was channels-first, which attention refuses
        new_q, new_k = mixed.split((self.n_heads, self.n_kv_heads), 2)
        heads = q.unflatten(-1, (self.n_kv_heads, -1, self.head_dim))  # B T K G C
        mean_q = (heads + k.unflatten(-1, (self.n_kv_heads, 1, -1))) * 0.5
        return new_q + mean_q.flatten(2, 3), new_k + mean_q.mean(3)
