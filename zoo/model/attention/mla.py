# B batch, T queries, S keys, H heads, R latent width, N and P a key's widths without and with position, V a value's
"""Multi-head latent attention: keys and values expanded from one small latent vector a token."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from zoo.kernels.base import Ask
from zoo.kernels.ring import Expansion
from zoo.lazy import torch
from zoo.model.attention.base import SoftmaxAttention
from zoo.model.attention.indexer import Indexer, check_tokens_chosen
from zoo.model.attention.recurrent import check_causal, convolve
from zoo.model.attention.tempering import Tempering
from zoo.model.norm import WholeNorm
from zoo.spec import Conv, Linear, Sized, Weight, split

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


class MLA(SoftmaxAttention, kind="mla"):
    """Multi-head latent attention (DeepSeek-V2, 2024): keys and values of all heads come of a latent `kv_lora_rank`
    wide, and one key for all heads alone carries the position; only these two are cached.

    c = norm(x·W_kva), k = [c·W_kb ; rope(x·W_kr)], v = c·W_vb; queries likewise by way of `q_lora_rank`, or straight
    from x without. A head's queries and keys are `qk_nope_head_dim` + `qk_rope_head_dim` wide, its values `v_head_dim`.
    `norm` is that of the latents. `bias` is for what makes the latents and for the output. `scale` multiplies the
    scores, 1/√(nope + rope) unless given. With an `indexer` a query attends to the keys that it chooses alone
    (DeepSeek Sparse Attention: DeepSeek-V3.2, 2025). `tempering` makes queries grow with position (Mistral Small 4).
    With `scale_latents` queries are multiplied by √(d_model / q_lora_rank) and c by √(d_model / kv_lora_rank), which
    gives both at the start of training the variance that they would have without a low rank (LongCat-Flash, 2025).
    `output_gate` multiplies each head's output by σ(x·W): the head as a whole (Ling 3, 2026), or with `gate_over`
    channel each channel (Hy4, 2026); with `gate_from` latent it is made of what queries are made of, in place of x.
    With `raw_latent` these are made of their latent l as it is, too, [norm(l) ; l] (both A.X K2, 2026). `sinks` adds a
    learned logit without a value to each head's softmax (gpt-oss). `rope_norm` normalises the one rotated key before
    its rotation. `window` W lets a causal query see W keys, itself included, and one that sees both ways W to either
    side (both Dots Studio, 2026, dots3 note).
    With `kv_from` a layer has no latents of its own: it reads those of the last layer before it of the kind that this
    names, and expands them by products of its own (Mistral Large 4, 2026).
    `short_conv` W passes queries, and what the latents and the rotated key are made of, through depthwise causal
    convolutions of W tokens (So et al., 2021, Primer; Allen-Zhu, 2025, Canon layers), whose state is the last W − 1.

    Two ways to one result. Expanded: keys and values of every head are made, as training and a prompt want it.
    Absorbed, for few tokens after many: since (q·W_kbᵀ)·c = q·(c·W_kb), queries go to the latents' space, all heads
    read the cache as one key and value, and W_vb comes after, so that no earlier token is expanded again.
    """

    varlen: ClassVar[bool] = False  # rows that are not alike are absorbed, which takes more for a prompt
    lent_alike: ClassVar[tuple[str, ...]] = (
        *("kv_lora_rank", "qk_rope_head_dim", "position", "scale_latents", "rope_norm", "window"),
    )

    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: NonNegativeInt
    v_head_dim: PositiveInt
    norm: WholeNorm
    q_lora_rank: PositiveInt | None = None
    bias: bool = False
    scale: PositiveFloat | None = None
    indexer: Indexer | None = None
    tempering: Tempering | None = None
    output_gate: bool = False
    scale_latents: bool = False
    rope_norm: bool = False
    window: PositiveInt | None = None
    gate_over: Literal["head", "channel"] = "head"
    gate_from: Literal["input", "latent"] = "input"
    raw_latent: bool = False
    sinks: bool = False
    short_conv: PositiveInt | None = None
    kv_from: str | None = None

    @property
    def joins(self) -> tuple[tuple[str, ...], ...]:  # type: ignore[override]
        if self.gate_from == "latent":
            return ("q_a", "kv_a"), ("q_b", "gate")
        return (("q", "q_a", "kv_a", "gate"),)

    @property
    def causal(self) -> bool | None:  # type: ignore[override]
        return None if self.short_conv is None else True

    @property
    def splits_tokens(self) -> bool:
        return self.short_conv is None

    @property
    def loops(self) -> bool:
        return False

    def __post_init__(self) -> None:
        self.position.check(self.qk_rope_head_dim)
        self._check_gate()
        if self.kv_from is not None and self.short_conv is not None:
            found = f"short_conv is of latents, which '{self.kv_from}' layers make"
            raise ValueError(f"{found} (kv_from: null, or leave short_conv out)")
        if self.rope_norm and not self.qk_rope_head_dim:
            raise ValueError("rope_norm is of the rotated key, and qk_rope_head_dim=0 leaves none (leave it out)")
        if self.indexer is not None:
            if self.window is not None:
                found = f"window={self.window} beside an indexer, which chooses among all keys"
                raise ValueError(f"{found} (one of them)")
            check_tokens_chosen(self.indexer)
            self.indexer.check(self.position, self.qk_rope_head_dim, self.n_heads)

    def _check_gate(self) -> None:
        stated = (self.gate_over, self.gate_from)
        if not self.output_gate and stated != ("head", "input"):
            idle = "gate_over" if self.gate_over != "head" else "gate_from"
            raise ValueError(f"{idle} says what the output gate is of, and there is none (give `output_gate: true`)")
        reads = self.raw_latent or self.gate_from == "latent"
        if reads and self.q_lora_rank is None:
            idle = "raw_latent" if self.raw_latent else "gate_from=latent"
            raise ValueError(f"{idle} reads the latent of queries, and there is none (give `q_lora_rank`)")

    @property
    def chooser(self) -> Indexer | None:
        return self.indexer

    @property
    def visible_window(self) -> int | None:
        return self.window

    @property
    def lender(self) -> str | None:
        return self.kv_from

    @property
    def rotary_width(self) -> int:
        return self.qk_rope_head_dim

    @property
    def expanded(self) -> int:
        return self.n_heads * sum(self.head_widths)  # keys and values

    @property
    def head_widths(self) -> tuple[int, int]:
        return self.qk_head_dim, self.v_head_dim

    @property
    def qk_head_dim(self) -> int:
        """Width of a head's queries and keys."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def parts(self, d_model: int) -> dict[str, Any]:
        rank, q = self.kv_lora_rank, self.n_heads * self.qk_head_dim
        if self.q_lora_rank is None:
            queries: dict[str, Any] = {"q": Linear(d_model, q)}
        else:
            queries = {
                "q_a": Linear(d_model, self.q_lora_rank, self.bias),
                "q_norm": Sized(self.norm, self.q_lora_rank),
                "q_b": Linear(self._q_width(d_model), q),
            }
        latents = {
            "kv_a": Linear(d_model, rank + self.qk_rope_head_dim, self.bias),
            "kv_norm": Sized(self.norm, rank),
            **({"rope_norm": Sized(self.norm, self.qk_rope_head_dim)} if self.rope_norm else {}),
        }
        return queries | {
            **(latents if self.kv_from is None else {}),
            "k_b": Linear(rank, self.n_heads * self.qk_nope_head_dim, bare=True),
            "v_b": Linear(rank, self.n_heads * self.v_head_dim, bare=True),
            **({"gate": Linear(self._gate_width(d_model), self._gates)} if self.output_gate else {}),
            **(
                {f"{name}_conv": self._convolution(width) for name, width in self._mixed.items()}
                if self.short_conv
                else {}
            ),
            **({"sinks": Weight((self.n_heads,))} if self.sinks else {}),
            **(self.tempering.list_parts(self.n_heads) if self.tempering else {}),
            "o": Linear(self.n_heads * self.v_head_dim, d_model, self.bias, residual=True),
            **(self.indexer.list_parts(d_model, self.q_lora_rank or d_model) if self.indexer else {}),
            **({"position": self.position} if self.position.per_layer else {}),
        }

    def _q_width(self, d_model: int) -> int:
        """Width of what queries are made of."""
        return d_model if self.q_lora_rank is None else self.q_lora_rank * (1 + self.raw_latent)

    def _gate_width(self, d_model: int) -> int:
        return self._q_width(d_model) if self.gate_from == "latent" else d_model

    @property
    def _mixed(self) -> dict[str, int]:
        """Channels that are convolved: of queries, and of latents and the rotated key."""
        return {"q": self.n_heads * self.qk_head_dim, "kv": self.kv_lora_rank + self.qk_rope_head_dim}

    def _convolution(self, channels: int) -> Conv:
        assert self.short_conv is not None
        return Conv(channels, channels, self.short_conv, groups=channels)

    def state(self) -> dict[str, tuple[int, ...]]:
        if self.short_conv is None:
            return {}
        return {f"{name}_conv": (self.short_conv - 1, width) for name, width in self._mixed.items()}

    @property
    def _gates(self) -> int:
        return self.n_heads * (self.v_head_dim if self.gate_over == "channel" else 1)

    def shard(self, ranks: int) -> MLA:
        indexer = self.indexer and self.indexer.shard(ranks)
        return replace(split(self, ranks, equal=("n_heads",)), indexer=indexer)  # the latents are of all heads

    def cache(self) -> dict[str, tuple[int, ...]]:
        own = self.attended() if self.kv_from is None else {}
        return own | (self.indexer.cache() if self.indexer else {})

    def attended(self) -> dict[str, tuple[int, ...]]:
        return {"latent": (self.kv_lora_rank + self.qk_rope_head_dim,)}  # and the rotated key behind it

    def core_flops(self, pairs: int) -> int:
        return 2 * self.n_heads * (self.qk_head_dim + self.v_head_dim) * pairs  # QKᵀ and PV, expanded

    def decode_flops(self, pairs: int) -> int:
        """Absorbed. Such a query meets as many products with weights as an expanded token."""
        return 2 * self.n_heads * (2 * self.kv_lora_rank + self.qk_rope_head_dim) * pairs

    @property
    def absorbs_until(self) -> float:
        """Queries up to which reading S latents as they are costs less than expanding them.

        T·S·(2R + P) against S·R·(N + V) + T·S·(N + P + V), all times 2·H.
        """
        made = self.qk_nope_head_dim + self.v_head_dim
        excess = 2 * self.kv_lora_rank - made
        return self.kv_lora_rank * made / excess if excess > 0 else float("inf")

    def ask(self, dtype: str, **features: Any) -> Ask:
        return super().ask(dtype, **features | {"chosen": self.indexer is not None, "sinks": self.sinks})

    def decode_ask(self, dtype: str, new: int, **features: Any) -> Ask:
        ask = self.ask(dtype, **features)
        if new > self.absorbs_until:
            return ask
        width = self.kv_lora_rank
        return replace(ask, head_dim=width + self.qk_rope_head_dim, v_head_dim=width, n_kv_heads=1)

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        low, read = self._read_queries(m, x)
        q = m.q(read) if self.q_lora_rank is None else m.q_b(read)
        if self.scale_latents and self.q_lora_rank is not None:
            q = q * (x.shape[-1] / self.q_lora_rank) ** 0.5
        if self.short_conv is not None:
            check_causal(step)
            q = convolve(m.q_conv, q, step, "q_conv").contiguous()  # channels first, which no fused attention takes
        q = q.unflatten(-1, (self.n_heads, self.qk_head_dim))  # B T H N+P
        if self.tempering is not None:
            assert step.positions is not None
            q = self.tempering.temper(m, q, step.positions)
        q_nope, q_rope = q.split((self.qk_nope_head_dim, self.qk_rope_head_dim), -1)
        (latent,) = self._make_latents(m, x, step) if self.kv_from is None else step.take()  # B S R+P
        q_rope = self.position.rotate(q_rope, step.tables)
        if self.indexer is not None:
            self.indexer.choose(m, x, low, step, self.n_heads)
        few = step.cache is not None and not step.first and x.shape[1] <= self.absorbs_until
        pooled = step.rows is not None or step.pages is not None
        if not pooled and step.ring is None:  # what travels does so as it is
            latent = latent.to(x.dtype)
        attended = self._absorbed if few or pooled else self._expanded
        y = attended(m, q_nope, q_rope, latent, step)  # B T H V
        if self.output_gate:
            gate = m.gate(read if self.gate_from == "latent" else x).unflatten(-1, (self.n_heads, -1))  # B T H 1|V
            y = y * gate.float().sigmoid().to(y.dtype)
        return m.o(y.flatten(-2))  # B T D

    def _read_queries(self, m: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input of the indexer and of the queries' up-projection: the normalised latent, or x where there is
        none."""
        if self.q_lora_rank is None:
            return x, x
        latent = m.q_a(x)
        low = m.q_norm(latent)
        return low, torch.cat((low, latent), -1) if self.raw_latent else low

    def _make_latents(self, m: Weights, x: Tensor, step: Step) -> tuple[Tensor, ...]:
        """Latents and rotated keys of x [B, T, D], behind those of earlier tokens: [B, S, R+P]."""
        made = m.kv_a(x)
        if self.short_conv is not None:
            made = convolve(m.kv_conv, made, step, "kv_conv").contiguous()
        latent, k_rope = made.split((self.kv_lora_rank, self.qk_rope_head_dim), -1)
        k_rope = m.rope_norm(k_rope) if self.rope_norm else k_rope
        k_rope = self.position.rotate(k_rope[:, :, None], step.tables)[:, :, 0]  # B T P
        latent = m.kv_norm(latent)
        if self.scale_latents:
            latent = latent * (x.shape[-1] / self.kv_lora_rank) ** 0.5
        return step.lend(*step.remember(latent=torch.cat((latent, k_rope), -1)))

    def _expanded(self, m: Weights, q_nope: Tensor, q_rope: Tensor, latent: Tensor, step: Step) -> Tensor:
        """Attend to keys and values of every head, expanded from the latents [B, S, R+P]: [B, T, H, V]."""
        q = torch.cat((q_nope, q_rope), -1)
        if step.ring is None:
            return self._attend(m, q, *self._expand(m, latent), step)
        expansion = Expansion(partial(self._expand, m), (m.k_b.weight, m.v_b.weight))
        own = (self.position, m.position) if self.position.per_layer else None
        return step.attend_ring(q, (latent,), self._scale, own, expansion, sinks=self._sinks(m))

    def _expand(self, m: Weights, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, S, H, N+P] and values [B, S, H, V] of every head, from the latents [B, S, R+P]."""
        latent, k_rope = latent.split((self.kv_lora_rank, self.qk_rope_head_dim), -1)
        k_nope = m.k_b(latent).unflatten(-1, (self.n_heads, self.qk_nope_head_dim))  # B S H N
        v = m.v_b(latent).unflatten(-1, (self.n_heads, self.v_head_dim))  # B S H V
        k_rope = k_rope[:, :, None].expand(-1, -1, self.n_heads, -1)  # B S H P
        return torch.cat((k_nope, k_rope.to(k_nope.dtype)), -1), v

    def _absorbed(self, m: Weights, q_nope: Tensor, q_rope: Tensor, latent: Tensor, step: Step) -> Tensor:
        """Attend to the latents [B, S, R+P] or [N, R+P] as the one key and value of all heads: [B, T, H, V]."""
        k_b = m.k_b.weight.unflatten(0, (self.n_heads, self.qk_nope_head_dim))  # H N R
        v_b = m.v_b.weight.unflatten(0, (self.n_heads, self.v_head_dim))  # H V R
        q_latent = torch.einsum("bthn,hnr->bthr", q_nope, k_b)
        q = torch.cat((q_latent, q_rope.to(q_latent.dtype)), -1)  # B T H R+P
        k = latent.unsqueeze(-2)  # B S 1 R+P
        y = self._attend(m, q, k, k[..., : self.kv_lora_rank], step)  # B T H R
        return torch.einsum("bthr,hvr->bthv", y, v_b)

    def _attend(self, m: Weights, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        return self.attend(m, step, q, k, v, self._scale, sinks=self._sinks(m))

    def _sinks(self, m: Weights) -> Tensor | None:
        return m.sinks if self.sinks else None

    @property
    def _scale(self) -> float:
        return self.qk_head_dim**-0.5 if self.scale is None else self.scale
