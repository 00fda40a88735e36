# B batch, T queries, S keys, H heads, K kv heads, C head width, D model width
"""Softmax attention with one set of keys and values for every group of query heads."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveFloat, PositiveInt

from zoo.attention import Attention
from zoo.kernels import attend
from zoo.kernels.base import Ask
from zoo.norm import Norm
from zoo.position import Position
from zoo.spec import Linear, Sized


class GQA(Attention, kind="gqa"):
    """Grouped-query attention (Ainslie et al., 2023): n_kv_heads = n_heads is MHA (Vaswani et al., 2017), 1 is MQA
    (Shazeer, 2019).

    `window` W lets a query see W keys, itself included (Beltagy et al., 2020; Mistral). `qk_norm` normalises each
    head's
    queries and keys (Dehghani et al., 2023). `softcap` bounds the scores by c·tanh(s/c) (Gemma 2). `scale` is what the
    scores are multiplied by, 1/√head_dim unless given. `bias` is for q, k and v; `o_bias` follows it unless given.
    """

    n_heads: PositiveInt
    n_kv_heads: PositiveInt
    head_dim: PositiveInt
    position: Position
    bias: bool = False
    o_bias: bool | None = None
    window: PositiveInt | None = None
    qk_norm: Norm | None = None
    softcap: PositiveFloat | None = None
    scale: PositiveFloat | None = None

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}")
        self.position.check(self.head_dim)

    @property
    def visible_window(self) -> int | None:
        return self.window

    @property
    def score_heads(self) -> int:
        return self.n_heads

    @property
    def positioning(self) -> Position:
        return self.position

    def parts(self, d_model: int) -> dict[str, Any]:
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        parts: dict[str, Any] = {
            "q": Linear(d_model, q, self.bias),
            "k": Linear(d_model, kv, self.bias),
            "v": Linear(d_model, kv, self.bias),
            "o": Linear(q, d_model, self.bias if self.o_bias is None else self.o_bias, residual=True),
        }
        if self.qk_norm:
            parts |= {"q_norm": Sized(self.qk_norm, self.head_dim), "k_norm": Sized(self.qk_norm, self.head_dim)}
        return parts

    def cache(self) -> dict[str, tuple[int, ...]]:
        return {"k": (self.n_kv_heads, self.head_dim), "v": (self.n_kv_heads, self.head_dim)}

    def core_flops(self, pairs: int) -> int:
        return 4 * self.n_heads * self.head_dim * pairs  # QKᵀ and PV

    def ask(self, device: str, dtype: str, **features: Any) -> Ask:
        return Ask(
            device=device,
            dtype=dtype,
            head_dim=self.head_dim,
            v_head_dim=self.head_dim,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            softcap=self.softcap is not None,
            bias="fixed" if self.position.biases else "none",
            window=self.window is not None,
            **features,
        )

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        q = m.q(x).unflatten(-1, (self.n_heads, self.head_dim))  # B T H C
        k = m.k(x).unflatten(-1, (self.n_kv_heads, self.head_dim))  # B T K C
        v = m.v(x).unflatten(-1, (self.n_kv_heads, self.head_dim))  # B T K C
        if self.qk_norm:
            q, k = m.q_norm(q), m.k_norm(k)
        q, k = self.position.rotate(q, step.tables), self.position.rotate(k, step.tables)
        k, v = step.remember(k=k, v=v)  # B S K C
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        y = attend(q, k, v, step.mask, scale=scale, softcap=self.softcap, bias=step.bias, kernel=step.kernel)
        return m.o(y.flatten(-2))  # B T D
