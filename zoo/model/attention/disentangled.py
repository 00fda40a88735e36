# B batch, T queries, S keys, H heads, C head width, R rows of the position table in reach, D model width
"""Disentangled attention: scores of content with content, and of content with relative positions (DeBERTa)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PositiveFloat

from zoo.lazy import Tensor, torch
from zoo.model.attention.base import MultiHead, Passes
from zoo.model.position.relative import RelativePosition
from zoo.spec import Linear, split

if TYPE_CHECKING:
    from zoo.kernels.base import AttentionQuery
    from zoo.model.step import Step, Weights


@dataclasses.dataclass(frozen=True)
class OfTable(Linear):
    """A projection of the position table. It runs once per pass for any number of tokens, so it counts no FLOPs per
    token."""

    precise: bool = True

    @property
    def flops(self) -> int:
        return 0


class Disentangled(MultiHead, kind="disentangled"):
    """Disentangled attention (He et al., 2020, DeBERTa; He et al., 2021, v3).

    score(i, j) = (q_i·k_j + q_i·p_k[i − j] + k_j·p_q[i − j]) · scale, where p_k and p_q are projections of the vectors
    of the model's `position`, which must be `relative`. The second term is content to position (c2p), the third is
    position to content (p2c). q, v, o and p_q always have a bias.
    """

    # The position bias is computed from all queries and keys at once.
    passes: ClassVar[Passes] = Passes(ragged=False)  # type: ignore[misc]

    types: tuple[Literal["c2p", "p2c"], ...] = ("c2p", "p2c")
    """Terms of positions in the scores: c2p, p2c, both or none."""
    share_att_key: bool = False
    """Whether positions are projected by the content's q and k (v2, v3), rather than by separate weights (v1)."""
    key_bias: bool = True
    """Whether k and p_k have a bias (v2, v3; not v1)."""
    scale: PositiveFloat | None = None
    """Factor of the scores; 1/√(head_dim·(1 + number of types)) unless given."""

    def __post_init__(self) -> None:
        if len(set(self.types)) < len(self.types):
            raise ValueError(f"types names one twice: {', '.join(self.types)} (c2p, p2c, both or none)")
        if self.types and not isinstance(self.position, RelativePosition):
            found = f"types {', '.join(self.types)} with position '{self.position.kind}'"
            raise ValueError(f"disentangled reads relative positions, found {found} (position=relative, or types: [])")
        if not self.types:
            self.position.check(self.head_dim)
        self.check_shared_position()
        if not self.types and self.share_att_key:
            raise ValueError("share_att_key projects positions, and types is empty (leave it out, or name types)")

    def parts(self, d_model: int) -> dict[str, Any]:
        width, both = self.n_heads * self.head_dim, self.share_att_key  # both: q and k project the table, too
        parts: dict[str, Any] = {
            "q": Linear(d_model, width, True, precise=both),
            "k": Linear(d_model, width, self.key_bias, precise=both),
            "v": Linear(d_model, width, True),
            "o": Linear(width, d_model, True, residual=True),
        }
        if "c2p" in self.types and not self.share_att_key:
            parts["pos_k"] = OfTable(d_model, width, self.key_bias)
        if "p2c" in self.types and not self.share_att_key:
            parts["pos_q"] = OfTable(d_model, width, True)
        return parts

    def shard(self, ranks: int) -> Disentangled:
        return split(self, ranks, equal=("n_heads",))

    def cache(self) -> dict[str, tuple[int, ...]]:
        return {"k": (self.n_heads, self.head_dim), "v": (self.n_heads, self.head_dim)}

    def pass_flops(self, d_model: int, new: int, held: int) -> int:
        """Count the FLOPs of the position terms in a pass of `new` tokens after `held` cached ones. These FLOPs are
        proportional neither to tokens nor to query-key pairs. For each of `types` the reachable rows of the table are
        projected, then compared with every new query (c2p) or every key (p2c)."""
        if not self.types:
            return 0
        assert isinstance(self.position, RelativePosition)
        compared = new * ("c2p" in self.types) + (held + new) * ("p2c" in self.types)
        products = d_model * len(self.types) + compared
        return 2 * self.n_heads * self.head_dim * self.position.rows(held + new) * products

    def ask(self, dtype: str, **features: Any) -> AttentionQuery:
        ask = super().ask(dtype, **features)
        # With `types` the bias is computed from queries and keys, and so has a gradient in training.
        return dataclasses.replace(ask, bias="learned" if ask.needs_grad else "fixed") if self.types else ask

    def prepare(self, m: Weights | None, step: Step) -> None:
        if self.types:
            assert m is not None and isinstance(self.position, RelativePosition) and step.keys.index is not None
            step.extra["relative"] = self.position.look_up(m, *step.keys.index)

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        q, k, v = self.project((m.q, m.k, m.v), x, step)  # B T H C
        k, v = step.remember(k=k, v=v)  # B S H C
        scale = (self.head_dim * (1 + len(self.types))) ** -0.5 if self.scale is None else self.scale
        bias = self._position_scores(m, q, k.to(q.dtype), step, scale) if self.types else step.keys.bias
        y = step.attend_under(step.mask, q, k, v, scale, bias)
        return m.o(y.flatten(-2))  # B T D

    def _position_scores(self, m: Weights, q: Tensor, k: Tensor, step: Step, scale: float) -> Tensor:
        """Compute the bias [B, H, T, S] that `types` add to the scores, in float32."""
        table, index = step.extra["relative"]  # R D, T S
        wide = torch.promote_types(q.dtype, torch.float32)
        heads, shape = (self.n_heads, self.head_dim), (q.shape[0], self.n_heads)
        terms = []
        if "c2p" in self.types:
            p = (m.k if self.share_att_key else m.pos_k)(table).unflatten(-1, heads)  # R H C
            near = torch.einsum("bthc,rhc->bhtr", q, p).to(wide)
            terms.append(near.gather(-1, index.expand(*shape, -1, -1)))  # B H T S
        if "p2c" in self.types:
            p = (m.q if self.share_att_key else m.pos_q)(table).unflatten(-1, heads)  # R H C
            near = torch.einsum("bshc,rhc->bhsr", k, p).to(wide)
            terms.append(near.gather(-1, index.t().expand(*shape, -1, -1)).transpose(-1, -2))  # B H T S
        return sum(terms[1:], terms[0]) * scale
