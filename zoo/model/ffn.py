# D model width, F feed-forward width
"""Position-wise feed-forward layers."""

from __future__ import annotations

import functools
from functools import partial
from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Gt, Lt
from pydantic import PositiveFloat, PositiveInt

from zoo.errors import ConfigError
from zoo.lazy import F, Tensor, torch
from zoo.model.activation import Activation
from zoo.model.norm import WholeNorm
from zoo.spec import Linear, Sized, Spec, Weight, split

if TYPE_CHECKING:
    from collections.abc import Callable

    from zoo.model.step import Step, Weights


class FFN(Spec, axis="ffn"):
    """Transform each token on its own. A mixture of experts stacks the Linear parts; its experts share the other
    parts."""

    stacks: ClassVar[bool] = True  # whether an expert can be of this kind
    summed: ClassVar[int] = 0
    """Number of values per token that tensor-parallel ranks sum inside the feed-forward."""

    def parts(self, d_model: int) -> dict[str, Any]:
        raise NotImplementedError

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        """Transform each token's vector: x [..., D] to [..., D]."""
        raise NotImplementedError


class MLP(FFN, kind="mlp"):
    """Two-layer feed-forward, act(x·W_up)·W_down (Vaswani et al., 2017)."""

    d_ff: PositiveInt
    """Width of the hidden layer, in channels."""
    activation: Activation
    """Activation of the hidden units."""
    bias: bool = False
    """Whether both projections have a bias."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "up": Linear(d_model, self.d_ff, self.bias),
            **_learned(self.activation),
            "down": Linear(self.d_ff, d_model, self.bias, residual=True),
        }

    def shard(self, ranks: int) -> MLP:
        return split(self, ranks, equal=("d_ff",))

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        act = m.activation if self.activation.learned else self.activation.apply
        return m.down(step.drop_units(act(m.up(x))))


class GatedFFN(FFN, kind="gated"):
    """Gated feed-forward, (act(x·W_gate) ⊙ x·W_up)·W_down (Shazeer, 2020): SwiGLU with SiLU, GEGLU with GELU, ReGLU
    with ReLU."""

    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("gate", "up"),)

    d_ff: PositiveInt
    """Width of the hidden layer, in channels."""
    activation: Activation
    """Activation of the gate."""
    bias: bool = False
    """Whether the three projections have a bias. `down_bias`, if given, decides for W_down."""
    gate_scale: float = 1.0
    """Constant factor of x·W_gate, a multiplier of µP (Falcon-H1, 2025)."""
    out_scale: float = 1.0
    """Constant factor of the output, a multiplier of µP (Falcon-H1, 2025)."""
    inner_norm: WholeNorm | None = None
    """Norm of the gated product, before W_down (BitNet b1.58; Wang et al., 2022)."""
    down_bias: bool | None = None
    """Whether W_down has a bias; the value of `bias` unless given (GTE: only W_down has one)."""
    sparsity: Annotated[float, Gt(0), Lt(1)] | None = None
    """Approximate share s of the gate's channels that are set to 0: the activation reads
    relu(g − mean(g) − Φ⁻¹(s)·std(g)) in place of g = x·W_gate (Gemma 3n, 2025)."""
    limit: PositiveFloat | None = None
    """Bound L of the projections: x·W_gate is at most L, and x·W_up is clamped to ±L (DeepSeek-V4, 2026)."""
    up_softcap: PositiveFloat | None = None
    """Bound c of x·W_up, c·tanh(x·W_up/c) (Inkling 2, 2026). Not together with `limit`."""
    global_scale: bool = False
    """Whether the output is multiplied by one learned number (Inkling, 2026)."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.up_softcap is not None:
            found = f"limit={self.limit} and up_softcap={self.up_softcap}"
            raise ValueError(f"{found} both bound what `up` gives (one of them)")

    @property
    def summed(self) -> int:  # type: ignore[override]
        return int(self.inner_norm is not None)  # the mean square

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "gate": Linear(d_model, self.d_ff, self.bias),
            **_learned(self.activation),
            "up": Linear(d_model, self.d_ff, self.bias),
            **({"inner_norm": Sized(self.inner_norm, self.d_ff)} if self.inner_norm else {}),
            "down": Linear(self.d_ff, d_model, self.bias if self.down_bias is None else self.down_bias, residual=True),
            **({"global_scale": Weight((1,), init=1.0)} if self.global_scale else {}),
        }

    def shard(self, ranks: int) -> GatedFFN:
        if self.sparsity is not None and ranks > 1:
            raise ConfigError("tp: sparsity takes the mean and deviation of all ranks' channels (tp=1)")
        return split(self, ranks, equal=("d_ff",))

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        act = m.activation if self.activation.learned else self.activation.apply
        act = act if self.sparsity is None else partial(_activate_sparsely, act, self.sparsity)
        if self.activation.learned or not torch.is_grad_enabled():
            y = act(self._gate(m, x)) * self._up(m, x)  # the gate is freed before `up` is made
        else:
            y = multiply_gate(act, self._gate(m, x), self._up(m, x))
        y = m.seam.normalise(m.inner_norm, y) if self.inner_norm else y
        y = multiply(m.down(step.drop_units(y)), self.out_scale)
        return y * m.global_scale.to(y.dtype) if self.global_scale else y

    def _gate(self, m: Weights, x: Tensor) -> Tensor:
        gate = multiply(m.gate(x), self.gate_scale)
        return gate if self.limit is None else gate.clamp(max=self.limit)

    def _up(self, m: Weights, x: Tensor) -> Tensor:
        up = m.up(x) if self.limit is None else m.up(x).clamp(-self.limit, self.limit)
        return up if self.up_softcap is None else self.up_softcap * torch.tanh(up / self.up_softcap)


