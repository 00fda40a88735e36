# B batch, T queries, S keys, H heads, K kv heads, C head width, V a value's width, D model width
"""Softmax attention with one set of keys and values for every group of query heads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from zoo.kernels.base import AttentionQuery
from zoo.kernels.view.joined import join_keys
from zoo.lazy import Tensor, torch
from zoo.model.attention.base import MemoryReading, Passes, Sight, SoftmaxAttention, check_multiple
from zoo.model.attention.indexer import Indexer, check_indexer
from zoo.model.attention.nodes import Clip, OutNorm, OutputGate, QKNorm, QKVConvolution, ValueForm, check_word
from zoo.model.attention.recurrent import check_causal, convolve
from zoo.model.attention.tempering import Tempering
from zoo.model.attention.value_residual import FirstValues, mix_first
from zoo.model.lending import LentKeys, Loan
from zoo.spec import READ, Conv, Linear, Sized, Weight, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


def remove_along(y: Tensor, own: Tensor) -> Tensor:
    """Remove from the heads' outputs y [B, T, H, V] their components along `own` [B, T, K, V], one vector for each kv
    head."""
    grouped, v = y.unflatten(-2, (own.shape[-2], -1)), own.unsqueeze(-2)  # B T K G V, B T K 1 V
    along = (grouped * v).sum(-1, keepdim=True) / v.square().sum(-1, keepdim=True).clamp(min=1e-12)
    return (grouped - along * v).flatten(-3, -2)


LENT_ALIKE = ("n_kv_heads", "head_widths", "window", "window_kind", "position")
"""Fields that must be equal in a layer and in the layer whose keys and values it reads."""


class GQA(SoftmaxAttention, kind="gqa"):
    """Grouped-query attention (Ainslie et al., 2023): n_kv_heads = n_heads is MHA (Vaswani et al., 2017), 1 is MQA
    (Shazeer, 2019).

    Operations in order: q, k, v = x·W; short_conv; clip; qk_norm; the rotation; value_residual; softmax(scale·q·kᵀ)·v;
    exclusive; gate; out_norm; o.
    """

    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v", "gate"),)
    moved: ClassVar[dict[str, str]] = {
        "o_bias": "bias: qkv, where `o` alone has none; bias: o, where it alone has one",
        "chunk": "window: 8192, window_kind: chunked",
        "window_sides": "window_kind: centred",
        "qk_norm_over": "qk_norm: {over: …}",
        "qk_norm_last": "qk_norm: {last: true}",
        "clip_normed": "clip: {bound: …, normed: true}",
        "output_gate": "gate: true",
        "gate_over": "gate: {over: …}",
        "gate_activation": "gate: {activation: …}",
        "gate_bias": "gate: {bias: …}",
        "v_head_dim": "values: {head_dim: …}",
        "value_scale": "values: {scale: …}",
        "v_norm": "values: {norm: …}",
        "rotate_values": "values: {rotate: true}",
        "k_is_v": "values: {tied: true}",
        "out_norm_over": "out_norm: {over: …}",
        "short_conv_over": "short_conv: {over: …}",
        "short_conv_residual": "short_conv: {residual: true}",
    }

    n_kv_heads: PositiveInt
    """Number of heads of keys and values. Each serves n_heads / n_kv_heads heads of queries."""
    head_dim: PositiveInt
    """Channels of a head's queries and keys."""
    bias: Annotated[bool | Literal["qkv", "o"], check_word("qkv", "o")] = False
    """Which projections have a bias: all (true), the ones of queries, keys and values (qkv), or the output's (o)."""
    window: PositiveInt | None = None
    """Number of keys that a causal query sees, itself included, or that a bidirectional one sees to either side; null
    for all (Beltagy et al., 2020; Mistral)."""
    window_kind: Literal["sliding", "centred", "chunked"] = "sliding"
    """Where the window of W keys lies. sliding: the W keys up to the query's own, or W to either side of a
    bidirectional query. centred: W keys around and including the query's own; if W is even, one more after it than
    before it (T5Gemma 2, 2025). chunked: the W positions of the query's own chunk, counted from 0 (Llama 4, 2025)."""
    qk_norm: QKNorm | None = None
    """The norm of queries and keys (Dehghani et al., 2023)."""
    softcap: PositiveFloat | None = None
    """The bound c of the scores s, c·tanh(s/c) (Gemma 2, 2024)."""
    scale: PositiveFloat | None = None
    """Factor of the scores; 1/√head_dim unless given."""
    sinks: bool = False
    """Whether each head's softmax has one more, learned logit without a value (Xiao et al., 2023; gpt-oss)."""
    clip: Clip | None = None
    """A bound on queries, keys and values (MPT, 2023; OLMo, 2024)."""
    exclusive: bool = False
    """Whether a head's output y loses its part along the token's own value v, y − (y·v)·v / |v|² (Zhai, 2026, exclusive
    self-attention)."""
    value_residual: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share λ of the first layer's values v₁ in this layer's values, (1 − λ)·v + λ·v₁; 0.5 in the paper's constant
    ResFormer (Zhou et al., 2024). The first layer with this field keeps its own values."""
    gate: OutputGate | None = None
    """A gate on each head's output, σ(x·W) (Qiu et al., 2025; Qwen3-Next)."""
    tempering: Tempering | None = None
    """Tempering: a factor of the queries that grows with position (Llama 4, 2025)."""
    values: ValueForm | None = None
    """Settings of the values that differ from those of the keys."""
    out_norm: OutNorm | None = None
    """Norm of the heads' outputs before the output projection (Wang et al., 2022; BitNet b1.58)."""
    short_conv: QKVConvolution | None = None
    """A short convolution of queries, keys and values along the tokens (So et al., 2021, Primer)."""
    kv_from: str | None = None
    """Kind of layer whose keys and values this layer reads instead of making its own, from the last layer of that kind
    before this one (Brandon et al., 2024, cross-layer attention; Gemma 3n)."""
    memory_width: PositiveInt | None = None
    """Width of the encoder's output in cross-attention; the width of the queries' stream unless given (T5Gemma)."""
    indexer: Indexer | None = None
    """Indexer that chooses the keys of a query (MiniMax-M3, 2026: blocks of keys for each group of heads)."""

    def __post_init__(self) -> None:
        check_multiple(self, "n_heads", "n_kv_heads")
        least = {"sliding": 0, "chunked": 1, "centred": 3}[self.window_kind]
        if (self.window or 0) < least:
            raise ValueError(f"window_kind={self.window_kind}: is of a window of {least} or more, found {self.window}")
        if self.window_kind == "centred" and self.short_conv:
            raise ValueError("window_kind=centred: sees what comes after, and a short_conv does not (one of them)")
        if self.clip and self.clip.normed and (self.qk_norm is None or self.qk_norm.last):
            raise ValueError("clip.normed: comes between `qk_norm` and the rotation (give it, or leave normed out)")
        if self.kv_from and (own := (self.values and self.values.changed) or (self.short_conv and "short_conv")):
            raise ValueError(f"{own} is of keys and values, which '{self.kv_from}' layers make (leave one of them out)")
        if self.values:
            self.values.check(self.head_dim, self.position)
        if self.exclusive and self.kv_from:
            raise ValueError(f"exclusive is of a token's own value, and '{self.kv_from}' layers make it (one of them)")
        if self.value_residual and self.kv_from:
            raise ValueError(f"value_residual is of values that '{self.kv_from}' layers make (one of them)")
        check_indexer(self, self.head_dim, ("window", "kv_from"))
        if not self.position.reads_input:
            self.position.check(self.head_dim)

    @property
    def memory(self) -> MemoryReading | None:  # type: ignore[override]
        of_tokens = {
            "exclusive": "is of a token's own value",
            "indexer": "chooses among tokens",
            "kv_from": "names layers that read tokens",
            "short_conv": "reads tokens in order",
            "value_residual": "mixes values of tokens",
            "window": "counts the places of tokens",
            "tempering": "counts the places of tokens",
        }
        found = [f"{name} {why}" for name, why in of_tokens.items() if getattr(self, name)]
        fault = f"{found[0]}, and cross-attention reads an encoder's output whole (null)" if found else ""
        return MemoryReading(self.memory_width, fault=fault)

    @property
    def causal(self) -> bool | None:  # type: ignore[override]
        return False if self.window_kind == "centred" else None if self.short_conv is None else True

    @property
    def passes(self) -> Passes:
        return Passes(split=self.short_conv is None and not self.position.reads_input)

    @property
    def sight(self) -> Sight:
        if self.window_kind == "centred" and self.window:
            return Sight((self.window - 1) // 2, ahead=self.window // 2)
        return Sight(chunk=self.window) if self.window_kind == "chunked" else Sight(self.window)

    @property
    def chooser(self) -> Indexer | None:
        return self.indexer

    @property
    def loan(self) -> Loan | None:  # type: ignore[override]
        return Loan(self.kv_from, alike=LENT_ALIKE) if self.kv_from is not None else None

    @property
    def takes(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*super().takes, FirstValues.name) if self.value_residual else super().takes

    @property
    def gives(self) -> tuple[str, ...]:  # type: ignore[override]
        return (LentKeys.name, FirstValues.name) if self.value_residual else (LentKeys.name,)

    @property
    def summed(self) -> int:  # type: ignore[override]
        normed = 2 if self.qk_norm and self.qk_norm.over == "whole" else 0  # the mean squares of queries and keys
        return normed + (self.out_norm is not None and self.out_norm.over == "whole")

    @property
    def head_widths(self) -> tuple[int, int]:
        return self.head_dim, self.head_dim if self.values is None else self.values.head_dim or self.head_dim

    def parts(self, d_model: int) -> dict[str, Any]:
        q, v_width = self.n_heads * self.head_dim, self.head_widths[1]
        out, input_bias = self.n_heads * v_width, self.bias in (True, "qkv")
        mixed = self._mixed
        return {
            "q": Linear(d_model, q, input_bias),
            **self._made(d_model, input_bias),
            **(self.gate.list_parts(d_model, self.n_heads, v_width, input_bias) if self.gate else {}),
            **(
                {"conv": Conv(sum(mixed), sum(mixed), self.short_conv.width, groups=sum(mixed), segments=mixed)}
                if self.short_conv
                else {}
            ),
            "o": Linear(out, d_model, self.bias in (True, "o"), residual=True),
            **self._norms(),
            **(
                {"out_norm": Sized(self.out_norm.norm, out if self.out_norm.over == "whole" else v_width)}
                if self.out_norm
                else {}
            ),
            **({"sinks": Weight((self.n_heads,))} if self.sinks else {}),
            **(self.tempering.list_parts(self.n_heads) if self.tempering else {}),
            **(self.indexer.list_parts(d_model, d_model) if self.indexer else {}),
            **({"position": self.position} if self.position.per_layer else {}),
        }

    def _made(self, d_model: int, bias: bool) -> dict[str, Any]:
        """List the projections of keys and values; none if they are another layer's."""
        if self.kv_from is not None:
            return {}
        read, (width, v_width) = self.memory_width or d_model, self.head_widths
        key = {"k": Linear(read, self.n_kv_heads * width, bias, role=READ)}
        tied = self.values is not None and self.values.tied
        return key if tied else key | {"v": Linear(read, self.n_kv_heads * v_width, bias, role=READ)}

    def _norms(self) -> dict[str, Any]:
        norms = self.qk_norm.list_parts(self.n_heads, self.n_kv_heads, self.head_dim) if self.qk_norm else {}
        if self.kv_from is not None:
            norms.pop("k_norm", None)
        own = self.values and self.values.norm
        return norms | ({"v_norm": Sized(own, self.head_widths[1])} if own else {})

    def shard(self, ranks: int) -> GQA:
        indexer = self.indexer and self.indexer.shard(ranks)
        own = split(self, ranks, equal=("n_heads",), shared=("n_kv_heads",))
        position = self.position.shard(ranks) if self.position.reads_input else self.position
        return replace(own, indexer=indexer, position=position)

    def cache(self) -> dict[str, tuple[int, ...]]:
        if self.kv_from is not None:
            return {}
        return self.attended() | (self.indexer.cache() if self.indexer else {})

    def attended(self) -> dict[str, tuple[int, ...]]:
        return {name: (self.n_kv_heads, width) for name, width in zip("kv", self.head_widths, strict=True)}

    def state(self) -> dict[str, tuple[int, ...]]:
        return {"conv": (self.short_conv.width - 1, sum(self._mixed))} if self.short_conv else {}

    @property
    def _mixed(self) -> tuple[int, ...]:
        """Numbers of channels that are convolved: of all queries (unless `over` is "kv"), all keys and all values."""
        width, v_width = self.head_widths
        every = self.n_heads * width, self.n_kv_heads * width, self.n_kv_heads * v_width
        return every[1:] if self.short_conv and self.short_conv.over == "kv" else every

    def ask(self, dtype: str, **features: Any) -> AttentionQuery:
        ask = super().ask(dtype, **features | {"chosen": self.indexer is not None or features.get("chosen", False)})
        return replace(ask, n_kv_heads=self.n_kv_heads, softcap=self.softcap, sinks=self.sinks)

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        own = None  # values of these tokens alone
        if step.crosses:
            q = self._queries(m, m.q(x), step)  # B T H C
            k, v = self._read_memory(m, step)
        elif self.kv_from is not None:
            q = self._queries(m, m.q(x), step)
            k, v = step.read(LentKeys.name)
        else:
            q, k, v = self._project(m, x, step)
            q = self._queries(m, q, step)
            k, own = self._keys_values(m, k, v, step)  # B T K C, B T K V
            k, v = step.give(LentKeys.name, step.remember(k=k, v=own))
        if step.keys.joined:
            k, v = step.apply(join_keys, self._read_memory(m, step.cross), (k, v))
        return self._attend(m, x, q, k, v, step, own)

    def _attend(self, m: Weights, x: Tensor, q: Tensor, k: Tensor, v: Tensor, step: Step, own: Tensor | None) -> Tensor:
        """Attend from queries q [B, T, H, C], made of x [B, T, D], to keys [B, S, K, C] and values [B, S, K, V]; `own`
        [B, T, K, V] are the values of x."""
        if self.indexer is not None:
            self.indexer.choose(m, x, x, step, self.n_heads)
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        sinks = self._sink(m, x)
        read = self._tempered(m, self.position.read(m.position, x), step) if self.position.reads_input else None
        y = self.attend(m, step, q, k, v, scale, softcap=self.softcap, sinks=sinks, read=read)  # B T H V
        y = remove_along(y, own) if self.exclusive and own is not None else y
        each = self.out_norm is not None and self.out_norm.over == "head"
        y = m.out_norm(y) if each else y
        y = self.gate.apply(m, x, y) if self.gate else y.flatten(-2)  # B T H·V
        return m.o(m.seam.normalise(m.out_norm, y) if self.out_norm and not each else y)  # B T D

    def _sink(self, m: Weights, x: Tensor) -> Tensor | None:
        """Return the sinks' logits, for queries made of x [B, T, D]; None without sinks."""
        return m.sinks if self.sinks else None

    def _read_memory(self, m: Weights, step: Any) -> tuple[Tensor, Tensor]:
        """Get keys and values of the encoder's output, computed in the first pass and then read from the cache."""
        return step.recall(lambda memory: self._keys_values(m, *self._made_of(m, memory), step), "k", "v")

    def _made_of(self, m: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        """Make keys [B, S, K·C] and values [B, S, K·V] of x [B, S, D]. Tied keys and values come from one
        projection."""
        k = m.k(x)
        return k, k if self.values and self.values.tied else m.v(x)

    def _project(self, m: Weights, x: Tensor, step: Step) -> tuple[Tensor, ...]:
        """Make queries [B, T, H·C], keys [B, T, K·C] and values [B, T, K·V] of x [B, T, D]."""
        q, (k, v) = m.q(x), self._made_of(m, x)
        if self.short_conv is None:
            return q, k, v
        untouched = (q, k, v)[: -len(self._mixed)]
        return *untouched, *self._convolve(m, (q, k, v)[len(untouched) :], step).split(self._mixed, -1)

    def _convolve(self, m: Weights, every: tuple[Tensor, ...], step: Step, taps: Tensor | None = None) -> Tensor:
        """Convolve projections [B, T, …] along the tokens, with each token's own `taps` if given: [B, T, channels]."""
        check_causal(step)
        plain = torch.cat(every, -1)
        mixed = convolve(m.conv, plain, step, taps=taps).contiguous()  # was channels-first, which attention refuses
        return mixed + plain if self.short_conv.residual else mixed  # type: ignore[union-attr]

    def _queries(self, m: Weights, q: Tensor, step: Step) -> Tensor:
        """Split queries [B, T, H·C] into heads [B, T, H, C], normalise, rotate and temper them."""
        return self._tempered(m, self._turned(m, q, m.q_norm if self.qk_norm else None, self.n_heads, step), step)

    def _tempered(self, m: Weights, q: Tensor, step: Step) -> Tensor:
        """Temper queries [B, T, H, …], or the logits [B, T, H, …] that a position scheme computes from the input, by
        their positions."""
        if self.tempering is None:
            return q
        assert step.positions is not None
        return self.tempering.temper(m, q, step.positions)

    def _keys_values(self, m: Weights, k: Tensor, v: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Split keys [B, S, K·C] and values [B, S, K·V] into heads, normalise and rotate: [B, S, K, C],
        [B, S, K, V]."""
        k = self._turned(m, k, self._key_norm(m), self.n_kv_heads, step)
        v = self._clipped(v).unflatten(-1, (self.n_kv_heads, self.head_widths[1]))
        if self.values is not None:
            v = m.v_norm(v) if self.values.norm else v
            v = self.position.rotate(v, step.tables) if self.values.rotate and not step.crosses else v
            v = v if self.values.scale is None else v * self.values.scale
        return k, v if self.value_residual is None else mix_first(v, self.value_residual, step)

    def _key_norm(self, m: Weights) -> Any:
        return m.k_norm if self.qk_norm else None

    def _turned(self, m: Weights, x: Tensor, norm: Any, n_heads: int, step: Step) -> Tensor:
        """Clip, normalise and rotate queries or keys [B, T, heads·C]: [B, T, heads, C]."""
        late = self.clip is not None and self.clip.normed
        x = x if late else self._clipped(x)
        over, last = (self.qk_norm.over, self.qk_norm.last) if self.qk_norm else ("head", False)
        if norm is not None and over == "whole":
            x = m.seam.normalise(norm, x)
        x = x.unflatten(-1, (n_heads, self.head_dim))
        if norm is not None and not last and over != "whole":
            x = norm(x)
        x = self._clipped(x) if late else x
        x = x if step.crosses else self.position.rotate(x, step.tables)
        return norm(x) if norm is not None and last else x

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else self.clip.apply(x)
