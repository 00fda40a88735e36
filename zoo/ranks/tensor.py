# B rows, T tokens, R ranks, D model width, V vocabulary
"""Tensor parallelism: each rank computes with its own heads, hidden units and part of the vocabulary.

A model's part is a smaller model of the same kind (`Spec.shard`); what all ranks need of each other passes through the
seams here. In a pass with gradients the stream between sub-layers is divided by tokens (sequence parallelism). So every
weight that ranks have in common meets on each of them a part of what it is for: its gradient is the sum of theirs.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from zoo.kernels.bias import OwnHeads
from zoo.lazy import F, torch
from zoo.ranks.seam import Seam

if TYPE_CHECKING:
    from torch import Tensor


class TensorSeam(Seam):
    """The seams between the ranks of a process group."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.rank, self.size = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)

    def gather(self, x: Tensor, tokens: int) -> Tensor:
        return _gathering().apply(x, self)[:, :tokens] if torch.is_grad_enabled() else x

    def add_up(self, y: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return _scattering().apply(self._pad(y), self)
        return sum_up(y, self.group)

    def own(self, each: Tensor | None) -> Tensor | None:
        if each is None or not torch.is_grad_enabled():
            return each
        part = -(-each.shape[1] // self.size)
        return self._pad(each)[:, self.rank * part : (self.rank + 1) * part]

    def _pad(self, each: Tensor) -> Tensor:
        """Add tokens at the end, so that every rank has as many."""
        missing = -each.shape[1] % self.size
        return F.pad(each, (*(0, 0) * (each.ndim - 2), 0, missing)) if missing else each

    def look_up(self, table: Any, ids: Tensor) -> Tensor:
        count = table.weight.shape[0]
        places = ids - self.rank * count
        strange = (places < 0) | (places >= count)
        found = F.embedding(places.masked_fill(strange, 0), table.weight)
        return self.add_up(found.masked_fill(strange[..., None], 0))

    def add_up_whole(self, y: Tensor) -> Tensor:
        return _adding().apply(y, self)

    def normalise(self, norm: Any, x: Tensor) -> Tensor:
        wide = x.float()
        mean = self.add_up_whole(wide.square().mean(-1, keepdim=True)) / self.size
        y = wide * (mean + norm.spec.eps).rsqrt()
        if norm.spec.weight:
            y = y * (norm.weight.float() + (1 if norm.spec.unit_offset else 0))
        return (y + norm.bias.float() if norm.spec.bias else y).to(x.dtype)

    def bias(self, scheme: Any, weights: Any, heads: int, *places: Any, **how: Any) -> Any:
        whole = scheme.bias(weights, heads * self.size, *places, **how)
        return whole and OwnHeads(whole, self.rank * heads, heads)

    def share(self, loss: Tensor) -> Tensor:
        return loss if not loss.requires_grad else loss.detach() + (loss - loss.detach()) / self.size

    def measure(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        count = logits.shape[1]
        places = targets - self.rank * count
        strange = (places < 0) | (places >= count)
        logit = logits.gather(1, places.masked_fill(strange, 0)[:, None]).masked_fill(strange[:, None], 0)
        log_z = logits.logsumexp(1, keepdim=True)
        all_ranks = gather_up(torch.stack((log_z, logit)), self)  # R 2 N 1
        return all_ranks[:, 0].logsumexp(0), all_ranks[:, 1].sum(0)

    def join_logits(self, logits: Tensor, width: int) -> Tensor:
        return torch.cat(gather_up(logits, self).unbind(), -1)[..., :width]


# ---------------------------------------------------------------- what is sent


def sum_up(y: Tensor, group: Any) -> Tensor:
    """Sum up a tensor over the ranks of a group."""
    total = y.contiguous()
    total = total.clone() if total is y else total
    torch.distributed.all_reduce(total, group=group)
    return total


def _call(name: str, older: str) -> Any:
    """A function of torch.distributed by its name from torch 2.13 on, or the one before."""
    return getattr(torch.distributed, name, None) or getattr(torch.distributed, older)


def gather_up(x: Tensor, seam: TensorSeam) -> Tensor:
    """Stack the tensors of all ranks [R, …]."""
    whole = x.new_empty(seam.size * x.numel())
    _call("all_gather_single", "all_gather_into_tensor")(whole, x.flatten(), group=seam.group)
    return whole.view(seam.size, *x.shape)


def _gather(x: Tensor, seam: TensorSeam) -> Tensor:
    """The tokens of all ranks [B, R·T, …] of those of each [B, T, …]."""
    whole = gather_up(x, seam)
    return whole.transpose(0, 1).flatten(1, 2)


def _scatter(y: Tensor, seam: TensorSeam) -> Tensor:
    """The sum over ranks of [B, R·T, …], of which each keeps its own tokens [B, T, …]."""
    by_rank = y.unflatten(1, (seam.size, -1)).transpose(0, 1).contiguous()
    own = by_rank.new_empty(by_rank[0].numel())
    _call("reduce_scatter_single", "reduce_scatter_tensor")(own, by_rank.flatten(), group=seam.group)
    return own.view(by_rank.shape[1:])


@functools.cache
def _gathering() -> Any:
    class Gathering(torch.autograd.Function):
        """All-gather; its gradient is a reduce-scatter, as each rank has a part of the gradient of all tokens."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, seam: TensorSeam) -> Tensor:
            ctx.seam = seam
            return _gather(x, seam)

        @staticmethod
        def backward(ctx: Any, g: Tensor):  # type: ignore[override]
            return _scatter(g, ctx.seam), None

    return Gathering


@functools.cache
def _scattering() -> Any:
    class Scattering(torch.autograd.Function):
        """Reduce-scatter; its gradient is an all-gather."""

        @staticmethod
        def forward(ctx: Any, y: Tensor, seam: TensorSeam) -> Tensor:
            ctx.seam = seam
            return _scatter(y, seam)

        @staticmethod
        def backward(ctx: Any, g: Tensor):  # type: ignore[override]
            return _gather(g, ctx.seam), None

    return Scattering


@functools.cache
def _adding() -> Any:
    class Adding(torch.autograd.Function):
        """All-reduce; so is its gradient, as what each rank goes on to compute is a part."""

        @staticmethod
        def forward(ctx: Any, y: Tensor, seam: TensorSeam) -> Tensor:
            ctx.seam = seam
            return sum_up(y, seam.group)

        @staticmethod
        def backward(ctx: Any, g: Tensor):  # type: ignore[override]
            return sum_up(g, ctx.seam.group), None

    return Adding
