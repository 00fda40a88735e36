# B batch, T tokens, S streams, D model width
"""Hyper-connections (Zhu et al., 2024): read one vector from several residual streams, and write to all of them."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from annotated_types import Ge, Le
from pydantic import PositiveFloat, PositiveInt

from zoo.lazy import F, Tensor, torch
from zoo.spec import Linear, Spec, Weight, hold_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from zoo.model.step import Weights


class StreamFactors(NamedTuple):
    """Factors of one sub-layer for each token: `read` of the streams [B, T, S] or of their channels [B, T, S, D];
    `write` of its output for each stream [B, T, S]; `mix` of old streams in new ones [B, T, S (old), S (new)] (None:
    streams are not mixed). All are in float32, except `read` of channels."""

    read: Tensor
    write: Tensor
    mix: Tensor | None = None


class Connection(Spec, axis="connection", default="sinkhorn"):
    """Weigh the streams x [B, T, S, D] for one sub-layer f: x_s ← Σᵢ M_is·xᵢ + w_s·f(Σᵢ rᵢ·xᵢ). The factors r, w and M
    are initialised so that the streams behave as one pre-norm stream."""

    reads_normed: ClassVar[bool] = False
    """Whether streams are normalised, each by a weight of its own, before the factors are computed and before r reads
    the streams."""

    n_streams: Annotated[int, Ge(2), Le(1024)] = 4
    """Number of residual streams, S."""

    shard = hold_whole  # factors read whole streams, and every rank has all streams of its own tokens

    def weigh(self, m: Weights, x: Tensor) -> StreamFactors:
        """Make the factors of each token of the streams x [B, T, S, D]."""
        raise NotImplementedError


class Projected(Connection):
    """Base of the kinds whose factors are functions of a·(x·W) + b. Here x is the concatenation of a token's streams,
    divided by its root mean square."""

    eps: PositiveFloat = 1e-6
    """Epsilon, added to factors that must not be 0."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of the streams' normalisation, added to their mean square under the root."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of factors per token: to read the streams, to write to them and, if the kind mixes streams, to mix
        them."""
        raise NotImplementedError

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "project": Linear(self.n_streams * d_model, sum(self.widths), precise=True),
            "base": Weight((sum(self.widths),), init=partial(fill_base, n_streams=self.n_streams)),
            "scale": Weight((len(self.widths),), init=0.01),
        }

    def _logits(self, m: Weights, x: Tensor) -> list[Tensor]:
        projected = project_streams(m.project, x, self.norm_eps).split(self.widths, -1)
        bases, scales = m.base.float().split(self.widths), m.scale.float()
        return [each * scales[place] + bases[place] for place, each in enumerate(projected)]


class Sinkhorn(Projected, kind="sinkhorn"):
    """Manifold-constrained hyper-connections (Xie et al., 2026, mHC; DeepSeek-V4): M is doubly stochastic, a softmax
    whose rows and columns Sinkhorn and Knopp's algorithm normalises, so that streams keep their size. r = σ(·), w =
    2·σ(·)."""

    iterations: PositiveInt = 20
    """Number of times that rows and then columns are normalised; the softmax is the first normalisation of rows."""

    @property
    def widths(self) -> tuple[int, ...]:
        return self.n_streams, self.n_streams, self.n_streams**2

    def weigh(self, m: Weights, x: Tensor) -> StreamFactors:
        read, write, mix = self._logits(m, x)
        mix = mix.unflatten(-1, (self.n_streams, self.n_streams)).softmax(-1) + self.eps  # B T S S
        mix = mix / (mix.sum(-2, keepdim=True) + self.eps)
        for _ in range(self.iterations - 1):
            mix = mix / (mix.sum(-1, keepdim=True) + self.eps)
            mix = mix / (mix.sum(-2, keepdim=True) + self.eps)
        return StreamFactors(squash(read) + self.eps, 2.0 * squash(write), mix)


class Independent(Projected, kind="independent"):
    """Hyper-connections whose streams are not mixed, M = 1 (Tencent, 2026, Hy4): r = σ(·), w = magnitude·σ(·)."""

    magnitude: PositiveFloat = 2.0
    """Factor of w, the weights by which a sub-layer's output is written to the streams."""

    @property
    def widths(self) -> tuple[int, ...]:
        return self.n_streams, self.n_streams

    def weigh(self, m: Weights, x: Tensor) -> StreamFactors:
        read, write = self._logits(m, x)
        return StreamFactors(squash(read) + self.eps, self.magnitude * squash(write) + self.eps)


