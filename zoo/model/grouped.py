# B batch, T tokens, H heads, C head width, D model width, F feed-forward width
"""Attention and a feed-forward with grouped projections: each group of channels has a matrix of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.errors import ConfigError
from zoo.lazy import Tensor
from zoo.model.activation import PlainActivation
from zoo.model.attention.base import MultiHead
from zoo.model.ffn import FFN
from zoo.spec import Conv

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


def group_product(name: str, d_in: int, d_out: int, groups: int, bias: bool) -> Conv:
    """Make a grouped projection: a convolution of width 1. Raises ConfigError unless `groups` divides both widths."""
    if d_in % groups or d_out % groups:
        raise ConfigError(f"{name}: {groups} groups do not divide {d_in} and {d_out} channels (a divisor of both)")
    return Conv(d_in, d_out, 1, groups, bias)


class GroupedAttention(MultiHead, kind="grouped_linear"):
    """Multi-head attention with grouped projections (Iandola et al., 2020, SqueezeBERT): each of the g groups of a
    projection maps its share of the inputs to its share of the outputs, so that the projection has 1/g of the
    weights."""

    q_groups: PositiveInt = 4
    """Number of groups of the query projection, a divisor of its input and output widths."""
    k_groups: PositiveInt = 4
    """Number of groups of the key projection, a divisor of its input and output widths."""
    v_groups: PositiveInt = 4
    """Number of groups of the value projection, a divisor of its input and output widths."""
    o_groups: PositiveInt = 1
    """Number of groups of the output projection, a divisor of its input and output widths."""
    bias: bool = True
    """Whether the four projections have a bias."""

    def __post_init__(self) -> None:
        self.position.check(self.head_dim)

    def parts(self, d_model: int) -> dict[str, Any]:
        width, groups = self.n_heads * self.head_dim, {"q": self.q_groups, "k": self.k_groups, "v": self.v_groups}
        return {
            **{name: group_product(f"{name}_groups", d_model, width, n, self.bias) for name, n in groups.items()},
            "o": group_product("o_groups", width, d_model, self.o_groups, self.bias),
            **({"position": self.position} if self.position.per_layer else {}),
        }

    def cache(self) -> dict[str, tuple[int, ...]]:
        return {"k": (self.n_heads, self.head_dim), "v": (self.n_heads, self.head_dim)}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        # Convolutions give channels first, which no fused attention takes.
        made = (part(x).contiguous().unflatten(-1, (self.n_heads, self.head_dim)) for part in (m.q, m.k, m.v))
        q, k, v = made  # B T H C
        q, k = self.position.rotate(q, step.tables), self.position.rotate(k, step.tables)
        k, v = step.remember(k=k, v=v)
        return m.o(self.attend(m, step, q, k, v, self.head_dim**-0.5).flatten(-2))  # B T D


class GroupedMLP(FFN, kind="grouped_linear"):
    """Feed-forward act(x·W_up)·W_down with grouped projections (Iandola et al., 2020, SqueezeBERT)."""

    stacks: ClassVar[bool] = False

    d_ff: PositiveInt
    """Width of the hidden layer, in channels."""
    activation: PlainActivation
    """Activation of the hidden units."""
    bias: bool = True
    """Whether both projections have a bias."""
    up_groups: PositiveInt = 4
    """Number of groups of W_up, a divisor of its input and output widths."""
    down_groups: PositiveInt = 4
    """Number of groups of W_down, a divisor of its input and output widths."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "up": group_product("up_groups", d_model, self.d_ff, self.up_groups, self.bias),
            "down": group_product("down_groups", self.d_ff, d_model, self.down_groups, self.bias),
        }

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        return m.down(step.drop_units(self.activation.apply(m.up(x))))
