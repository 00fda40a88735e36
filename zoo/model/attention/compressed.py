# B batch, T queries, S keys, E entries, H heads, C head width, R rotated channels, G groups, D model width
"""Attention to a window of tokens and to compressed entries of all earlier tokens, with one key and value for all
heads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.kernels.base import AttentionQuery
from zoo.lazy import Tensor, torch
from zoo.model.attention.base import MultiHead, Passes, Sight
from zoo.model.attention.compressor import Compressor
from zoo.model.attention.entries import ENTRY_TABLES, attend_entries, slide_window
from zoo.model.attention.indexer import EntryIndexer, Indexer
from zoo.model.norm import RMSNorm, WholeNorm
from zoo.spec import Linear, Sized, Weight, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class Compressed(MultiHead, kind="compressed"):
    """Compressed attention (DeepSeek-V4, 2026): one softmax over a window of tokens and over compressed entries. A
    compressor makes one entry for every `rate` consecutive earlier tokens.

    One vector c = norm(x·W_kv) is the key and the value of all heads. Queries are a low-rank projection of x. Queries,
    keys and entries are rotated in their last channels, an entry by the position of its first token; each head's output
    is rotated back by the position of its query. The output projection has two matrices: one for each group of heads,
    then one for all groups.

    With a compressor, the cache grows only with the number of entries. The tokens of the row's window, and the sums
    over the tokens of an entry that is not complete yet, are states of fixed size. Without a compressor, the vectors c
    are cached.
    """

    causal: ClassVar[bool | None] = True
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q_a", "kv", "entry_kv"),)

    head_dim: PositiveInt
    """Channels of a head, and of the vector c."""
    q_lora_rank: PositiveInt
    """Rank of the query projection: channels of the latent between its two matrices."""
    o_groups: PositiveInt
    """Number of groups of heads, a divisor of `n_heads`. The output projection's first matrix projects each group
    separately."""
    o_lora_rank: PositiveInt
    """Channels that the output projection's first matrix makes of each group."""
    window: PositiveInt
    """Number of uncompressed tokens that a query sees, itself included."""
    norm: WholeNorm = RMSNorm()
    """Norm of the queries' latent, and of c."""
    head_norm: WholeNorm = RMSNorm(weight=False)
    """Norm of each head's query."""
    sinks: bool = True
    """Whether a learned logit without a value is added to each head's softmax."""
    compressor: Compressor | None = None
    """Compressor that makes the entries; null for attention only to the window."""
    indexer: Indexer | None = None
    """Indexer that chooses the entries that a query attends to (compressed sparse attention); null for attention to all
    entries (heavily compressed attention)."""

    def __post_init__(self) -> None:
        self.position.check(self.head_dim)
        if self.n_heads % self.o_groups:
            raise ValueError(f"o_groups={self.o_groups} does not divide n_heads={self.n_heads}")
        if self.compressor is not None and (self.position.biases or self.position.reads_length):
            what = "adds to the scores of tokens" if self.position.biases else "turns with the length of the row"
            raise ValueError(f"position '{self.position.kind}' {what}, and entries are of several (rope, or none)")
        self._check_indexer()

    def _check_indexer(self) -> None:
        if self.indexer is None:
            return
        if self.compressor is None or not isinstance(self.indexer, EntryIndexer):
            found = "no compressor" if self.compressor is None else f"'{self.indexer.kind}'"
            raise ValueError(f"indexer chooses among entries, found {found} (a compressor, and kind: entries)")
        rates = self.compressor.rate, self.indexer.compressor.rate
        if rates[0] != rates[1]:
            found = f"indexer.compressor.rate={rates[1]}, compressor.rate={rates[0]}"
            raise ValueError(f"{found}: the indexer has a key for each entry (the same for both)")
        self.indexer.check(self.position, self.head_dim, self.n_heads)

    @property
    def passes(self) -> Passes:
        return Passes(varlen=0, split=self.compressor is None)

    @property
    def chooser(self) -> Indexer | None:
        return self.indexer

    @property
    def sight(self) -> Sight:
        if self.compressor is None:
            return Sight(self.window)
        return Sight(rate=self.compressor.rate, near=self.window)

    @property
    def rotary_width(self) -> int:
        return self.head_dim

    def parts(self, d_model: int) -> dict[str, Any]:
        width = self.n_heads * self.head_dim
        compressor, indexer = self.compressor, self.indexer
        return {
            "q_a": Linear(d_model, self.q_lora_rank),
            "q_norm": Sized(self.norm, self.q_lora_rank),
            "q_b": Linear(self.q_lora_rank, width),
            "head_norm": Sized(self.head_norm, self.head_dim),
            "kv": Linear(d_model, self.head_dim),
            "kv_norm": Sized(self.norm, self.head_dim),
            **(compressor.list_parts(d_model, self.head_dim, "entry_") if compressor else {}),
            **(indexer.list_parts(d_model, self.q_lora_rank) if indexer else {}),
            **({"sinks": Weight((self.n_heads,))} if self.sinks else {}),
            "o_a": Linear(width // self.o_groups, self.o_groups * self.o_lora_rank, bare=True),
            "o_b": Linear(self.o_groups * self.o_lora_rank, d_model, residual=True),
            **({"position": self.position} if self.position.per_layer else {}),
        }

    def shard(self, ranks: int) -> Compressed:
        return split(self, ranks, equal=("n_heads", "o_groups"))  # all heads share keys and entries

    def cache(self) -> dict[str, tuple[int, ...]]:
        return self.attended() | (self.indexer.cache() if self.indexer else {})

    def attended(self) -> dict[str, tuple[int, ...]]:
        return {"latent" if self.compressor is None else "entry": (self.head_dim,)}

    def state(self) -> dict[str, tuple[int, ...]]:
        if self.compressor is None:
            return {}
        indexer = self.indexer
        index = indexer.compressor.list_states(indexer.head_dim, "index_") if isinstance(indexer, EntryIndexer) else {}
        near = {"near": (self.window - 1, self.head_dim)}
        return near | self.compressor.list_states(self.head_dim, "entry_") | index

    def count_loose(self, tokens: int) -> int:
        """Count the numbers that transformers caches, besides the entries, for a row of `tokens` tokens: for the
        window's tokens, and for tokens that are not in an entry yet."""
        assert self.compressor is not None
        loose = self.compressor.count_loose(self.head_dim, tokens)
        if isinstance(self.indexer, EntryIndexer):
            loose += self.indexer.compressor.count_loose(self.indexer.head_dim, tokens)
        window = self.window - 1 or tokens  # transformers slices `[-W + 1 :]`, which keeps everything when W is 1
        return loose + min(tokens, window) * self.head_dim

    def ask(self, dtype: str, **features: Any) -> AttentionQuery:
        return replace(super().ask(dtype, **features), n_kv_heads=1, sinks=self.sinks)

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        low = m.q_norm(m.q_a(x))
        q = m.head_norm(m.q_b(low).unflatten(-1, (self.n_heads, self.head_dim)))  # B T H C
        q = self._rotate(q, step.tables)
        c = self._rotate(m.kv_norm(m.kv(x))[:, :, None], step.tables)[:, :, 0]  # B T C
        scale, sinks = self.head_dim**-0.5, m.sinks if self.sinks else None
        if self.compressor is None:
            (c,) = step.remember(latent=c)
            y = self.attend(m, step, q, c.unsqueeze(-2), c.unsqueeze(-2), scale, sinks=sinks)  # B T H C
        else:
            near = step.apply(slide_window, "near", c, self.window)  # B S C
            entries = self._rotate(self.compressor.compress(m, x, step, "entry_")[:, :, None], step.extra[ENTRY_TABLES])
            (entries,) = step.remember(entry=entries[:, :, 0])
            if self.indexer is not None:
                self.indexer.choose(m, x, low, step, self.n_heads)
            most = None if self.indexer is None else self.indexer.most_keys
            y = step.apply(attend_entries, q, near, entries, scale, most, sinks=sinks)
        return m.o_b(self._project(m, self._rotate(y, step.tables, back=True)))

    def _rotate(self, x: Tensor, tables: tuple[Tensor, Tensor], back: bool = False) -> Tensor:
        """Rotate the last channels of x [B, T, H, C]; with `back`, by the opposite angles."""
        if not self.position.rotates:
            return x
        cos, sin = tables
        width = 2 * cos.shape[-1]
        plain, turned = x.split((self.head_dim - width, width), -1)
        return torch.cat((plain, self.position.rotate(turned, (cos, -sin if back else sin))), -1)

    def _project(self, m: Weights, y: Tensor) -> Tensor:
        """Multiply the outputs y [B, T, H, C] of each group of heads by the group's matrix: [B, T,
        o_groups·o_lora_rank]."""
        weight = m.o_a.weight.unflatten(0, (self.o_groups, self.o_lora_rank))  # G R H/G·C
        return torch.einsum("btgi,gri->btgr", y.flatten(-2).unflatten(-1, (self.o_groups, -1)), weight).flatten(-2)
