# B batch, T tokens, S streams, D model width, N longest n-gram, H hashes, E width of all embeddings
"""Memory of n-grams: tables looked up by hashes of the last few tokens, whose vectors join the residual streams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge
from pydantic import NonNegativeInt, PositiveInt

from zoo.errors import ConfigError
from zoo.lazy import F, Tensor, torch
from zoo.model.attention.recurrent import check_causal, convolve, join_earlier
from zoo.model.norm import RMSNorm, WholeNorm, give_weights
from zoo.spec import Buffer, Conv, Embedding, Linear, Sized, Spec, refuse_ranks

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights

EXACT = 1 << 24
"""Bound below which every integer is exact in float32, the dtype in which states are kept."""


class NGramEmbedding(Spec, axis="ngrams", default="hashed"):
    """Add vectors of a token and the few tokens before it to the residual streams."""

    n_streams: Annotated[int, Ge(2)] = 4
    """Number of residual streams, S."""

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        """Compute the vectors that join the streams x [B, T, S, D] from n-gram embeddings."""
        raise NotImplementedError


class HashedNGrams(NGramEmbedding, kind="hashed"):
    """Embeddings of hashed n-grams, gated by the streams (Cheng et al., 2026, Engram; Qwen Team, 2026, Qwen4-Exp).

    For each n of 2 to `longest` the last n tokens are hashed `hashes` times, each time into a separate table; e is the
    concatenation of all vectors found. A stream x_s gets u + silu(conv(norm(u))), where u = σ(√|g|·sign(g))·v, v =
    e·W_v and g = norm(e·W_k)_s·norm(x_s) / √D, and conv is depthwise with dilation `longest`. The inputs of conv and
    the last N − 1 token ids are states.

    No n-gram reaches back past an end of text or the text's start: missing tokens count as `eos_id`. The hash is ⊕ᵢ
    tokenᵢ·mᵢ modulo the table's size. Sizes are primes from `table_size` on, all different in the model. Multipliers m
    follow from `seed`, `number` and `vocab_size`. Sizes and multipliers are saved with the weights, and one tensor
    holds all tables.
    """

    causal: ClassVar[bool | None] = True

    d_model: PositiveInt
    """Width of the residual stream, stated because the state's size follows from it."""
    vocab_size: PositiveInt
    """Number of tokens of the vocabulary."""
    eos_id: NonNegativeInt
    """Token id of the end of text, past which no n-gram reaches back. It stands for missing tokens."""
    longest: Annotated[int, Ge(2)] = 3
    """Number of tokens of the longest n-gram, N."""
    hashes: PositiveInt = 8
    """Number of hashes, and of tables, for each n."""
    width: PositiveInt
    """Channels of e, the vectors of all tables together."""
    table_size: PositiveInt
    """Smallest size of a table, in rows: sizes are primes from this number on."""
    multiple_of: PositiveInt = 128
    """The number of rows of all tables together is padded to a multiple of this."""
    seed: NonNegativeInt = 1234
    """Seed of the hashes' multipliers."""
    number: NonNegativeInt = 0
    """Index of the layer among those with n-grams, from 0 on: each layer has sizes and multipliers of its own."""
    d_conv: PositiveInt = 4
    """Width of the convolution, in tokens, which are `longest` apart."""
    norm: WholeNorm = RMSNorm()
    """Norm of keys, of streams and of the convolution's input, with a weight for each stream."""

    def __post_init__(self) -> None:
        if self.width % self.n_tables:
            found = f"width={self.width} is not a multiple of the {self.n_tables} tables"
            raise ValueError(f"{found}, (longest - 1)·hashes, that share it")
        if self.eos_id >= self.vocab_size:
            found = f"eos_id={self.eos_id} is no token of vocab_size={self.vocab_size}"
            raise ValueError(f"{found}, so that no n-gram would end (0 to {self.vocab_size - 1})")
        if self.vocab_size >= EXACT:
            raise ValueError(f"vocab_size={self.vocab_size} is too large: ids are kept in float32 (below {EXACT})")
        give_weights(self.norm, self.n_streams)

    @property
    def n_tables(self) -> int:
        """Number of tables: one for each hash of each n."""
        return (self.longest - 1) * self.hashes

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of rows of each table."""
        first = self.number * self.n_tables
        return list_primes(self.table_size, first + self.n_tables)[first:]

    def parts(self, d_model: int) -> dict[str, Any]:
        if d_model != self.d_model:
            raise ConfigError(f"ngrams.d_model: is {self.d_model}, the residual stream is {d_model} wide (the same)")
        sizes, whole = self.sizes, self.n_streams * d_model
        starts = [sum(sizes[:place]) for place in range(len(sizes))]
        rows = -(-sum(sizes) // self.multiple_of) * self.multiple_of
        norm = Sized(give_weights(self.norm, self.n_streams), d_model)
        return {
            "multipliers": Buffer((self.longest,), init=partial(_fill, values=self._draw_multipliers()), dtype="int64"),
            "sizes": Buffer((self.n_tables,), init=partial(_fill, values=sizes), dtype="int64"),
            "starts": Buffer((self.n_tables,), init=partial(_fill, values=starts), dtype="int64"),
            "table": Embedding(rows, self.width // self.n_tables, reads=self.n_tables),
            "key": Linear(self.width, whole),
            "value": Linear(self.width, d_model),
            "key_norm": norm,
            "query_norm": norm,
            "conv_norm": norm,
            "conv": Conv(whole, whole, self.d_conv, groups=whole, dilation=self.longest),
        }

    shard = refuse_ranks("tables of n-grams are not divided over ranks")

    def state(self) -> dict[str, tuple[int, ...]]:
        before = (self.d_conv - 1) * self.longest
        return {"ngram": (self.longest - 1, 1), "ngram_conv": (before, self.n_streams * self.d_model)}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step, "ngrams")
        assert step.ids is not None
        rows = step.along_rows(partial(self._hash, m), step.ids[..., None].float() + 1)  # 0 for no token
        found = m.table(rows).flatten(-2)  # B T E
        keys = m.key_norm(m.key(found).unflatten(-1, (self.n_streams, -1)))  # B T S D
        gate = (keys * m.query_norm(x)).sum(-1, keepdim=True) * self.d_model**-0.5  # B T S 1
        gate = gate.abs().clamp(min=1e-6).sqrt() * gate.sign()
        value = gate.sigmoid() * m.value(found)[:, :, None]  # B T S D
        mixed = convolve(m.conv, m.conv_norm(value).flatten(2), step, "ngram_conv", dilation=self.longest)
        return value + F.silu(mixed).unflatten(-1, (self.n_streams, -1))

    def _hash(self, m: Weights, step: Step, shifted: Tensor) -> Tensor:
        """Find the table rows [B, T, n_tables] of the tokens' n-grams, from token ids + 1 [B, T, 1]."""
        history = join_earlier(shifted, step, "ngram", self.longest - 1)
        tokens = [history.look_back(0)]
        for distance in range(1, self.longest):
            each = history.look_back(distance)
            ended = (each == 0) | (tokens[-1] == self.eos_id + 1) if distance > 1 else each == 0
            tokens.append(torch.where(ended, self.eos_id + 1.0, each))
        ids = [history.restore(each)[..., 0].long() - 1 for each in tokens]
        mixed, rows = ids[0] * m.multipliers[0], []
        for distance in range(1, self.longest):
            mixed = mixed ^ (ids[distance] * m.multipliers[distance])
            tables = slice((distance - 1) * self.hashes, distance * self.hashes)
            rows.append(mixed[..., None] % m.sizes[tables] + m.starts[tables])
        return torch.cat(rows, -1)

    def _draw_multipliers(self) -> list[int]:
        """Draw odd multipliers whose products with a token's id do not overflow int64."""
        half = max(1, ((1 << 63) - 1) // self.vocab_size // 2)
        first = self.seed + 10007 * self.number
        return [2 * (_split_mix(first + GAMMA * place) % half) + 1 for place in range(1, self.longest + 1)]


GAMMA = 0x9E3779B97F4A7C15
"""The step of SplitMix64: 2⁶⁴ ÷ the golden ratio."""


def _split_mix(value: int) -> int:
    """Compute the output of SplitMix64 (Steele, Lea and Flood, 2014) for a state."""
    mask = (1 << 64) - 1
    value = (value + GAMMA) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


@cache
def next_prime(number: int) -> int:
    """Find the smallest prime that is at least `number`."""
    while number < 2 or not all(number % each for each in range(2, math.isqrt(number) + 1)):
        number += 1
    return number


def list_primes(start: int, count: int) -> tuple[int, ...]:
    """List the first `count` primes that are at least `start`."""
    found = [next_prime(start)]
    while len(found) < count:
        found.append(next_prime(found[-1] + 1))
    return tuple(found)


def _fill(tensor: Tensor, values: Sequence[int]) -> None:
    tensor.copy_(torch.tensor(values))
