# D model width
"""Normalise vectors. Computed in float32, returned in the input's dtype."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, PositiveFloat, PositiveInt

from zoo.lazy import F, Tensor, torch
from zoo.spec import Linear, Spec, Weight, hold_whole

if TYPE_CHECKING:
    from zoo.model.step import Weights


class Norm(Spec, axis="norm"):
    """Scale each vector to a common size."""

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        """Normalise x […, D] over its last dimension."""
        raise NotImplementedError

    shard = hold_whole  # every rank normalises whole vectors


class ScaledNorm(Norm):
    """Base of the norms with a learned scale and shift."""

    eps: float
    """Epsilon, added under the root."""
    weight: bool = True
    """Whether each channel is multiplied by a learned weight."""
    bias: bool = False
    """Whether a learned number is added to each channel last."""
    unit_offset: bool = False
    """Whether the scale is 1 + weight, so that the weight starts at 0 (Gemma, 2024)."""
    heads: PositiveInt | None = None
    """Number of vectors [heads, D] that have a weight each, as Cohere's queries and keys do. The component that owns
    the norm sets this number; a config leaves it out."""

    def __post_init__(self) -> None:
        if self.eps <= 0:
            raise ValueError(f"eps must be above 0, found {self.eps}")
        if self.unit_offset and not self.weight:
            raise ValueError("unit_offset adds 1 to a weight, and weight is false (set one or the other)")

    def parts(self, d_model: int) -> dict[str, Any]:
        shape = (self.heads, d_model) if self.heads else (d_model,)
        weight = {"weight": Weight(shape, init=0.0 if self.unit_offset else 1.0)} if self.weight else {}
        return weight | ({"bias": Weight(shape)} if self.bias else {})

    def _list_factors(self, m: Weights) -> tuple[Tensor | None, Tensor | None]:
        """Return scale and shift in float32; None for none."""
        scale = None if not self.weight else m.weight.float() + 1 if self.unit_offset else m.weight.float()
        return scale, m.bias.float() if self.bias else None

    def _is_native(self, m: Weights, x: Tensor) -> bool:
        """Whether torch's fused kernel can take x without a cast to float32.

        CUDA's kernels compute in float32 whatever the dtype, so they save no float32 copy of x for the backward pass.
        The CPU's layer_norm would save its statistics in bfloat16.
        """
        if not _fuses(x.device) or self.heads or self.unit_offset:
            return False
        return all(getattr(m, name).dtype == x.dtype for name in ("weight", "bias") if getattr(self, name))


class RMSNorm(ScaledNorm, kind="rmsnorm"):
    """x / √(mean(x²) + eps) · weight (Zhang and Sennrich, 2019)."""

    eps: float = 1e-6
    """Epsilon, added to the mean square under the root."""
    weight_first: bool = False
    """Whether x is multiplied by the weight before it is normalised, rather than after (Meta, 2026, Muse Spark)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_first and (not self.weight or self.heads):
            found = f"heads={self.heads}" if self.heads else "weight is false"
            raise ValueError(f"weight_first places the one weight of a vector, found {found} (leave one out)")

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        if not self.bias and not self.weight_first and self._is_native(m, x):
            return F.rms_norm(x, x.shape[-1:], m.weight if self.weight else None, self.eps)
        scale, shift = self._list_factors(m)
        whole = x.float()
        if self.weight_first:
            whole, scale = whole * scale, None  # type: ignore[operator]
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            y = self._serve(whole, scale)
        else:
            y = divide_by_rms(whole, None if self.heads else scale, self.eps)
            y = y * scale if self.heads and scale is not None else y
        return (y if shift is None else y + shift).to(x.dtype)

    def _serve(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """Normalise without gradients, as x · weight·√D / √(‖x‖² + D·eps): four operations, where rms_norm on a CPU
        runs six. In a decoding step, where code is out of cache, it takes 44 µs, rms_norm 82 µs (D 768, one row)."""
        width = x.shape[-1]
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        size = torch.hypot(size, torch.full((), math.sqrt(width * self.eps)))
        return x * (math.sqrt(width) if scale is None else scale * math.sqrt(width)) / size


def divide_by_rms(x: Tensor, scale: Tensor | None, eps: float) -> Tensor:
    """Compute x / √(mean(x²) + eps) · scale over the last dimension of x [..., D], with scale [D].

    torch has no fused kernel for it on a CPU: autograd would go back through each operation of the formula. Training on
    a CPU uses the closed-form derivative instead: six passes over memory in place of about fourteen, and the normalised
    x is not saved.
    """
    if torch.is_grad_enabled() and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _division_by_rms().apply(x, scale, eps)
    return F.rms_norm(x, x.shape[-1:], scale, eps)


@functools.cache
def _division_by_rms() -> Any:
    """Return the autograd function of x / rms(x), defined at first use: pricing a model does not import torch."""

    class DivisionByRMS(torch.autograd.Function):
        """With r = 1/√(mean(x²) + eps) and the output's gradient g: dx = r·g·scale − x · r³/D · Σ g·scale·x, and dscale
        = Σ over rows of g·x·r."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, scale: Tensor | None, eps: float) -> Tensor:
            r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
            ctx.save_for_backward(x, r, scale)
            y = x * r
            return y if scale is None else y.mul_(scale)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, g: Tensor):  # type: ignore[override]
            x, r, scale = ctx.saved_tensors
            width = x.shape[-1]
            product = (g * x).reshape(-1, width)
            dx = dscale = None
            if ctx.needs_input_grad[0]:
                along = product.sum(-1) if scale is None else torch.mv(product, scale)
                dx = (g * r) if scale is None else (g * scale).mul_(r)
                dx.addcmul_(x, along.view(r.shape) * r**3, value=-1 / width)
            if ctx.needs_input_grad[1]:
                dscale = torch.mv(product.t(), r.reshape(-1))
            return dx, dscale, None

    return DivisionByRMS


class LayerNorm(ScaledNorm, kind="layernorm"):
    """(x − mean) / √(var + eps) · weight + bias (Ba, Kiros and Hinton, 2016)."""

    eps: float = 1e-5
    """Epsilon, added to the variance under the root."""
    bias: bool = True
    """Whether a learned number is added to each channel last."""

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        if self._is_native(m, x):
            weight, bias = m.weight if self.weight else None, m.bias if self.bias else None
            return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)
        scale, shift = self._list_factors(m)
        if self.heads is None:
            return F.layer_norm(x.float(), x.shape[-1:], scale, shift, self.eps).to(x.dtype)
        y = F.layer_norm(x.float(), x.shape[-1:], None, None, self.eps)
        y = y if scale is None else y * scale
        return (y if shift is None else y + shift).to(x.dtype)


class L2Clip(Norm, kind="l2_clip"):
    """x · min(1, threshold / (‖x‖ + 1e-6)) in place of a norm: long vectors are shortened, others stay unchanged
    (Thinking Machines, 2026, Inkling 2)."""

    threshold: PositiveFloat = math.sqrt(512)
    """Length to which longer vectors are shortened."""
    weight: bool = True
    """Whether x is multiplied by a learned weight for each channel before it is clipped."""
    heads: PositiveInt | None = None
    """Number of vectors [heads, D] that have a weight each. The component that owns the norm sets this number; a config
    leaves it out."""

    def parts(self, d_model: int) -> dict[str, Any]:
        shape = (self.heads, d_model) if self.heads else (d_model,)
        return {"weight": Weight(shape, init=1.0)} if self.weight else {}

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        y = x.float() * m.weight.float() if self.weight else x.float()
        size = torch.linalg.vector_norm(y, dim=-1, keepdim=True) + 1e-6
        return (y * (self.threshold / size).clamp(max=1.0)).to(x.dtype)


class DyT(Norm, kind="dyt"):
    """tanh(alpha · x) · weight + bias in place of a norm, with one trained alpha (Zhu et al., 2025, dynamic tanh)."""

    alpha: PositiveFloat = 0.5
    """Initial value of the trained alpha. The paper takes a larger one in attention, and a smaller one in wide
    models."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "alpha": Weight((1,), init=self.alpha),
            "weight": Weight((d_model,), init=1.0),
            "bias": Weight((d_model,)),
        }

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        y = torch.tanh(m.alpha.float() * x.float())
        return (y * m.weight.float() + m.bias.float()).to(x.dtype)


