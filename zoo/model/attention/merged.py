# S tokens of the encoder, K kv heads, C head width
"""Merged attention: the layer's self-attention reads the encoder's output too, in place of cross-attention."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveInt

from zoo.model.attention.base import Attention, MemoryReading
from zoo.model.attention.gqa import GQA
from zoo.spec import READ, Linear, Reused, split


class MergedAttention(Attention, kind="merged"):
    """Merged attention (Zhang et al., 2025, T5Gemma 2): the decoder's self-attention sees the encoder's output and the
    tokens in one softmax. The self-attention's projections make keys and values of both. The encoder's keys are not
    rotated, and no window hides them. Both sets of keys are copied into one tensor in each pass.

    This component has no weights and no queries. It has the dimensions of the layer's attention, and declares the
    encoder's part of the price: keys and values, computed once and cached, and pairs of queries and keys.
    """

    n_heads: PositiveInt
    """Number of query heads; must equal `n_heads` of the layer's attention."""
    n_kv_heads: PositiveInt
    """Number of heads of keys and values; must equal `n_kv_heads` of the layer's attention."""
    head_dim: PositiveInt
    """Channels of a head's keys."""
    v_head_dim: PositiveInt | None = None
    """Channels of a head's values; `head_dim` unless given."""

    @property
    def memory(self) -> MemoryReading:  # type: ignore[override]
        return MemoryReading(own_sublayer=False, check=self.check_beside)

    def check_beside(self, attention: Attention) -> None:
        """Raises ValueError if a self-attention cannot also read an encoder's output, or has other dimensions than this
        component."""
        if not isinstance(attention, GQA) or attention.memory is None:
            raise ValueError(
                f"cross '{self.kind}' is of softmax attention, found '{attention.kind}' (gqa, or cross: mha)"
            )
        for name in ("n_heads", "n_kv_heads", "head_widths"):
            own, made = getattr(self, name), getattr(attention, name)
            if own != made:
                found = f"cross.{name} is {own}, and attention, which reads the encoder, has {name}={made}"
                raise ValueError(f"{found} (the same)")
        own = {name: getattr(attention, name) for name in ("kv_from", "indexer", "short_conv")}
        own |= {"window_kind": attention.sight.chunk, "values.tied": attention.values and attention.values.tied}
        for name, given in own.items():
            if given:
                raise ValueError(
                    f"attention.{name} is of tokens alone, and cross '{self.kind}' adds others (leave it out)"
                )
        if attention.position.biases or attention.position.reads_input:
            found = (
                f"position '{attention.position.kind}' adds to the scores of tokens, and an encoder's are beside them"
            )
            raise ValueError(f"{found} (rope or none, or cross: mha)")

    @property
    def head_widths(self) -> tuple[int, int]:
        """Channels of a head's queries and keys, and of its values."""
        return self.head_dim, self.v_head_dim or self.head_dim

    def parts(self, d_model: int) -> dict[str, Any]:
        widths = zip("kv", self.head_widths, strict=True)
        made = {name: Linear(d_model, self.n_kv_heads * width) for name, width in widths}
        return {name: Reused(f"attention.{name}", of, role=READ) for name, of in made.items()}

    def shard(self, ranks: int) -> MergedAttention:
        return split(self, ranks, equal=("n_heads",), shared=("n_kv_heads",))

    def cache(self) -> dict[str, tuple[int, ...]]:
        return {name: (self.n_kv_heads, width) for name, width in zip("kv", self.head_widths, strict=True)}

    def core_flops(self, pairs: int) -> int:
        return 2 * self.n_heads * sum(self.head_widths) * pairs  # QKᵀ and PV
