# B rows, T tokens, R ranks
"""Collectives between the ranks of a process group in forward passes, some of them with a gradient."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Passing(NamedTuple):
    """Tensors in flight between the ranks of a ring."""

    received: list[Tensor]
    sent: list[Tensor]  # kept alive until they are sent
    work: list[torch.distributed.Work]

    def wait(self) -> list[Tensor]:
        """Wait for all sends and receives; return the tensors of the previous rank."""
        for each in self.work:
            each.wait()
        return self.received


class RankGroup:
    """A torch process group, and this process' rank in it."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self.rank, self.size = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        self._gathering = _make_function("_gather", "_scatter")
        self._scattering = _make_function("_scatter", "_gather")
        self._summing = _make_function("sum_up", "sum_up")
        self._exchanging = _make_exchange()
        self.overlaps = False  # whether compiled layers overlap gathers and scatters with their products

    def overlap_products(self) -> None:
        """From now on, overlap gathers and scatters of tokens with the matrix products of compiled layers (async TP;
        Wang et al., 2022): a pass of Inductor fuses them, over symmetric memory. Needs CUDA and NVLink."""
        from torch._inductor import config
        from torch.distributed import _symmetric_memory

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 calls it needless, and its pass needs it
            _symmetric_memory.enable_symm_mem_for_group(self.group.group_name)
        config._micro_pipeline_tp = True
        self.overlaps = True

    def sum_up(self, y: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks (all-reduce), without a gradient. The tensor itself is not
        changed."""
        total = y.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=self.group)
        return total

    def stack(self, x: Tensor) -> Tensor:
        """All-gather the ranks' tensors to [R, …], without a gradient."""
        return self._gather_into(x.new_empty(self.size, *x.shape), x)

    def refuse_capture(self) -> str | None:
        """Return why a CUDA graph cannot contain the group's collectives; None if it can. NCCL launches kernels on the
        stream that is captured; gloo waits for the device and computes on the host."""
        backends = dict(each.split(":") for each in torch.distributed.get_backend_config(self.group).split(","))
        found = backends.get("cuda")
        return None if found == "nccl" else f"a graph contains collectives of NCCL, found {found}"

    def take_least(self, number: int) -> int:
        """Return the smallest of the ranks' numbers, which are exchanged on the host."""
        least = torch.tensor(number)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN, group=self.group)
        return int(least)

    def gather_tokens(self, x: Tensor) -> Tensor:
        """All-gather each rank's tokens [B, T, …] to [B, R·T, …], in autocast's dtype. The gradient is a
        reduce-scatter, because each rank has a part of every token's gradient."""
        return self._gathering.apply(cast_for_products(x), self)

    def scatter_tokens(self, y: Tensor) -> Tensor:
        """Reduce-scatter [B, R·T, …] to the rank's own tokens [B, T, …], sent in autocast's dtype and returned in y's.
        The gradient is an all-gather."""
        return self._scattering.apply(cast_for_products(y), self).to(y.dtype)

    def sum_whole(self, y: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks (all-reduce). The gradient is all-reduced too, because each rank
        computes only a part of it."""
        return self._summing.apply(y, self)

    def exchange(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """All-to-all: send `sent[r]` of the rows [M, …] to rank r, and receive `received[r]` from it, in order of the
        ranks and in autocast's dtype. The backward pass sends gradients the opposite way."""
        return self._exchanging.apply(cast_for_products(rows), self, sent, received)

    def send_rows(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        found = rows.new_empty(sum(received), *rows.shape[1:])
        torch.distributed.all_to_all_single(found, rows.contiguous(), received, sent, group=self.group)
        return found

    def pass_on(self, tensors: Sequence[Tensor]) -> Passing:
        """Start to send tensors to the next rank of the ring and to receive the previous rank's, of the same shapes,
        without a gradient. The tensors must not change before `Passing.wait`."""
        next_, before = (
            torch.distributed.get_global_rank(self.group, (self.rank + step) % self.size) for step in (1, -1)
        )
        sent = [each.contiguous() for each in tensors]
        received = [torch.empty_like(each) for each in sent]
        operation, send, receive = torch.distributed.P2POp, torch.distributed.isend, torch.distributed.irecv
        operations = [operation(send, each, next_, self.group) for each in sent]
        operations += [operation(receive, each, before, self.group) for each in received]
        return Passing(received, sent, torch.distributed.batch_isend_irecv(operations))

    def _gather_into(self, whole: Tensor, x: Tensor) -> Tensor:
        _call("all_gather_single", "all_gather_into_tensor")(whole.view(-1), x.flatten(), group=self.group)
        return whole

    def _gather(self, x: Tensor) -> Tensor:
        if self.overlaps and torch.compiler.is_compiling():
            return torch.cat(_functional("all_gather")(x, 0, self.group).chunk(self.size), 1)  # the form that is fused
        if len(x) == 1:  # lies in order at once, and is no view, which FSDP's hooks do not take
            return self._gather_into(x.new_empty(1, self.size * x.shape[1], *x.shape[2:]), x)
        return self.stack(x).transpose(0, 1).flatten(1, 2)

    def _scatter(self, y: Tensor) -> Tensor:
        if self.overlaps and torch.compiler.is_compiling():
            return _functional("reduce_scatter")(y, "sum", 1, self.group)
        by_rank = y.unflatten(1, (self.size, -1)).transpose(0, 1).contiguous()
        own = by_rank.new_empty(by_rank.shape[1:])
        _call("reduce_scatter_single", "reduce_scatter_tensor")(own.view(-1), by_rank.flatten(), group=self.group)
        return own


def cast_for_products(x: Tensor) -> Tensor:
    """Cast a tensor to autocast's dtype, once for all matrix products that read it: autocast itself makes and saves a
    copy for each. Ranks cast before they send, as float32 takes twice the bytes. Without autocast the tensor is
    returned as it is."""
    kind = x.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)  # torch knows no autocast for meta
    return x.to(torch.get_autocast_dtype(kind)) if autocast else x


def _call(name: str, older: str) -> Any:
    """Return a function of torch.distributed by its name since torch 2.13, or by its older name."""
    return getattr(torch.distributed, name, None) or getattr(torch.distributed, older)


def _functional(name: str) -> Any:
    """Return a collective whose result is a new tensor, by its name since torch 2.13 or by its older name."""
    from torch.distributed import _functional_collectives as collectives

    return getattr(collectives, f"{name}_single", None) or getattr(collectives, f"{name}_tensor")


@functools.cache
def _make_function(forward: str, backward: str) -> Any:
    """Make an autograd function that calls one method of a RankGroup forward and another one backward."""

    class Sending(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, group: RankGroup) -> Tensor:
            ctx.group = group
            return getattr(group, forward)(x)

        @staticmethod
        def backward(ctx: Any, g: Tensor):  # type: ignore[override]
            return getattr(ctx.group, backward)(g), None

    return Sending


@functools.cache
def _make_exchange() -> Any:
    class Exchanging(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, rows: Tensor, group: RankGroup, sent: list[int], received: list[int]) -> Tensor:
            ctx.group, ctx.splits = group, (received, sent)
            return group.send_rows(rows, sent, received)

        @staticmethod
        def backward(ctx: Any, g: Tensor):  # type: ignore[override]
            return ctx.group.send_rows(g, *ctx.splits), None, None, None

    return Exchanging