class Affine(Norm, kind="affine"):
    """(x + bias) · weight in place of a norm, with a learned weight and bias for each channel (Zyphra, 2026, ZAYA1)."""

    shift_last: bool = False
    """Whether the bias comes after the weight, x · weight + bias (Sun et al., 2020, MobileBERT's NoNorm; Touvron et
    al., 2021, ResMLP)."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"weight": Weight((d_model,), init=1.0), "bias": Weight((d_model,))}

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        whole, weight, bias = x.float(), m.weight.float(), m.bias.float()
        return (whole * weight + bias if self.shift_last else (whole + bias) * weight).to(x.dtype)


def _of_one_vector(norm: Any) -> Any:
    if getattr(norm, "heads", None) is not None:
        found = f"heads={norm.heads} is for queries and keys alone"
        raise ValueError(f"{found} (leave it out; attention.qk_norm.over: heads gives each head a weight of its own)")
    return norm


WholeNorm = Annotated[Norm, AfterValidator(_of_one_vector)]
"""A norm of one whole vector. Raises ValueError if `heads` is given, which only the component that owns a norm sets."""


class GatedNorm(Norm, kind="gated"):
    """y · σ(silu(y·W_a)·W_b) with y = norm(x): a gate for each channel, computed from y by two matrices of low rank
    (Qiu et al., 2026, GatedNorm; SK Telecom, 2026, A.X K2)."""

    norm: WholeNorm
    """Norm whose output y is gated."""
    rank: PositiveInt = 16
    """Rank of the gate's product W_a·W_b."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"norm": self.norm, "gate_a": Linear(d_model, self.rank), "gate_b": Linear(self.rank, d_model)}

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        y = m.norm(x)
        return (y * m.gate_b(F.silu(m.gate_a(y))).float().sigmoid()).to(y.dtype)


def give_weights(norm: Norm, count: int) -> Norm:
    """Return the norm for vectors [count, D], with a weight for each. Raises ValueError for kinds other than RMSNorm,
    LayerNorm and L2Clip."""
    if not isinstance(norm, ScaledNorm | L2Clip):
        raise ValueError(
            f"norm '{norm.kind}' has no weight for each of several vectors (rmsnorm, layernorm or l2_clip)"
        )
    return replace(norm, heads=count)


def _fuses(device: torch.device) -> bool:
    return device.type == "cuda"
