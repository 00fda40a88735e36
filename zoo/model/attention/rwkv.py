# B batch, T tokens, D model width, C channels
"""RWKV's time mix: an average of values whose weights decay with time."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.attention.base import Attention
from zoo.model.attention.recurrent import (
    NOTHING,
    check_causal,
    check_width,
    exactly,
    find_running_maximum,
    scan_channels,
    shift_tokens,
    starts,
)
from zoo.spec import Linear, Weight, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


ALMOST_ONE = 1e-30
"""Stored in a state in place of the logarithm 0 (a weight of 1), because a state of zeros means an empty row."""


class RWKV(Attention, kind="rwkv"):
    """Time mix of RWKV-4 (Peng et al., 2023), an attention-free mixer.

    r, k and v are projections of x mixed with the token before it, x·µ + x'·(1 − µ). In each channel, token t reads a
    weighted mean of the values so far, in which its own value has a bonus u: y_t = Σ_i e^(b_ti)·v_i / Σ_i e^(b_ti),
    b_tt = u + k_t, b_ti = k_i − (t − 1 − i)·exp(decay) for i < t, and out = (σ(r) ⊙ y)·W_out.

    The state is the mean without the bonus, the logarithm of the sum of its weights, and the last token. The mean is
    computed in float32.
    """

    causal: ClassVar[bool | None] = True

    d_model: PositiveInt
    """Width of the residual stream, stated because the state's size follows from it."""
    d_inner: PositiveInt
    """Channels of r, k and v."""
    chunk_size: PositiveInt = 32
    """Chunk length of the recurrence, in tokens; affects only speed."""

    def parts(self, d_model: int) -> dict[str, Any]:
        check_width(self.d_model, d_model)
        inner = self.d_inner
        return {
            **{f"mix_{name}": Weight((d_model,), init=spread_mix) for name in "kvr"},
            **{name: Linear(d_model, inner) for name in "kvr"},
            "decay": Weight((inner,), init=_spread_decays),
            "bonus": Weight((inner,), init=_zigzag_bonus),
            "out": Linear(inner, d_model, residual=True),
        }

    def shard(self, ranks: int) -> RWKV:
        return split(self, ranks, equal=("d_inner",))  # the token shift is over whole tokens on every rank

    def state(self) -> dict[str, tuple[int, ...]]:
        return {"shift": (self.d_model,), "mean": (self.d_inner,), "weight": (self.d_inner,)}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step)
        before = shift_tokens(x, step, "shift")
        k, v, r = (getattr(m, name)(mix(x, before, getattr(m, f"mix_{name}"))) for name in "kvr")  # B T C
        with exactly(x):
            y = r.float().sigmoid() * step.along_rows(partial(self._average, m), k.float(), v.float())
        return m.out(y.to(x.dtype))  # B T D

    def _average(self, m: Weights, step: Step, k: Tensor, v: Tensor) -> Tensor:
        """Compute the weighted means of values v so far, by keys k [B, T, C]: [B, T, C]."""
        mean, weight = step.state("mean"), step.state("weight")
        mean = torch.zeros_like(v[:, 0]) if mean is None else mean
        weight = torch.full_like(k[:, 0], NOTHING) if weight is None else torch.where(weight == 0, NOTHING, weight)
        fresh = None if step.documents is None else starts(step.documents)[..., None]  # B T 1
        log = -m.decay.float().exp().expand(k.shape)
        if step.real is not None:  # padding has no weight, and no time passes
            real = step.real[..., None]
            k, log = torch.where(real, k, 2 * NOTHING), log * real
        given = (k, v, log, m.bonus.float(), mean, weight, fresh)
        eager = step.kernel == "eager" or k.shape[1] == 1
        y, mean, weight = _average_tokens(*given) if eager else _average_rows(*given, self.chunk_size)
        step.hold(mean=mean, weight=torch.where(weight == 0, ALMOST_ONE, weight))
        return y


def _average_tokens(
    k: Tensor, v: Tensor, log: Tensor, u: Tensor, mean: Tensor, weight: Tensor, fresh: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the weighted means token by token: k, v, log [B, T, C], u [C], mean, weight [B, C], fresh [B, T, 1].
    Returns y [B, T, C] and the last mean and weight.

    A new value moves the mean towards itself by the value's share of the sum of weights. This share is the sigmoid of a
    difference of logarithms.
    """
    begins = [None] * k.shape[1] if fresh is None else fresh.unbind(1)
    reads = []
    for key, value, left, begin in zip(*(each.unbind(1) for each in (k, v, log)), begins, strict=True):
        if begin is not None:
            weight = torch.where(begin, NOTHING, weight)
        reads.append(mean + (key + u - weight).sigmoid() * (value - mean))
        weight = weight + left
        mean = mean + (key - weight).sigmoid() * (value - mean)
        weight = torch.logaddexp(weight, key)
    return torch.stack(reads, 1), mean, weight


def _average_rows(
    k: Tensor, v: Tensor, log: Tensor, u: Tensor, mean: Tensor, weight: Tensor, fresh: Tensor | None, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the means of `_average_tokens` by linear recurrences of two sums, Σ e^(…−p)·v and Σ e^(…−p), where p is
    the largest exponent so far."""
    left = log if fresh is None else torch.where(fresh, NOTHING, log)
    peak = find_running_maximum(k, left, weight)  # B T C
    before = torch.cat((weight[:, None], peak[:, :-1]), 1)
    if fresh is not None:
        before = torch.where(fresh, NOTHING, before)
    new = (k - peak).exp()
    first = torch.stack((mean, torch.ones_like(mean)), -1)  # B C 2: of the sums
    sums = scan_channels((log + (before - peak)).exp()[..., None], torch.stack((new * v, new), -1), first, length)
    earlier = torch.cat((first[:, None], sums[:, :-1]), 1)  # B T C 2
    own = k + u
    peak_read = torch.maximum(before, own.detach())
    old, new = (before - peak_read).exp(), (own - peak_read).exp()
    y = (old * earlier[..., 0] + new * v) / (old * earlier[..., 1] + new)
    total = sums[:, -1]
    return y, total[..., 0] / total[..., 1], peak[:, -1] + total[..., 1].log()


def mix(x: Tensor, before: Tensor, share: Tensor) -> Tensor:
    """Mix each token with the one before it: x·share + before·(1 − share) [B, T, D]."""
    return before + (x - before) * share.to(x.dtype)


def spread_mix(tensor: Tensor) -> None:
    """Fill [D] with shares from 0 to 1, the first layer's initial values in published models."""
    tensor.copy_(torch.arange(tensor.shape[-1], device=tensor.device) / tensor.shape[-1])


def _spread_decays(tensor: Tensor) -> None:
    """Fill [C] with −5 + 8·(c/(C − 1))^0.7 for channel c, from 0 on: weights fall to 1/e in about 150 tokens in the
    first channel, in less than one token in the last."""
    places = torch.arange(tensor.shape[0], device=tensor.device) / max(tensor.shape[0] - 1, 1)
    tensor.copy_(-5 + 8 * places**0.7)


def _zigzag_bonus(tensor: Tensor) -> None:
    """Fill [C] with ln 0.3 plus the repeating sequence (0, 0.5, −0.5), so that neighbours differ."""
    turn = (torch.arange(tensor.shape[0], device=tensor.device) + 1) % 3 - 1
    tensor.copy_(math.log(0.3) + 0.5 * turn)