class GatedClamped(FFN, kind="gated_clamped"):
    """Clamped gated feed-forward, (g·σ(alpha·g) ⊙ (u + 1))·W_down with g = min(x·W_gate, limit), u = x·W_up clamped to
    ±limit (gpt-oss, 2025).

    The gate needs no lower bound: g·σ(alpha·g) goes to 0 as g falls.
    """

    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("gate", "up"),)

    d_ff: PositiveInt
    """Width of the hidden layer, in channels."""
    alpha: PositiveFloat = 1.702
    """Factor of the gate in its own sigmoid, σ(alpha·g)."""
    limit: PositiveFloat = 7.0
    """Upper bound of the gate g, and bound of u on either side."""
    bias: bool = True
    """Whether the three projections have a bias."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "gate": Linear(d_model, self.d_ff, self.bias),
            "up": Linear(d_model, self.d_ff, self.bias),
            "down": Linear(self.d_ff, d_model, self.bias, residual=True),
        }

    def shard(self, ranks: int) -> GatedClamped:
        return split(self, ranks, equal=("d_ff",))

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        gate = m.gate(x).clamp(max=self.limit)
        up = m.up(x).clamp(-self.limit, self.limit)
        h = multiply_gate(lambda gate: gate * F.sigmoid(self.alpha * gate), gate, up + 1)
        return m.down(step.drop_units(h))


def _activate_sparsely(act: Callable[[Tensor], Tensor], sparsity: float, gate: Tensor) -> Tensor:
    """Compute act(relu(g − mean − z·std)) of gates g [..., F], with the normal quantile z of the sparsity."""
    mean = gate.mean(-1, keepdim=True)
    deviation = (gate - mean).square().mean(-1, keepdim=True).sqrt()
    return act(F.relu(gate - (mean + deviation * NormalDist().inv_cdf(sparsity))))


def multiply(x: Tensor, by: float) -> Tensor:
    """Multiply by a constant; 1 returns x itself."""
    return x if by == 1.0 else x * by


def multiply_gate(act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    """Compute act(gate) ⊙ up for gate and up [..., F]. Training without torch.compile saves only gate and up, and the
    backward pass computes act(gate) again, as Liger's kernels do (Hsu et al., 2024)."""
    wanted = torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad)
    if wanted and not torch.compiler.is_compiling():
        return _gating().apply(act, gate, up)
    return act(gate) * up


@functools.cache
def _gating() -> Any:
    """Make the autograd function on first use, so that pricing a model does not import torch."""

    class Gating(torch.autograd.Function):
        """With a = act(gate) and the output's gradient g: dgate = act'(gate) ⊙ g ⊙ up, by autograd through `act`, and
        dup = g ⊙ a."""

        @staticmethod
        def forward(ctx: Any, act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
            device = gate.device.type
            ctx.act, ctx.cast = act, (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            ctx.save_for_backward(gate, up)
            return act(gate) * up

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, g: Tensor):  # type: ignore[override]
            gate, up = ctx.saved_tensors
            dgate = dup = None
            enabled, dtype = ctx.cast  # as the forward pass had it
            with torch.enable_grad(), torch.autocast(gate.device.type, dtype, enabled=enabled):
                inner = gate.detach().requires_grad_(ctx.needs_input_grad[1])
                a = ctx.act(inner)
            if ctx.needs_input_grad[1]:
                (dgate,) = torch.autograd.grad(a, inner, g * up)
            if ctx.needs_input_grad[2]:
                dup = a.detach() * g
            return None, dgate, dup

    return Gating


def _learned(activation: Activation) -> dict[str, Any]:
    return {"activation": activation} if activation.learned else {}
