# B batch, T tokens, H heads, C head width, R distances in reach, D model width
"""Transformer-XL's attention: scores of content, of relative positions and of shared segments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.attention.base import PlainHeads
from zoo.model.attention.disentangled import OfTable
from zoo.model.position.absolute import Sinusoidal
from zoo.spec import Embedding, Linear, Weight, split

if TYPE_CHECKING:
    from zoo.kernels.base import AttentionQuery
    from zoo.model.step import Step, Weights

WAVES = Sinusoidal(interleaved=False)
"""Sinusoidal vectors of distances: all sines, then all cosines."""


class TransformerXL(PlainHeads, kind="transformer_xl"):
    """Relative attention of Transformer-XL (Dai et al., 2019), for bidirectional models, as XLNet uses it; the model of
    Dai et al. is causal. With `segments` it is XLNet's attention (Yang et al., 2019) in one stream, as transformers
    computes it without `perm_mask`.

    score(i, j) = ((q_i + u)·k_j + (q_i + v)·p[i − j] + (q_i + w)·s[i, j]) / √head_dim. p are projections of sinusoids
    of the distance; u, v and w are learned for each head. s is one of two learned vectors: for tokens of one segment,
    and of different ones. Segments are the token types of the input; without token types the last term is left out,
    because it would be the same for all keys.

    FLOPs are counted without token types, which add 4·H·C for each token.
    """

    causal: ClassVar[bool | None] = False

    max_distance: PositiveInt | None = None
    """Maximum distance in tokens; greater distances count as this one. No limit unless given."""
    segments: bool = False
    """Whether scores have a term for the segments of two tokens."""

    @property
    def extras(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("types",) if self.segments else ()

    @property
    def score_heads(self) -> int:  # type: ignore[override]
        return self.n_heads

    def parts(self, d_model: int) -> dict[str, Any]:
        width, heads = self.n_heads * self.head_dim, (self.n_heads, self.head_dim)
        more = {"segment_bias": Weight(heads), "segments": Embedding(2, width)} if self.segments else {}
        return {
            **{name: Linear(d_model, width) for name in ("q", "k", "v")},
            "distances": OfTable(d_model, width),
            "content_bias": Weight(heads),
            "distance_bias": Weight(heads),
            **more,
            "o": Linear(width, d_model, residual=True),
        }

    def shard(self, ranks: int) -> TransformerXL:
        return split(self, ranks, equal=("n_heads",))

    def pass_flops(self, d_model: int, new: int, held: int) -> int:
        """Count the FLOPs of the distances in a pass of `new` tokens: the distances in reach are projected once, and
        compared with every query."""
        return 2 * self.n_heads * self.head_dim * (2 * self._farthest(new) + 1) * (d_model + new)

    def constant_flops(self, d_model: int, new: int, pairs: int) -> int:
        return 2 * self.n_heads * self.head_dim * (2 * self._farthest(new) + 1) * d_model  # projecting the sinusoids

    def ask(self, dtype: str, **features: Any) -> AttentionQuery | None:
        return super().ask(dtype, bias="learned" if features.get("needs_grad", False) else "fixed", **features)

    def _farthest(self, length: int) -> int:
        return length - 1 if self.max_distance is None else min(length - 1, self.max_distance)

    def prepare(self, m: Weights | None, step: Step) -> None:
        assert step.keys.index is not None
        places, _ = step.keys.index
        farthest = self._farthest(places.shape[0])
        rows = (places[:, None] - places).clamp(-farthest, farthest) + farthest  # T T
        step.extra["distances"] = torch.arange(-farthest, farthest + 1, device=places.device), rows

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.n_heads, self.head_dim)) for part in (m.q, m.k, m.v))  # B T H C
        scale = self.head_dim**-0.5
        bias = self._distance_scores(m, x, q, step)
        if self.segments and "types" in step.extra:
            bias = bias + self._segment_scores(m, q, step.extra["types"])
        y = step.attend_under(step.mask, q + m.content_bias.to(q.dtype), k, v, scale, bias * scale)
        return m.o(y.flatten(-2))  # B T D

    def _distance_scores(self, m: Weights, x: Tensor, q: Tensor, step: Step) -> Tensor:
        """Compute the scores of the distances [B, H, T, T], in float32."""
        distances, rows = step.extra["distances"]  # R, T T
        p = m.distances(WAVES.draw_waves(distances, x.shape[-1]).to(x.dtype))
        p = p.unflatten(-1, (self.n_heads, self.head_dim))  # R H C
        near = torch.einsum("bthc,rhc->bhtr", q + m.distance_bias.to(q.dtype), p.to(q.dtype))
        near = near.to(torch.promote_types(near.dtype, torch.float32))
        return near.gather(-1, rows.expand(q.shape[0], self.n_heads, -1, -1))

    def _segment_scores(self, m: Weights, q: Tensor, types: Tensor) -> Tensor:
        """Compute the scores of same and different segments [B, H, T, T], in float32."""
        vectors = m.segments.weight.unflatten(-1, (self.n_heads, self.head_dim))  # 2 H C
        each = torch.einsum("bthc,nhc->nbht", q + m.segment_bias.to(q.dtype), vectors.to(q.dtype))
        same, other = each.to(torch.promote_types(each.dtype, torch.float32))[..., None].unbind(0)  # B H T 1
        return torch.where((types[:, :, None] == types[:, None])[:, None], same, other)
