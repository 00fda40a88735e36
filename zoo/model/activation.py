"""Activation functions, used alone or as the gate of a gated feed-forward."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, NonNegativeFloat, PositiveFloat

from zoo.lazy import F, Tensor, torch
from zoo.spec import Buffer, Spec, Weight, hold_whole

if TYPE_CHECKING:
    from zoo.model.step import Weights


class Activation(Spec, axis="activation"):
    """An elementwise function. A kind with parameters (`learned`) is computed by `forward`, any other by `apply`."""

    learned: ClassVar[bool] = False

    shard = hold_whole  # every rank has all of its parameters

    def apply(self, x: Tensor) -> Tensor:
        """Apply the function to each element."""
        raise NotImplementedError

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        """Apply a `learned` function to each element; `m` has its parameters."""
        raise NotImplementedError


def _without_parameters(activation: Activation) -> Activation:
    if activation.learned:
        raise ValueError(f"'{activation.kind}' has parameters, and here is no place for them (a feed-forward has one)")
    return activation


PlainActivation = Annotated[Activation, AfterValidator(_without_parameters)]
"""An activation without parameters, for components that cannot store any. One with parameters raises ValueError."""


class ReLU(Activation, kind="relu"):
    """max(0, x) (Nair and Hinton, 2010)."""

    def apply(self, x: Tensor) -> Tensor:
        return F.relu(x)


class LeakyReLU(Activation, kind="leaky_relu"):
    """x above 0, slope·x below (Maas et al., 2013)."""

    slope: NonNegativeFloat = 0.01
    """Slope for x below 0."""

    def apply(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope)


class ReLU6(Activation, kind="relu6"):
    """min(max(0, x), 6) (Krizhevsky, 2010; Howard et al., 2017, MobileNet)."""

    def apply(self, x: Tensor) -> Tensor:
        return F.relu6(x)


class SquaredReLU(Activation, kind="relu2"):
    """max(0, x)² (So et al., 2021, Primer); with a slope the square of a leaky ReLU."""

    slope: NonNegativeFloat = 0.0
    """Slope for x below 0, before the square (0.5 in submissions to OpenAI's parameter golf, 2026)."""

    def apply(self, x: Tensor) -> Tensor:
        return (F.leaky_relu(x, self.slope) if self.slope else F.relu(x)).square()


class GELU(Activation, kind="gelu"):
    """x·Φ(x), exact (Hendrycks and Gimpel, 2016)."""

    def apply(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class GELUTanh(Activation, kind="gelu_tanh"):
    """GELU by its tanh approximation (Hendrycks and Gimpel, 2016), as in GPT-2 and BLOOM. Exchanging it for the exact
    GELU changes a model's logits by up to 3e-3."""

    def apply(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class GELUClipped(Activation, kind="gelu_clipped"):
    """Exact GELU clamped to ±`limit`, for quantisation (Wu et al., 2020)."""

    limit: PositiveFloat = 10.0
    """Bound of the result on either side."""

    def apply(self, x: Tensor) -> Tensor:
        return F.gelu(x).clamp(-self.limit, self.limit)


class QuickGELU(Activation, kind="quick_gelu"):
    """GELU by a sigmoid, x·σ(1.702·x) (Hendrycks and Gimpel, 2016; CLIP, Whisper)."""

    def apply(self, x: Tensor) -> Tensor:
        return x * F.sigmoid(1.702 * x)


class SiLU(Activation, kind="silu"):
    """x·σ(x) (Elfwing et al., 2017; Ramachandran et al., 2017, Swish). The gate of SwiGLU."""

    def apply(self, x: Tensor) -> Tensor:
        return F.silu(x)


class SiLUSoftcapped(Activation, kind="silu_softcapped"):
    """c·tanh(x/c)·σ(x): SiLU whose linear factor is bounded (Thinking Machines, 2026, Inkling 2)."""

    softcap: PositiveFloat = 4.0
    """Bound c of the linear factor."""

    def apply(self, x: Tensor) -> Tensor:
        return self.softcap * torch.tanh(x / self.softcap) * F.sigmoid(x)


class HardSwish(Activation, kind="hardswish"):
    """x·min(max(0, x + 3), 6)/6 (Howard et al., 2019, MobileNetV3)."""

    def apply(self, x: Tensor) -> Tensor:
        return F.hardswish(x)


class Mish(Activation, kind="mish"):
    """x·tanh(ln(1 + eˣ)) (Misra, 2019)."""

    def apply(self, x: Tensor) -> Tensor:
        return F.mish(x)


class Laplace(Activation, kind="laplace"):
    """Φ((x − µ)/σ), bounded unlike relu² (Ma et al., 2022, MEGA). With µ = √½ and σ = 1/(2√π), both to six digits, its
    value and slope at µ are those of relu²."""

    def apply(self, x: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


class SqrtSoftplus(Activation, kind="sqrtsoftplus"):
    """√ln(1 + eˣ), for the scores of experts (DeepSeek-V4, 2026)."""

    def apply(self, x: Tensor) -> Tensor:
        return torch.sqrt(F.softplus(x))


class Tanh(Activation, kind="tanh"):
    """tanh(x)."""

    def apply(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class Sigmoid(Activation, kind="sigmoid"):
    """σ(x). The gate of the first GLU (Dauphin et al., 2017)."""

    def apply(self, x: Tensor) -> Tensor:
        return F.sigmoid(x)


class Identity(Activation, kind="identity"):
    """x. As a gate it gives the bilinear GLU (Shazeer, 2020)."""

    def apply(self, x: Tensor) -> Tensor:
        return x


class XIELU(Activation, kind="xielu"):
    """aₚ·x² + beta·x for x above 0, aₙ·(e^min(x, eps) − 1 − x) + beta·x otherwise (Huang and Schlag, 2024; Apertus).

    Two parameters are learned: aₚ = softplus(alpha_p) starts at 0.8, aₙ = beta + softplus(alpha_n) at the larger of 0.8
    and beta + 0.001. `beta` and `eps` are saved with the parameters, and a checkpoint's values replace those of the
    config. Computed in float32.
    """

    learned: ClassVar[bool] = True

    beta: PositiveFloat = 0.5
    """Slope at 0, and lower bound of aₙ."""
    eps: float = -1e-6
    """Upper bound of the exponent below 0."""

    def parts(self, d_model: int) -> dict[str, Any]:
        start = 0.8
        rest = max(start - self.beta, 1e-3)
        return {
            "alpha_p": Weight((1,), init=math.log(math.expm1(start))),
            "alpha_n": Weight((1,), init=math.log(math.expm1(rest))),
            "beta": Buffer((), init=self.beta),
            "eps": Buffer((), init=self.eps),
        }

    def forward(self, m: Weights, x: Tensor) -> Tensor:
        wide, beta = x.float(), m.beta.float()
        above = F.softplus(m.alpha_p.float()) * wide.square()
        below = (beta + F.softplus(m.alpha_n.float())) * (torch.expm1(torch.minimum(wide, m.eps.float())) - wide)
        return (torch.where(wide > 0, above, below) + beta * wide).to(x.dtype)
