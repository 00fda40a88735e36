# B batch, T tokens, D model width
"""Mix tokens by a Fourier transform in place of attention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.attention.base import Attention
from zoo.model.attention.recurrent import check_width
from zoo.model.position.constants import keep_constant

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class Fourier(Attention, kind="fourier"):
    """Fourier mixing (Lee-Thorp et al., 2021, FNet): the real part of the discrete Fourier transform of x along tokens
    and channels, Re(F_T·x·F_D). It has no weights.

    Computed in float32 as C_T·(x·C_D) − S_T·(x·S_D), with the transforms' cosines C and sines S. A padded row, or a
    document in a packed row, is transformed only over its own tokens (transformers mixes padding in).
    """

    causal: ClassVar[bool | None] = False

    d_model: PositiveInt
    """Width of the residual stream, stated because the FLOPs depend on it."""

    def parts(self, d_model: int) -> dict[str, Any]:
        check_width(self.d_model, d_model)
        return {}

    def core_flops(self, pairs: int) -> int:
        return 4 * self.d_model * pairs  # along the tokens, by cosines and by sines

    def state_flops(self) -> int:
        return 4 * self.d_model**2  # along the channels

    def constant_flops(self, d_model: int, new: int, pairs: int) -> int:
        return self.core_flops(pairs) + self.state_flops() * new  # all of them: cosines and sines have no gradient

    def prepare(self, m: Weights | None, step: Step) -> None:
        assert step.positions is not None
        device, places = step.positions.device, step.positions  # B|1 T
        seen = step.mask.dense(device)[:, 0]  # B|1 T T
        lengths = seen.sum(-1)[..., None]  # of each token's document or row
        steps = (places[:, :, None] * places[:, None]) % lengths.clamp(min=1)
        angles = steps.float() * (2 * math.pi) / lengths.clamp(min=1)
        channels = keep_constant(("fourier", self.d_model), device, lambda: _transform(self.d_model, device))
        step.extra["fourier"] = angles.cos() * seen, angles.sin() * seen, *channels  # B|1 T T, D D

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        cos, sin, by_cos, by_sin = step.extra["fourier"]
        wide = x.float()
        return (cos @ (wide @ by_cos) - sin @ (wide @ by_sin)).to(x.dtype)


def _transform(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Make cosines and sines [D, D] of the Fourier transform of `width` numbers."""
    places = torch.arange(width, device=device)
    steps = (places[:, None] * places) % width
    angles = steps.float() * (2 * math.pi / width)
    return angles.cos(), angles.sin()
