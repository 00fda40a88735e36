# B batch, T tokens, G global tokens, H heads, C head width, D model width
"""Local attention to a window, and to global tokens that every layer makes anew, one for each block of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from zoo.kernels.base import AttentionQuery
from zoo.kernels.mask import Mask
from zoo.kernels.score_bias import Given
from zoo.kernels.view import KeyView
from zoo.lazy import Tensor, torch
from zoo.model.attention.base import MultiHead, Sight
from zoo.model.norm import WholeNorm
from zoo.model.position.bias import T5Globals
from zoo.spec import Linear, Sized

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class TransientGlobal(MultiHead, kind="transient_global"):
    """Transient-global attention (Guo et al., 2022, LongT5), for bidirectional models.

    A token i sees every j with |i − j| ≤ `window`, and all global tokens. A global token is the normalised sum of a
    block of tokens, computed anew in each layer. The last whole block also takes the tokens after it; a text shorter
    than a block has no global token. The position scheme has a second table, for distances between blocks.
    """

    causal: ClassVar[bool | None] = False
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("k", "v"),)

    window: PositiveInt
    """Distance, in tokens, that a token sees to either side."""
    norm: WholeNorm
    """Norm of a global token."""
    block_size: PositiveInt = 16
    """Block size, in tokens; the sum of a block's tokens makes a global token."""
    scale: PositiveFloat | None = None
    """Factor of the scores; 1/√head_dim unless given."""
    bias: bool = False
    """Whether the projections have a bias."""

    def __post_init__(self) -> None:
        if not isinstance(self.position, T5Globals):
            found = f"position '{self.position.kind}' has no table for distances between blocks"
            raise ValueError(f"transient_global: {found} (t5_globals)")

    @property
    def sight(self) -> Sight:
        return Sight(self.window)

    def parts(self, d_model: int) -> dict[str, Any]:
        width = self.n_heads * self.head_dim
        return {
            **{name: Linear(d_model, width, self.bias) for name in ("q", "k", "v")},
            "o": Linear(width, d_model, self.bias, residual=True),
            "global_norm": Sized(self.norm, d_model),
        }

    def pass_flops(self, d_model: int, new: int, held: int) -> int:
        count, width = new // self.block_size, self.n_heads * self.head_dim
        return count * (2 * new * d_model + 4 * d_model * width + 4 * width * new)  # sums, keys and values, pairs

    def constant_flops(self, d_model: int, new: int, pairs: int) -> int:
        return new // self.block_size * 2 * new * d_model  # the sums, whose weights are constants

    def ask(self, dtype: str, **features: Any) -> AttentionQuery:
        return super().ask(dtype, **features | {"chosen": True, "window": None, "short_q": True})  # with global keys

    def prepare(self, m: Weights | None, step: Step) -> None:
        assert step.positions is not None and step.keys.bias is not None and m is not None
        old, places = step.mask, step.positions  # B|1 T
        tokens, hides = old.n_queries, {"padding": old.padding, "documents": old.documents}
        whole = Mask(tokens, tokens, causal=False, **hides).dense(places.device)[:, 0]  # B|1 T T
        real = torch.ones_like(places, dtype=torch.bool) if step.real is None else step.real
        blocks = whole.sum(-1) // self.block_size  # of each token's row or document
        mine = places // self.block_size
        begun = real & (places % self.block_size == 0) & (mine < blocks)
        first = begun.long().cumsum(1) - torch.minimum(mine + 1, blocks)  # the first global token of the same text
        mine = first + torch.minimum(mine, blocks - 1)
        numbers = torch.arange(tokens // self.block_size, device=places.device)
        numbered, real, first = numbers[None, None], real[..., None], first[..., None]
        shown = real & (numbered >= first) & (numbered < first + blocks[..., None])  # B|1 T G
        mine = mine[..., None]
        step.extra["members"] = shown & (numbered == mine)
        local = Mask(tokens, tokens, causal=False, window=self.window, **hides).dense(places.device)[:, 0]
        mask = Mask(tokens, tokens + len(numbers), causal=False, only=torch.cat((local, shown), -1))
        far = m.globals(self.position.buckets(numbered, mine, False)).permute(0, 3, 1, 2)  # type: ignore[attr-defined]
        near = step.keys.bias.dense().expand(far.shape[0], -1, -1, -1)  # B|1 H T T
        bias = Given(torch.cat((near, far), -1))
        bias.learned = step.keys.bias.learned
        step.keys = KeyView(mask, step.keys.index, bias)

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        members = step.extra["members"].transpose(1, 2).to(x.dtype)  # B|1 G T
        read = torch.cat((x, m.global_norm(members @ x)), 1)  # B T+G D
        q, k, v = (each.unflatten(-1, (self.n_heads, self.head_dim)) for each in (m.q(x), m.k(read), m.v(read)))
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        return m.o(self.attend(m, step, q, k, v, scale).flatten(-2))  # B T D
