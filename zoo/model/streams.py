# B batch, T tokens, S streams, D model width
"""A residual stream of several vectors per token: its start from the embedding's output, and its end as one vector."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le
from pydantic import PositiveFloat, PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.connection import fill_base, gate_streams, list_gates, project_streams, read_streams, squash
from zoo.model.norm import WholeNorm, give_weights
from zoo.spec import Group, Linear, Spec, Weight

if TYPE_CHECKING:
    from zoo.model.step import Weights


class Streams(Spec, axis="streams", default="altup"):
    """Widen the residual stream to several vectors per token, from embedding to final norm. Pipelines refuse it."""

    count: Annotated[int, Ge(2), Le(1024)]
    """Number of residual streams, S."""

    def expand(self, m: Weights, x: Tensor) -> Tensor:
        """Make the streams [B, T, S, D] from the embedding's output x [B, T, D]; by default copies of it."""
        return torch.stack((x,) * self.count, 2)

    def collapse(self, m: Weights, x: Tensor) -> Tensor:
        """Merge the last layer's streams x [B, T, S, D] into one vector per token [B, T, D]."""
        raise NotImplementedError


class AltUpStreams(Streams, kind="altup"):
    """The first stream is the embedding's output; the others are projections of it, scaled to its root mean square. In
    the end the other streams are projected and scaled in the same way, and all are averaged (Baykal et al., 2023,
    AltUp; Gemma 3n, 2025)."""

    def parts(self, d_model: int) -> dict[str, Any]:
        numbers = [str(number) for number in range(1, self.count)]
        return {
            name: Group({number: Linear(d_model, d_model) for number in numbers}) for name in ("expand", "collapse")
        }

    def expand(self, m: Any, x: Tensor) -> Tensor:
        size = _root_mean_square(x)
        others = [_resize(m.expand[str(number)](x), size) for number in range(1, self.count)]
        return torch.stack((x, *others), 2)  # B T S D

    def collapse(self, m: Any, x: Tensor) -> Tensor:
        first, *rest = x.unbind(2)
        size = _root_mean_square(first)
        others = [_resize(m.collapse[str(number)](each), size) for number, each in enumerate(rest, 1)]
        return torch.stack((first, *others), 2).mean(2)


class MeanStreams(Streams, kind="mean"):
    """Equal streams at first, and their mean in the end (Zhu et al., 2024; GLM-5.3, 2026)."""

    def collapse(self, m: Weights, x: Tensor) -> Tensor:
        return x.mean(2)


class WeightedStreams(Streams, kind="weighted"):
    """Streams that are equal at first, and summed with weights in the end: Σₛ (σ(a·(x·W)_s + b_s) + eps)·x_s. In x·W, x
    is the concatenation of the token's streams, divided by its root mean square (DeepSeek-V4, 2026)."""

    eps: PositiveFloat = 1e-6
    """Epsilon, added to the factors, which must not be 0."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of the streams' normalisation, added to their mean square under the root."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "project": Linear(self.count * d_model, self.count, precise=True),
            "base": Weight((self.count,), init=partial(fill_base, n_streams=self.count)),
            "scale": Weight((1,), init=0.01),
        }

    def collapse(self, m: Weights, x: Tensor) -> Tensor:
        logits = project_streams(m.project, x, self.norm_eps) * m.scale.float() + m.base.float()
        return read_streams(x, squash(logits) + self.eps)


class GatedStreams(Streams, kind="gated"):
    """Streams that are equal at first. In the end the normalised streams n are summed with a gate for each channel, Σₛ
    σ(silu(n·W_down / S)·W_up)_s ⊙ n_s / S (Qwen Team, 2026, Qwen4-Exp)."""

    rank: PositiveInt
    """Rank of the gates' product: channels between W_down and W_up."""
    norm: WholeNorm
    """Norm of the streams, with a weight for each. A further, final norm is the model's `final_norm`."""

    def __post_init__(self) -> None:
        give_weights(self.norm, self.count)

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"norm": give_weights(self.norm, self.count), **list_gates(self.count * d_model, self.rank)}

    def collapse(self, m: Weights, x: Tensor) -> Tensor:
        normed = m.norm(x)
        return read_streams(normed, gate_streams(m, normed))


def _root_mean_square(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True).sqrt()


def _resize(x: Tensor, size: Tensor) -> Tensor:
    """Scale vectors [B, T, D] to root mean squares [B, T, 1]."""
    return x * size / x.square().mean(-1, keepdim=True).clamp(min=1e-5).sqrt()
