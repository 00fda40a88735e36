# B batch, T tokens, E inner width, H blocks of a gate
"""The Real-Gated Linear Recurrent Unit: a state of one number per channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import F, Tensor, torch
from zoo.model.activation import GELUTanh, PlainActivation
from zoo.model.attention.base import Attention, check_multiple
from zoo.model.attention.recurrent import check_causal, convolve, exactly, scan_channels, starts
from zoo.spec import Conv, Linear, Weight, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights

SHARPNESS = 8.0
"""The constant c of the paper, the sharpness of the recurrence gate."""

EPS = 1e-12
"""Added under the square root of the input's factor, so that its gradient is finite if a = 1."""


class RGLRU(Attention, kind="rg_lru"):
    """Real-Gated Linear Recurrent Unit (De et al., 2024, Griffin), in its gated block.

    Gates read u = conv(x·W_x) by equal blocks of channels: i = σ(u·W_i + b_i) and r = σ(u·W_r + b_r), where W_i and W_r
    are block-diagonal. With a = exp(−8·r·softplus(rate)),

        h ← a ⊙ h + √(1 − a²) ⊙ i ⊙ u [E],   out = (h ⊙ act(x·W_y))·W_out.

    The first token of a row or document writes i ⊙ u unscaled. The recurrence is computed in float32.
    """

    causal: ClassVar[bool | None] = True
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("x", "y"),)

    d_inner: PositiveInt
    """Inner channels, E."""
    n_heads: PositiveInt
    """Number of equal blocks of channels that the gates read."""
    d_conv: PositiveInt = 4
    """Width of the causal convolution, in tokens."""
    bias: bool = True
    """Whether the projections and the convolution have a bias; the gates always do."""
    activation: PlainActivation = GELUTanh()
    """Activation of the output gate x·W_y."""
    chunk_size: PositiveInt = 32
    """Chunk length of the recurrence, in tokens; affects only speed."""

    def __post_init__(self) -> None:
        check_multiple(self, "d_inner", "n_heads")

    def parts(self, d_model: int) -> dict[str, Any]:
        inner = self.d_inner
        return {
            "x": Linear(d_model, inner, self.bias),
            "y": Linear(d_model, inner, self.bias),
            "conv": Conv(inner, inner, self.d_conv, groups=inner, bias=self.bias),
            "input_gate": Conv(inner, inner, 1, groups=self.n_heads, bias=True),  # width 1: a block-diagonal product
            "recurrence_gate": Conv(inner, inner, 1, groups=self.n_heads, bias=True),
            "rate": Weight((inner,), init=_spread_rates),
            "out": Linear(inner, d_model, self.bias, residual=True),
        }

    def shard(self, ranks: int) -> RGLRU:
        return split(self, ranks, equal=("n_heads", "d_inner"))

    def state(self) -> dict[str, tuple[int, ...]]:
        return {"conv": (self.d_conv - 1, self.d_inner), "lru": (self.d_inner,)}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step)
        y = self.activation.apply(m.y(x))
        u = convolve(m.conv, m.x(x), step)  # B T E
        i, r = self._gate(m.input_gate, u), self._gate(m.recurrence_gate, u)
        with exactly(x):
            log = -SHARPNESS * F.softplus(m.rate.float()) * r.float().sigmoid()  # B T E
            states = step.along_rows(self._scan, log, i.float().sigmoid() * u.float())
        return m.out(states.to(y.dtype) * y)  # B T D

    def _scan(self, step: Step, log: Tensor, new: Tensor) -> Tensor:
        """Run the recurrence over log decays and gated inputs [B, T, E]: the states [B, T, E]."""
        h = step.state("lru")
        begins = _find_starts(log, step, h)  # B T 1
        h = log.new_zeros(log.shape[0], self.d_inner) if h is None else h
        decay, written = log.exp(), (EPS - torch.expm1(2 * log)).sqrt()
        new = torch.where(_find_first(begins, step.real), 1.0, written) * new
        if step.real is not None:  # padding leaves the state unchanged
            real = step.real[..., None]
            decay, new = torch.where(real, decay, 1.0), new * real
        decay = decay * ~begins
        length = 1 if step.kernel == "eager" else min(self.chunk_size, log.shape[1])
        states = scan_channels(decay, new, h, length)
        step.hold(lru=states[:, -1])
        return states

    def _gate(self, gate: Any, u: Tensor) -> Tensor:
        """Multiply u [B, T, E] by a gate's block-diagonal matrix and add the bias: [B, T, E]."""
        blocks = gate.weight.view(self.n_heads, -1, self.d_inner // self.n_heads)
        product = torch.einsum("bthi,hoi->btho", u.unflatten(-1, (self.n_heads, -1)), blocks)
        return product.flatten(-2) + gate.bias


def _find_starts(x: Tensor, step: Step, h: Tensor | None) -> Tensor:
    """Mark the tokens [B, T, 1] at which a row or a document begins. A row is new if its state h [B, E] is None or all
    zeros."""
    begins = torch.arange(x.shape[1], device=x.device)[None] == 0  # 1 T
    if h is not None:
        begins = begins & (h.abs().sum(-1, keepdim=True) == 0)  # B T
    if step.documents is not None:
        begins = begins | starts(step.documents)
    return begins[..., None]


def _find_first(begins: Tensor, real: Tensor | None) -> Tensor:
    """Mark the first real token at or after each place where a row or document `begins`: True [B, T, 1]."""
    if real is None:
        return begins
    before = (real.cumsum(1) - real.int())[..., None]  # B T 1: real tokens before each
    return real[..., None] & (before == torch.where(begins, before, -1).cummax(1).values)


def _spread_rates(tensor: Tensor) -> None:
    """Fill the rates [E] so that exp(−softplus(rate))² is spread evenly over (0.9², 0.999²), as in published models."""
    places = (torch.arange(tensor.shape[0], device=tensor.device) + 0.5) / tensor.shape[0]
    left = -0.5 * (0.9**2 + (0.999**2 - 0.9**2) * places).log()  # softplus(rate)
    tensor.copy_(left.expm1().log())
