# B batch, T queries, S keys, H heads, R latent width, N and P a key's widths without and with position, V a value's
"""Multi-head latent attention: keys and values are expanded from one small latent vector per token."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from zoo.kernels.base import AttentionQuery
from zoo.kernels.ring import Expansion
from zoo.lazy import Tensor, torch
from zoo.model.attention.base import Passes, Sight, SoftmaxAttention
from zoo.model.attention.indexer import Indexer, check_indexer
from zoo.model.attention.nodes import LatentGate
from zoo.model.attention.recurrent import check_causal, convolve
from zoo.model.attention.tempering import Tempering
from zoo.model.lending import LentKeys, Loan
from zoo.model.norm import WholeNorm
from zoo.spec import Conv, Linear, Sized, Weight, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


LENT_ALIKE = ("kv_lora_rank", "qk_rope_head_dim", "position", "scale_latents", "rope_norm", "window")
"""Fields that must be equal in a layer and in the layer whose latents it reads."""


class MLA(SoftmaxAttention, kind="mla"):
    """Multi-head latent attention (DeepSeek-V2, 2024): the keys and values of all heads are made of a latent c,
    `kv_lora_rank` wide, and one rotated key, shared by all heads, carries the position. Only these two are cached.

    c = norm(x·W_kva), k = [c·W_kb ; rope(x·W_kr)], v = c·W_vb. Queries are made of a latent `q_lora_rank` wide or,
    without one, of x. A head's queries and keys are `qk_nope_head_dim` + `qk_rope_head_dim` wide.

    Two computations give the same result. Expanded (training, prompts): keys and values of every head are computed.
    Absorbed (few tokens after many cached ones): since (q·W_kbᵀ)·c = q·(c·W_kb), queries are mapped to the latents'
    space, all heads read the cache as one key and value, and W_vb is applied after, so that no earlier token is
    expanded again.
    """

    moved: ClassVar[dict[str, str]] = {
        "output_gate": "gate: true",
        "gate_over": "gate: {over: …}",
        "gate_from": "gate: {reads: …}",
    }

    kv_lora_rank: PositiveInt
    """Channels of the latent that keys and values are made of."""
    qk_nope_head_dim: PositiveInt
    """Channels of a head's queries and keys that are not rotated."""
    qk_rope_head_dim: NonNegativeInt
    """Channels of a head's queries that are rotated, and of the one rotated key."""
    v_head_dim: PositiveInt
    """Channels of a head's values."""
    norm: WholeNorm
    """The norm of the latents."""
    q_lora_rank: PositiveInt | None = None
    """Channels of the latent that queries are made of; null to make them of x."""
    bias: bool = False
    """Whether the projections to the latents and the output projection have a bias."""
    scale: PositiveFloat | None = None
    """Factor of the scores; 1/√(qk_nope_head_dim + qk_rope_head_dim) unless given."""
    indexer: Indexer | None = None
    """Indexer that chooses the keys that a query attends to (DeepSeek Sparse Attention: DeepSeek-V3.2, 2025)."""
    tempering: Tempering | None = None
    """Tempering: a factor of the queries that grows with position (Mistral Small 4, 2026)."""
    gate: LatentGate | None = None
    """A gate on each head's output (Ling 3, 2026)."""
    scale_latents: bool = False
    """Whether queries are multiplied by √(d_model / q_lora_rank) and c by √(d_model / kv_lora_rank), so that both have
    the variance of full-rank projections at the start of training (LongCat-Flash, 2025)."""
    rope_norm: bool = False
    """Whether the one rotated key is normalised before its rotation (Dots Studio, 2026, dots3 note)."""
    window: PositiveInt | None = None
    """Number of keys that a causal query sees, itself included, or that a bidirectional one sees to either side (dots3
    note)."""
    raw_latent: bool = False
    """Whether queries also read their latent l before its norm: [norm(l) ; l] (A.X K2, 2026)."""
    sinks: bool = False
    """Whether each head's softmax has one more, learned logit without a value (gpt-oss, 2025)."""
    short_conv: PositiveInt | None = None
    """Width W, in tokens, of a depthwise causal convolution of the queries, and of the latents and the rotated key
    before their norm (So et al., 2021, Primer; Allen-Zhu, 2025, Canon layers). The state is the last W − 1 tokens."""
    kv_from: str | None = None
    """Kind of layer whose latents this layer reads instead of making its own, from the last layer of that kind before
    this one. It expands them by its own projections (Mistral Large 4, 2026)."""

    def __post_init__(self) -> None:
        self.position.check(self.qk_rope_head_dim)
        reads = "raw_latent" if self.raw_latent else "gate.reads=latent" if self._gate_reads_latent else None
        if reads and self.q_lora_rank is None:
            raise ValueError(f"{reads} is of the latent of queries, and there is none (give `q_lora_rank`)")
        if self.kv_from is not None and self.short_conv is not None:
            found = f"short_conv is of latents, which '{self.kv_from}' layers make"
            raise ValueError(f"{found} (kv_from: null, or leave short_conv out)")
        if self.rope_norm and not self.qk_rope_head_dim:
            raise ValueError("rope_norm is of the rotated key, and qk_rope_head_dim=0 leaves none (leave it out)")
        check_indexer(self, self.qk_rope_head_dim, ("window",))

    @property
    def _gate_reads_latent(self) -> bool:
        return self.gate is not None and self.gate.reads == "latent"

    @property
    def joins(self) -> tuple[tuple[str, ...], ...]:  # type: ignore[override]
        if self._gate_reads_latent:
            return ("q_a", "kv_a"), ("q_b", "gate")
        return (("q", "q_a", "kv_a", "gate"),)

    @property
    def causal(self) -> bool | None:  # type: ignore[override]
        return None if self.short_conv is None else True

    @property
    def passes(self) -> Passes:
        # Ragged rows are computed absorbed, which costs more for a long chunk of a prompt.
        varlen = self.absorbs_until if self.indexer is None else 0
        return Passes(varlen=varlen, split=self.short_conv is None)

    @property
    def chooser(self) -> Indexer | None:
        return self.indexer

    @property
    def sight(self) -> Sight:
        return Sight(self.window)

    @property
    def loan(self) -> Loan | None:  # type: ignore[override]
        return Loan(self.kv_from, alike=LENT_ALIKE) if self.kv_from is not None else None

    @property
    def rotary_width(self) -> int:
        return self.qk_rope_head_dim

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
            **self._make_gate(d_model),
            **{f"{name}_conv": Conv(n, n, width, groups=n) for name, (n, width) in self._mixed.items()},
            **({"sinks": Weight((self.n_heads,))} if self.sinks else {}),
            **(self.tempering.list_parts(self.n_heads) if self.tempering else {}),
            "o": Linear(self.n_heads * self.v_head_dim, d_model, self.bias, residual=True),
            **(self.indexer.list_parts(d_model, self.q_lora_rank or d_model) if self.indexer else {}),
            **({"position": self.position} if self.position.per_layer else {}),
        }

    def _q_width(self, d_model: int) -> int:
        return d_model if self.q_lora_rank is None else self.q_lora_rank * (1 + self.raw_latent)

    def _make_gate(self, d_model: int) -> dict[str, Any]:
        if self.gate is None:
            return {}
        width = self.n_heads * (self.v_head_dim if self.gate.over == "channel" else 1)
        return {"gate": Linear(self._q_width(d_model) if self._gate_reads_latent else d_model, width)}

    @property
    def _mixed(self) -> dict[str, tuple[int, int]]:
        """Channels and width of each convolution: of the queries, and of the latents with the rotated key."""
        counts = {"q": self.n_heads * self.qk_head_dim, "kv": self.kv_lora_rank + self.qk_rope_head_dim}
        return {name: (n, self.short_conv) for name, n in counts.items()} if self.short_conv is not None else {}

    def state(self) -> dict[str, tuple[int, ...]]:
        return {f"{name}_conv": (width - 1, n) for name, (n, width) in self._mixed.items()}

    def shard(self, ranks: int) -> MLA:
        indexer = self.indexer and self.indexer.shard(ranks)
        return replace(split(self, ranks, equal=("n_heads",)), indexer=indexer)  # all heads share the latents

    def cache(self) -> dict[str, tuple[int, ...]]:
        own = self.attended() if self.kv_from is None else {}
        return own | (self.indexer.cache() if self.indexer else {})

    def attended(self) -> dict[str, tuple[int, ...]]:
        return {"latent": (self.kv_lora_rank + self.qk_rope_head_dim,)}  # the latent, then the rotated key

    def core_flops(self, pairs: int) -> int:
        return 2 * self.n_heads * (self.qk_head_dim + self.v_head_dim) * pairs  # QKᵀ and PV, expanded

    def decode_flops(self, pairs: int) -> int:
        """Count the FLOPs of absorbed attention for `pairs` pairs. The products with W_kb and W_vb are counted with the
        parts: absorbing a query costs as much as expanding its token."""
        return 2 * self.n_heads * (2 * self.kv_lora_rank + self.qk_rope_head_dim) * pairs

    @property
    def absorbs_until(self) -> float:
        """Largest number T of queries for which absorbed attention to S latents costs no more FLOPs than expanded
        attention; infinite if that holds for every T.

        FLOPs absorbed: 2·H·T·S·(2R + P); expanded: 2·H·(S·R·(N + V) + T·S·(N + P + V)).
        """
        made = self.qk_nope_head_dim + self.v_head_dim
        excess = 2 * self.kv_lora_rank - made
        return self.kv_lora_rank * made / excess if excess > 0 else float("inf")

    def ask(self, dtype: str, **features: Any) -> AttentionQuery:
        return super().ask(dtype, **features | {"chosen": self.indexer is not None, "sinks": self.sinks})

    def decode_ask(self, dtype: str, new: int, **features: Any) -> AttentionQuery:
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
            q = convolve(m.q_conv, q, step, "q_conv").contiguous()  # was channels-first, which attention refuses
        q = q.unflatten(-1, (self.n_heads, self.qk_head_dim))  # B T H N+P
        if self.tempering is not None:
            assert step.positions is not None
            q = self.tempering.temper(m, q, step.positions)
        q_nope, q_rope = q.split((self.qk_nope_head_dim, self.qk_rope_head_dim), -1)
        (latent,) = self._make_latents(m, x, step) if self.kv_from is None else step.read(LentKeys.name)  # B S R+P
        q_rope = self.position.rotate(q_rope, step.tables)
        if self.indexer is not None:
            self.indexer.choose(m, x, low, step, self.n_heads)
        few = step.cache is not None and not step.first and x.shape[1] <= self.absorbs_until
        pooled = step.keys.pooled
        if not pooled and not step.keys.travels:  # keys sent round a ring keep their dtype
            latent = latent.to(x.dtype)
        attended = self._absorbed if few or pooled else self._expanded
        y = attended(m, q_nope, q_rope, latent, step)  # B T H V
        if self.gate is not None:
            gate = m.gate(read if self._gate_reads_latent else x).unflatten(-1, (self.n_heads, -1))  # B T H 1|V
            y = y * gate.float().sigmoid().to(y.dtype)
        return m.o(y.flatten(-2))  # B T D

    def _read_queries(self, m: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        """Make the inputs of the indexer and of the queries' up-projection. Both are the normalised latent; with
        `raw_latent` the projection also reads the latent itself. Without a latent both are x."""
        if self.q_lora_rank is None:
            return x, x
        latent = m.q_a(x)
        low = m.q_norm(latent)
        return low, torch.cat((low, latent), -1) if self.raw_latent else low

    def _make_latents(self, m: Weights, x: Tensor, step: Step) -> tuple[Tensor, ...]:
        """Make latents and rotated keys of x [B, T, D], and append them to the cached ones of earlier tokens: [B, S,
        R+P]."""
        made = m.kv_a(x)
        if self.short_conv is not None:
            made = convolve(m.kv_conv, made, step, "kv_conv").contiguous()
        latent, k_rope = made.split((self.kv_lora_rank, self.qk_rope_head_dim), -1)
        k_rope = m.rope_norm(k_rope) if self.rope_norm else k_rope
        k_rope = self.position.rotate(k_rope[:, :, None], step.tables)[:, :, 0]  # B T P
        latent = m.kv_norm(latent)
        if self.scale_latents:
            latent = latent * (x.shape[-1] / self.kv_lora_rank) ** 0.5
        return step.give(LentKeys.name, step.remember(latent=torch.cat((latent, k_rope), -1)))

    def _expanded(self, m: Weights, q_nope: Tensor, q_rope: Tensor, latent: Tensor, step: Step) -> Tensor:
        """Attend to keys and values of every head, expanded from the latents [B, S, R+P]: [B, T, H, V]."""
        q = torch.cat((q_nope, q_rope), -1)
        if not step.keys.travels:
            return self._attend(m, q, *self._expand(m, latent), step)
        expansion = Expansion(partial(self._expand, m), (m.k_b.weight, m.v_b.weight))
        own = (self.position, m.position) if self.position.per_layer else None
        return step.attend(q, latent, None, self._scale, own, expansion=expansion, sinks=self._sinks(m))

    def _expand(self, m: Weights, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Expand the latents [B, S, R+P] to keys [B, S, H, N+P] and values [B, S, H, V] of every head."""
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
