# B batch, T queries, S keys, H heads, K kv heads, C head width, V a value's width, D model width
"""Softmax attention with one set of keys and values for every group of query heads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, PositiveFloat, PositiveInt

from zoo.kernels.base import Ask
from zoo.lazy import F, torch
from zoo.model.attention.base import SoftmaxAttention
from zoo.model.attention.indexer import Indexer, check_tokens_chosen
from zoo.model.attention.recurrent import check_causal, convolve
from zoo.model.attention.tempering import Tempering
from zoo.model.norm import WholeNorm
from zoo.spec import READ, Conv, Linear, Sized, Weight, split

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


def _check_gate_bias(bias: Any) -> Any:
    if bias is not None and not isinstance(bias, bool) and bias != "head":
        raise ValueError(f"must be true, false or head, found {bias!r}")
    return bias


class GQA(SoftmaxAttention, kind="gqa"):
    """Grouped-query attention (Ainslie et al., 2023): n_kv_heads = n_heads is MHA (Vaswani et al., 2017), 1 is MQA
    (Shazeer, 2019).

    `window` W lets a causal query see W keys, itself included (Beltagy et al., 2020; Mistral), and one that sees both
    ways W to either side, or with `window_sides` both W in all, one more of them behind it than before where W is even
    (T5Gemma 2, 2025); `chunk` C only those of its own C positions, counted from 0 (Llama 4). `scale` is what scores
    are multiplied by, 1/√head_dim unless given; `softcap` bounds them by c·tanh(s/c) (Gemma 2). `sinks` adds a learned
    score a head that no value stands behind (Xiao et al., 2023; gpt-oss). `clip` bounds queries, keys and values (OLMo,
    MPT), before the norm of queries and keys or with `clip_normed` after it (OLMoE). `output_gate` multiplies each
    head's output by σ(x·W) (Qiu et al., 2025; Qwen3-Next): each channel, or with `gate_over` head the head as a whole;
    `gate_activation` may be softplus (Laguna, 2026). `bias` is for q, k and v; `o_bias` and `gate_bias` follow it
    unless given; a `gate_bias` of "head" is one number for all channels of a head (Reflection, 2026, Beam).
    A head's values are `v_head_dim` wide, as its keys unless given, and multiplied by `value_scale` (MiMo-V2-Flash,
    2026). `out_norm` normalises all heads' outputs as one vector before `o` (BitNet b1.58; Wang et al., 2022), or with
    `out_norm_over` head each by itself before the gate, with one weight for all heads (Meta, 2026, Muse Spark).

    `qk_norm` normalises queries and keys (Dehghani et al., 2023), `qk_norm_over` says what at once: a "head" with one
    weight for all heads (Qwen3), each of the "heads" with its own (Cohere), or all heads' channels as a "whole"
    (OLMo 2). With `qk_norm_last` it comes after the rotation (Llama 4). `tempering` makes queries grow with position.
    A layer with `kv_from` has no keys and values of its own: it reads those of the last layer before it of the kind
    named so (Brandon et al., 2024, cross-layer attention; Gemma 3n), from that layer's cache. With `k_is_v` one product
    gives both, values before the norm and rotation of keys (Gemma 4, 2026). `v_norm` normalises each head's values.
    `rotate_values` rotates values as keys are (Su et al., 2021, RoFormer's `rotary_value`).

    In cross-attention the encoder's output is `memory_width` wide, as the queries' stream unless given (T5Gemma, 2025).

    With an `indexer` a query attends to the keys that it chooses alone (MiniMax-M3, 2026: blocks of keys for each group
    of heads).

    `short_conv` W passes queries, keys and values through a depthwise causal convolution of W tokens, before anything
    else is done to them (So et al., 2021, Primer; Allen-Zhu, 2025, Canon layers). Its state is the last W − 1 of them.
    `short_conv_over` says which of them, and with `short_conv_residual` they are added to what it makes of them
    (Thinking Machines, 2026, Inkling: keys and values).
    """

    takes_memory: ClassVar[bool] = True
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v", "gate"),)

    n_kv_heads: PositiveInt
    head_dim: PositiveInt
    bias: bool = False
    o_bias: bool | None = None
    window: PositiveInt | None = None
    window_sides: Literal["each", "both"] = "each"
    chunk: PositiveInt | None = None
    qk_norm: WholeNorm | None = None
    qk_norm_over: Literal["head", "heads", "whole"] = "head"
    qk_norm_last: bool = False
    softcap: PositiveFloat | None = None
    scale: PositiveFloat | None = None
    sinks: bool = False
    clip: PositiveFloat | None = None
    clip_normed: bool = False
    output_gate: bool = False
    gate_over: Literal["channel", "head"] = "channel"
    gate_activation: Literal["sigmoid", "softplus"] = "sigmoid"
    gate_bias: Annotated[bool | Literal["head"] | None, BeforeValidator(_check_gate_bias)] = None
    tempering: Tempering | None = None
    rotate_values: bool = False
    v_head_dim: PositiveInt | None = None
    value_scale: PositiveFloat | None = None
    out_norm: WholeNorm | None = None
    out_norm_over: Literal["whole", "head"] = "whole"
    short_conv: PositiveInt | None = None
    short_conv_over: Literal["qkv", "kv"] = "qkv"
    short_conv_residual: bool = False
    kv_from: str | None = None
    k_is_v: bool = False
    v_norm: WholeNorm | None = None
    memory_width: PositiveInt | None = None
    indexer: Indexer | None = None

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}")
        if self.window_sides == "both" and (self.short_conv or (self.window or 0) < 3):
            found = f"found window={self.window} and short_conv={self.short_conv} (3 or more, and null)"
            raise ValueError(f"window_sides=both divides a window among what comes before and after, {found}")
        if self.window and self.chunk:
            raise ValueError(f"window={self.window} and chunk={self.chunk} both limit what is seen (one of them)")
        if self.qk_norm is None and (self.qk_norm_last or self.qk_norm_over != "head"):
            idle = "qk_norm_last" if self.qk_norm_last else f"qk_norm_over={self.qk_norm_over}"
            raise ValueError(f"{idle} places the norm of queries and keys, and there is none (give `qk_norm`)")
        if self.rotate_values and len(set(self.head_widths)) > 1:
            widths = f"v_head_dim={self.v_head_dim} and head_dim={self.head_dim}"
            raise ValueError(f"rotate_values turns values by the angles of keys, found {widths} (leave v_head_dim out)")
        self._check_gate()
        if self.out_norm is None and self.out_norm_over != "whole":
            raise ValueError("out_norm_over says what the norm of outputs is over, and there is none (give `out_norm`)")
        if self.qk_norm_last and self.qk_norm_over == "whole":
            raise ValueError("qk_norm_last comes after heads are split, qk_norm_over 'whole' before (one of them)")
        if self.clip_normed and (self.clip is None or self.qk_norm is None or self.qk_norm_last):
            raise ValueError(
                "clip_normed says that `clip` comes between `qk_norm` and the rotation (give both, or leave it out)"
            )
        if self.rotate_values and not self.position.rotates:
            raise ValueError(f"rotate_values: position '{self.position.kind}' rotates nothing (rope, or leave it out)")
        self._check_values()
        self._check_conv()
        self._check_indexer()
        if not self.position.reads_input:
            self.position.check(self.head_dim)

    @property
    def causal(self) -> bool | None:  # type: ignore[override]
        return False if self.window_sides == "both" else None if self.short_conv is None else True

    @property
    def splits_tokens(self) -> bool:
        return self.short_conv is None and not self.position.reads_input

    @property
    def loops(self) -> bool:
        return False

    def _check_gate(self) -> None:
        stated = (self.gate_over, self.gate_activation, self.gate_bias)
        if not self.output_gate and stated != ("channel", "sigmoid", None):
            raise ValueError(
                "gate_over, gate_activation and gate_bias say what the output gate is (give `output_gate: true`)"
            )
        if self.gate_bias == "head" and self.gate_over == "head":
            raise ValueError("gate_bias=head is one number for a head's channels, and its gate is one (true)")

    def _check_values(self) -> None:
        if self.k_is_v and len(set(self.head_widths)) > 1:
            widths = f"v_head_dim={self.v_head_dim} and head_dim={self.head_dim}"
            raise ValueError(f"k_is_v makes keys and values by one product, found {widths} (leave v_head_dim out)")
        own = ("k_is_v", "rotate_values", "v_norm", "value_scale", "short_conv")
        idle = [name for name in own if getattr(self, name)]
        if self.kv_from is not None and idle:
            found = f"{idle[0]} is of keys and values, which '{self.kv_from}' layers make"
            raise ValueError(f"{found} (kv_from: null, or leave {idle[0]} out)")

    def _check_conv(self) -> None:
        if self.short_conv is None and (self.short_conv_over != "qkv" or self.short_conv_residual):
            idle = "short_conv_residual" if self.short_conv_residual else f"short_conv_over={self.short_conv_over}"
            raise ValueError(f"{idle} is of the short convolution, and there is none (give `short_conv`)")

    def _check_indexer(self) -> None:
        if self.indexer is None:
            return
        for name in ("window", "chunk", "kv_from"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} beside an indexer, which chooses among all keys of this layer (one of them)")
        check_tokens_chosen(self.indexer)
        self.indexer.check(self.position, self.head_dim, self.n_heads)

    def check_cross(self) -> None:
        if self.indexer is not None:
            raise ValueError("indexer chooses among tokens, and an encoder's output is read whole (null)")
        if self.kv_from is not None:
            raise ValueError("kv_from names layers that read tokens, and cross-attention reads an encoder (null)")
        if self.short_conv is not None:
            raise ValueError("short_conv reads tokens in order, and an encoder's output is read whole (null)")
        for name in ("window", "chunk", "tempering"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} counts the places of tokens, and an encoder's output is read whole (null)")

    @property
    def visible_window(self) -> int | None:
        return (self.window - 1) // 2 if self.window and self.window_sides == "both" else self.window

    @property
    def visible_ahead(self) -> int | None:
        return self.window // 2 if self.window and self.window_sides == "both" else None

    @property
    def reads_width(self) -> int | None:
        return self.memory_width

    @property
    def visible_chunk(self) -> int | None:
        return self.chunk

    @property
    def chooser(self) -> Indexer | None:
        return self.indexer

    @property
    def lender(self) -> str | None:
        return self.kv_from

    @property
    def summed(self) -> int:
        normed = 2 if self.qk_norm and self.qk_norm_over == "whole" else 0  # the mean squares of queries and keys
        return normed + (self.out_norm is not None and self.out_norm_over == "whole")

    @property
    def head_widths(self) -> tuple[int, int]:
        return self.head_dim, self.v_head_dim or self.head_dim

    def parts(self, d_model: int) -> dict[str, Any]:
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        v_width = self.head_widths[1]
        out = self.n_heads * v_width
        mixed = self._mixed
        return {
            "q": Linear(d_model, q, self.bias),
            **self._made(d_model, kv),
            **(self._gate(d_model) if self.output_gate else {}),
            **(
                {"conv": Conv(sum(mixed), sum(mixed), self.short_conv, groups=sum(mixed), segments=mixed)}
                if self.short_conv
                else {}
            ),
            "o": Linear(out, d_model, self.bias if self.o_bias is None else self.o_bias, residual=True),
            **self._norms(q, kv),
            **(
                {"out_norm": Sized(self.out_norm, out if self.out_norm_over == "whole" else v_width)}
                if self.out_norm
                else {}
            ),
            **({"sinks": Weight((self.n_heads,))} if self.sinks else {}),
            **(self.tempering.list_parts(self.n_heads) if self.tempering else {}),
            **(self.indexer.list_parts(d_model, d_model) if self.indexer else {}),
            **({"position": self.position} if self.position.per_layer else {}),
        }

    def _gate(self, d_model: int) -> dict[str, Any]:
        width = self.n_heads * (self.head_widths[1] if self.gate_over == "channel" else 1)
        if self.gate_bias == "head":
            return {"gate": Linear(d_model, width), "gate_bias": Weight((self.n_heads,))}
        return {"gate": Linear(d_model, width, self.bias if self.gate_bias is None else self.gate_bias)}

    def _made(self, d_model: int, kv: int) -> dict[str, Any]:
        """The products that make keys and values: none where they are another layer's."""
        if self.kv_from is not None:
            return {}
        read = self.memory_width or d_model
        key = {"k": Linear(read, kv, self.bias, role=READ)}
        v_width = self.head_widths[1]
        return key if self.k_is_v else key | {"v": Linear(read, self.n_kv_heads * v_width, self.bias, role=READ)}

    def _norms(self, q: int, kv: int) -> dict[str, Any]:
        values = {"v_norm": Sized(self.v_norm, self.head_widths[1])} if self.v_norm else {}
        if self.qk_norm is None:
            return values
        if self.qk_norm_over == "whole":
            made = {"q_norm": Sized(self.qk_norm, q), "k_norm": Sized(self.qk_norm, kv)}
        elif self.qk_norm_over == "heads":
            own = {"q_norm": self.n_heads, "k_norm": self.n_kv_heads}
            made = {name: Sized(replace(self.qk_norm, heads=count), self.head_dim) for name, count in own.items()}
        else:
            made = {"q_norm": Sized(self.qk_norm, self.head_dim), "k_norm": Sized(self.qk_norm, self.head_dim)}
        if self.kv_from is not None:
            del made["k_norm"]
        return made | values

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
        return {"conv": (self.short_conv - 1, sum(self._mixed))} if self.short_conv else {}

    @property
    def _mixed(self) -> tuple[int, ...]:
        """Channels of all queries, where the short convolution is over them, of all keys, and of all values."""
        width, v_width = self.head_widths
        every = self.n_heads * width, self.n_kv_heads * width, self.n_kv_heads * v_width
        return every if self.short_conv_over == "qkv" else every[1:]

    def core_flops(self, pairs: int) -> int:
        return 2 * self.n_heads * sum(self.head_widths) * pairs  # QKᵀ and PV

    def ask(self, dtype: str, **features: Any) -> Ask:
        ask = super().ask(dtype, **features | {"chosen": self.indexer is not None or features.get("chosen", False)})
        return replace(ask, n_kv_heads=self.n_kv_heads, softcap=self.softcap, sinks=self.sinks)

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        if step.crosses:
            q = self._queries(m, m.q(x), step)  # B T H C
            k, v = self._read_memory(m, step)
        elif self.kv_from is not None:
            q = self._queries(m, m.q(x), step)
            k, v = step.take()
        else:
            q, k, v = self._project(m, x, step)
            q = self._queries(m, q, step)
            k, v = self._keys_values(m, k, v, step)  # B S K C, B S K V
            k, v = step.lend(*step.remember(k=k, v=v))
        if step.merges:
            k, v = step.join_memory((k, v), self._read_memory(m, step.cross))
        return self._attend(m, x, q, k, v, step)

    def _attend(self, m: Weights, x: Tensor, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """Attend from queries q [B, T, H, C], made of x [B, T, D], to keys [B, S, K, C] and values [B, S, K, V]."""
        if self.indexer is not None:
            self.indexer.choose(m, x, x, step, self.n_heads)
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        sinks = self._sink(m, x)
        read = self._tempered(m, self.position.read(m.position, x), step) if self.position.reads_input else None
        y = self.attend(m, step, q, k, v, scale, softcap=self.softcap, sinks=sinks, read=read)  # B T H V
        each = self.out_norm is not None and self.out_norm_over == "head"
        y = m.out_norm(y) if each else y
        y = self._gated(m, x, y) if self.output_gate else y.flatten(-2)  # B T H·V
        return m.o(m.seam.normalise(m.out_norm, y) if self.out_norm and not each else y)  # B T D

    def _sink(self, m: Weights, x: Tensor) -> Tensor | None:
        """The logits of sinks, for queries made of x [B, T, D]."""
        return m.sinks if self.sinks else None

    def _read_memory(self, m: Weights, step: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's output, computed once and then read from the cache."""
        return step.recall(lambda memory: self._keys_values(m, *self._made_of(m, memory), step), "k", "v")

    def _gated(self, m: Weights, x: Tensor, y: Tensor) -> Tensor:
        """Heads' outputs y [B, T, H, V] times the gate of x [B, T, D]: [B, T, H·V]."""
        gate = m.gate(x)
        if self.gate_bias == "head":
            gate = (gate.unflatten(-1, (-1, self.head_widths[1])) + m.gate_bias[:, None]).flatten(-2)
        gate = torch.sigmoid(gate) if self.gate_activation == "sigmoid" else F.softplus(gate.float()).to(y.dtype)
        return y.flatten(-2) * gate if self.gate_over == "channel" else (y * gate[..., None]).flatten(-2)

    def _made_of(self, m: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, S, K·C] and values [B, S, K·V] of x [B, S, D], which one product makes where they are the same."""
        k = m.k(x)
        return k, k if self.k_is_v else m.v(x)

    def _project(self, m: Weights, x: Tensor, step: Step) -> tuple[Tensor, ...]:
        """Queries [B, T, H·C], keys [B, T, K·C] and values [B, T, K·V] of x [B, T, D]."""
        q, (k, v) = m.q(x), self._made_of(m, x)
        if self.short_conv is None:
            return q, k, v
        check_causal(step)
        every = (q, k, v) if self.short_conv_over == "qkv" else (k, v)
        plain = torch.cat(every, -1)
        mixed = convolve(m.conv, plain, step).contiguous()  # channels first, which no fused attention takes
        mixed = mixed + plain if self.short_conv_residual else mixed
        return *((q, k, v)[: -len(every)]), *mixed.split(self._mixed, -1)

    def _queries(self, m: Weights, q: Tensor, step: Step) -> Tensor:
        """Queries [B, T, H·C] by head, normalised, rotated and tempered: [B, T, H, C]."""
        return self._tempered(m, self._turned(m, q, m.q_norm if self.qk_norm else None, self.n_heads, step), step)

    def _tempered(self, m: Weights, q: Tensor, step: Step) -> Tensor:
        """Queries [B, T, H, …], or what is compared beside them, grown with their positions."""
        if self.tempering is None:
            return q
        assert step.positions is not None
        return self.tempering.temper(m, q, step.positions)

    def _keys_values(self, m: Weights, k: Tensor, v: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Keys [B, S, K·C] and values [B, S, K·V] by head, as they are attended: [B, S, K, C] and [B, S, K, V]."""
        k = self._turned(m, k, self._key_norm(m), self.n_kv_heads, step)
        v = self._clipped(v).unflatten(-1, (self.n_kv_heads, self.head_widths[1]))
        v = m.v_norm(v) if self.v_norm else v
        v = self.position.rotate(v, step.tables) if self.rotate_values and not step.crosses else v
        return k, v if self.value_scale is None else v * self.value_scale

    def _key_norm(self, m: Weights) -> Any:
        return m.k_norm if self.qk_norm else None

    def _turned(self, m: Weights, x: Tensor, norm: Any, n_heads: int, step: Step) -> Tensor:
        """Queries or keys [B, T, heads·C], clipped, normalised and rotated: [B, T, heads, C]."""
        x = x if self.clip_normed else self._clipped(x)
        if norm is not None and self.qk_norm_over == "whole":
            x = m.seam.normalise(norm, x)
        x = x.unflatten(-1, (n_heads, self.head_dim))
        if norm is not None and not self.qk_norm_last and self.qk_norm_over != "whole":
            x = norm(x)
        x = self._clipped(x) if self.clip_normed else x
        x = x if step.crosses else self.position.rotate(x, step.tables)
        return norm(x) if norm is not None and self.qk_norm_last else x

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)
