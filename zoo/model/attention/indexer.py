# B batch, T tokens, H heads, C head width, D model width, Q width of what queries are made of
"""Choose the keys that attention reads: the indexers of sparse attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import torch
from zoo.model.norm import LayerNorm, WholeNorm
from zoo.model.position.base import Position
from zoo.model.position.rotary import turn_pairs
from zoo.spec import Linear, Sized, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


class Indexer(Spec, axis="indexer", default="lightning"):
    """Choose the `top_k` keys that a query attends to, of those that its mask shows."""

    owns: ClassVar[bool] = True  # whether it chooses by itself, rather than taking an earlier layer's choice

    top_k: PositiveInt

    def list_parts(self, d_model: int, q_width: int) -> dict[str, Any]:
        """List its weights by name among those of the attention: of x `d_model` wide, of queries' input `q_width`."""
        return {}

    def attended(self) -> dict[str, tuple[int, ...]]:
        """List what it reads of each token's cache."""
        return self.cache()

    def check(self, position: Position, width: int) -> None:
        """Raises ValueError where it cannot rotate as the attention's position scheme does `width` channels."""

    def choose(self, m: Weights, x: Tensor, latent: Tensor, step: Step) -> None:
        """Have the step attend to the keys chosen. `m` are the attention's weights, x [B, T, D] its input, `latent`
        [B, T, Q] what its queries are made of."""
        raise NotImplementedError


class Lightning(Indexer, kind="lightning"):
    """The lightning indexer (DeepSeek-V3.2, 2025): the `top_k` keys of highest Σ_h w_h·relu(q_h·k).

    q = latent·W_q of `n_heads` heads, one key k = norm(x·W_k) a token, `head_dim` wide, and weights w = x·W_w. The
    leading channels of q and k are rotated, as many and by the same angles as in attention: halves of them as pairs, or
    neighbours where `interleaved` (GLM-5); with `rotates_last` the last channels in their place (Hy4, 2026). Its keys
    have a cache of their own. A choice has no gradient, so that training leaves its weights as they are: DeepSeek
    trains them by a loss apart.
    """

    n_heads: PositiveInt = 64
    head_dim: PositiveInt = 128
    top_k: PositiveInt = 2048
    norm: WholeNorm = LayerNorm(eps=1e-6)
    interleaved: bool = False
    rotates_last: bool = False

    def list_parts(self, d_model: int, q_width: int) -> dict[str, Any]:
        return {
            "index_q": Linear(q_width, self.n_heads * self.head_dim),
            "index_k": Linear(d_model, self.head_dim),
            "index_norm": Sized(self.norm, self.head_dim),
            "index_weights": Linear(d_model, self.n_heads, precise=True),
        }

    def check(self, position: Position, width: int) -> None:
        if position.rotates and self.head_dim < (getattr(position, "rotary_dim", None) or width):
            raise ValueError(f"indexer.head_dim={self.head_dim} has fewer channels than are rotated ({width} or more)")
        stated = next((name for name in ("interleaved", "rotates_last") if getattr(self, name)), None)
        if stated is not None and not position.rotates:
            raise ValueError(f"indexer.{stated}: position '{position.kind}' rotates nothing (rope, or leave it out)")

    def cache(self) -> dict[str, tuple[int, ...]]:
        return {"index": (self.head_dim,)}

    def core_flops(self, pairs: int) -> int:
        return 2 * self.n_heads * (self.head_dim + 1) * pairs

    def choose(self, m: Weights, x: Tensor, latent: Tensor, step: Step) -> None:
        with torch.no_grad():
            q = m.index_q(latent).unflatten(-1, (self.n_heads, self.head_dim))  # B T H C
            k = m.index_norm(m.index_k(x))[:, :, None]  # B T 1 C
            q, k = self._rotate(q, step.tables), self._rotate(k, step.tables)[:, :, 0]
            (k,) = step.remember(index=k)
            step.choose(q, m.index_weights(x), k, self.top_k)

    def _rotate(self, x: Tensor, tables: Any) -> Tensor:
        """Rotate leading or last channels of x [B, T, H, C] by attention's tables, None where it rotates nothing."""
        if tables is None:
            return x
        cos, sin = tables
        width, whole = 2 * cos.shape[-1], x.shape[-1]
        if self.rotates_last and width < whole:
            plain, turned = x.split((whole - width, width), -1)
            return torch.cat((plain, turn_pairs(turned, cos, sin, self.interleaved)), -1)
        turned = turn_pairs(x[..., :width], cos, sin, self.interleaved)
        return turned if width == whole else torch.cat((turned, x[..., width:]), -1)


class Shared(Indexer, kind="shared"):
    """The choice of the nearest layer before that has an indexer of its own (GLM-5, 2026): no weights and no cache.
    `top_k` is that layer's."""

    owns: ClassVar[bool] = False

    def choose(self, m: Weights, x: Tensor, latent: Tensor, step: Step) -> None:
        step.take_choice(x)