class GatedConnection(Connection, kind="gated"):
    """Hyper-connections that read the streams by a gate for each channel, and do not mix them (Qwen Team, 2026,
    Qwen4-Exp): r = σ(silu(n·W_down / S)·W_up) / S [S, D], w = 2·σ(n·W_write / S), M = 1, where n is the concatenation
    of the S normalised streams."""

    reads_normed: ClassVar[bool] = True

    rank: PositiveInt
    """Rank of the gates' product: channels between W_down and W_up."""

    def parts(self, d_model: int) -> dict[str, Any]:
        whole = self.n_streams * d_model
        return {**list_gates(whole, self.rank), "write": Linear(whole, self.n_streams, precise=True)}

    def weigh(self, m: Weights, x: Tensor) -> StreamFactors:
        write = m.write(x.flatten(2)).float() / self.n_streams
        return StreamFactors(gate_streams(m, x), 2.0 * squash(write))


def list_gates(whole: int, rank: int) -> dict[str, Any]:
    """List the weights of `gate_streams`, for streams of `whole` channels in all."""
    return {"down": Linear(whole, rank), "up": Linear(rank, whole)}


def gate_streams(m: Weights, x: Tensor) -> Tensor:
    """Make a factor for each channel of normalised streams x [B, T, S, D], in x's shape."""
    gates = m.up(F.silu(m.down(x.flatten(2)) / x.shape[2]))
    return gates.sigmoid().unflatten(-1, x.shape[2:]) / x.shape[2]


def project_streams(project: Callable[[Tensor], Tensor], x: Tensor, eps: float) -> Tensor:
    """Multiply a token's streams x [B, T, S, D], concatenated and divided by their root mean square, by a weight: [B,
    T, …] in float32. Dividing after the product avoids a second copy of the streams."""
    x = x.flatten(2)
    return project(x).float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)


def squash(logits: Tensor) -> Tensor:
    """Compute σ of each logit as a softmax over the logit and 0. torch.sigmoid rounds the last elements of a tensor
    differently from the rest, so a token's factors would depend on the number of tokens."""
    return F.pad(logits[..., None], (0, 1)).softmax(-1)[..., 0]


def read_streams(x: Tensor, factors: Tensor) -> Tensor:
    """Sum streams x [B, T, S, D], weighted by factors [B, T, S] or [B, T, S, D]: Σₛ factors_s·x_s [B, T, D]."""
    factors = factors if factors.ndim == x.ndim else factors[..., None]
    return (factors * x).sum(2).to(x.dtype)


def write_streams(x: Tensor, y: Tensor, factors: StreamFactors) -> Tensor:
    """Mix the streams x [B, T, S, D], if there is a mix, and add a sub-layer's output y [B, T, D] to each."""
    write = factors.write.to(x.dtype)[..., None]  # B T S 1
    if factors.mix is None:
        return torch.addcmul(x, write, y[:, :, None])
    out, mix = write * y[:, :, None], factors.mix.to(x.dtype)
    for stream in range(x.shape[2]):
        out = torch.addcmul(out, mix[:, :, stream, :, None], x[:, :, stream, None])
    return out


def fill_base(base: Tensor, n_streams: int) -> None:
    """Fill a connection's bases b: the bases of r so that σ(b) = 1/S (the mean of the streams), all others with 0."""
    base.zero_()[:n_streams] = -math.log(n_streams - 1)
