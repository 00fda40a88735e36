# B batch, T tokens, N blocks, H heads, C head width, D model width
"""Block-sparse attention: neighbouring blocks of tokens, the first, the last and a few random ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeInt, PositiveInt

from zoo.kernels.base import AttentionQuery
from zoo.kernels.choosing import take_best
from zoo.kernels.mask import Mask
from zoo.kernels.score_bias import Given
from zoo.kernels.view import KeyView
from zoo.lazy import Tensor, torch
from zoo.model.attention.base import BlockPattern, MultiHead, Sight
from zoo.spec import Linear, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights

HASH = (7919, 104729, 1000003)
"""Primes of the hash that draws random blocks: (7919·i + 104729·j)² mod 1000003 for the blocks i and j."""


class BlockSparse(MultiHead, kind="block_sparse"):
    """Block-sparse attention (Zaheer et al., 2020, BigBird), for bidirectional models.

    A text is cut into blocks; padding is left out (transformers counts it as tokens). Tokens of the first and the last
    block see, and are seen by, all tokens. Other tokens see their own block, its two neighbours and, in training, a few
    random blocks. The random blocks are drawn by a hash of the block numbers, the same in every pass, layer and head.
    Outside training the first block stands in for each random block, as in transformers: its keys count 1 +
    random_blocks times in the softmax, and no query-key pair is added. A text of at most (5 +
    2·random_blocks)·block_size tokens is attended in full.

    FLOPs are counted without random blocks. In training random blocks add 4·block_size·random_blocks·H·C for each token
    that is in neither the first nor the last block.
    """

    causal: ClassVar[bool | None] = False
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v"),)

    block_size: PositiveInt = 64
    """Block size, in tokens."""
    random_blocks: NonNegativeInt = 3
    """Number of random blocks that a token sees in training."""
    bias: bool = True
    """Whether the projections of q, k and v have a bias, and also the projection o unless `o_bias` is given."""
    o_bias: bool | None = None
    """Whether the output projection o has a bias; the value of `bias` unless given."""

    def __post_init__(self) -> None:
        self.position.check(self.head_dim)
        self.check_shared_position()

    @property
    def sight(self) -> Sight:
        return Sight(blocks=BlockPattern(self.block_size, self.whole_until))

    @property
    def whole_until(self) -> int:
        """Length of the longest text that is attended in full, in tokens."""
        return (5 + 2 * self.random_blocks) * self.block_size

    def parts(self, d_model: int) -> dict[str, Any]:
        width = self.n_heads * self.head_dim
        o_bias = self.bias if self.o_bias is None else self.o_bias
        return {
            **{name: Linear(d_model, width, self.bias) for name in ("q", "k", "v")},
            "o": Linear(width, d_model, o_bias, residual=True),
        }

    def shard(self, ranks: int) -> BlockSparse:
        return split(self, ranks, equal=("n_heads",))

    def ask(self, dtype: str, **features: Any) -> AttentionQuery:
        ask = super().ask(dtype, **features)
        counted = ask.chosen and self.random_blocks and ask.bias != "learned"  # its bias counts the first block again
        return replace(ask, bias="fixed") if counted else ask

    def prepare(self, m: Weights | None, step: Step) -> None:
        old, bias, places = step.mask, step.keys.bias, step.positions  # B|1 T
        assert places is not None
        tokens, size, whole_until = old.n_queries, self.block_size, self.whole_until
        if tokens <= whole_until:
            return
        mine = Mask(tokens, tokens, causal=False, padding=old.padding, documents=old.documents)
        mine = mine.dense(places.device)[:, 0]  # B|1 T T, the tokens of one's own row or document
        lengths = mine.sum(-1)[..., None]  # B|1 T 1
        query, key, last = (places // size)[..., None], (places // size)[:, None], (lengths - 1) // size
        inner = (query > 0) & (query < last) & (lengths > whole_until)
        seen = ((query - key).abs() <= 1) | (key == 0) | (key == last) | ~inner
        if step.training and self.random_blocks:
            seen = seen | self._draw(query, key, last, -(-tokens // size))
        elif self.random_blocks:
            again = (inner & (key == 0)).float()[:, None] * math.log(1 + self.random_blocks)  # B|1 1 T T
            learned = bias is not None and bias.learned
            bias = Given(again if bias is None else bias.dense() + again)
            bias.learned = learned
        step.keys = KeyView(Mask(tokens, tokens, causal=False, only=mine & seen), step.keys.index, bias)

    def _draw(self, query: Tensor, key: Tensor, last: Tensor, count: int) -> Tensor:
        """Draw random blocks for each query, among the `count` blocks, without those that the query sees anyway.
        Returns a mask [B|1, T, T], True for keys in a drawn block. `query` [B|1, T, 1] and `key` [B|1, 1, T] are the
        block numbers of queries and keys, `last` [B|1, T, 1] the last block of the query's text."""
        blocks = torch.arange(count, device=query.device)  # N
        first, second, modulus = HASH
        drawn = query * first + blocks * second
        hidden = ((query - blocks).abs() <= 1) | (blocks == 0) | (blocks >= last)
        chosen = take_best((drawn * drawn % modulus).masked_fill(hidden, -1), self.random_blocks) & ~hidden
        return chosen.gather(-1, key.expand(-1, query.shape[1], -1))

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        q, k, v = self.project((m.q, m.k, m.v), x, step)  # B T H C
        return m.o(self.attend(m, step, q, k, v, self.head_dim**-0.5).flatten(-2))  # B T D
