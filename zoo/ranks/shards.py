"""Tensors of which each process holds a part: give them whole, and take a part of a whole one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.ranks.cuts import Cut


def is_shared(tensor: Any) -> bool:
    """Whether each process holds a part of a tensor (torch's DTensor)."""
    return hasattr(tensor, "placements") and hasattr(tensor, "full_tensor")


def own_part(tensor: Tensor) -> Tensor:
    """Give this process' part of a tensor; a plain one is its own."""
    return tensor.to_local() if is_shared(tensor) else tensor  # type: ignore[attr-defined]


def make_whole(tensor: Tensor) -> Tensor:
    """Gather a tensor whole on every process, which all must call; a plain one is whole."""
    return tensor.full_tensor() if is_shared(tensor) else tensor  # type: ignore[attr-defined]


def take_part(whole: Tensor, like: Tensor) -> Tensor:
    """Take of a whole tensor, which every process has, the part that it holds of a tensor `like` it, as such a tensor;
    plain where that is plain."""
    if not is_shared(like) or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    with torch.no_grad():
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Shares:
    """What a process holds of each tensor of a model, by name: of one that tensor parallelism cuts, the part of its
    `rank` in `group`, and of that the part which torch's DTensor says. `groups` are the processes that have the same
    values, by how many they are."""

    cuts: Mapping[str, Cut] = field(default_factory=dict)
    rank: int = 0
    group: Any = None
    groups: Mapping[int, Any] = field(default_factory=dict)

    def splits(self, name: str, tensor: Tensor) -> bool:
        """Whether a process holds a part of a tensor."""
        return is_shared(tensor) or (name in self.cuts and not self.cuts[name].is_whole)

    def make_whole(self, name: str, tensor: Tensor) -> Tensor:
        """Gather a tensor, or a state as large as it, whole on every process, which all must call."""
        part, cut = make_whole(tensor), self.cuts.get(name)
        if cut is None or cut.is_whole or not part.ndim:
            return part
        from torch import distributed

        parts = [torch.empty_like(part) for _ in range(cut.ranks)]
        distributed.all_gather(parts, part.contiguous(), group=self.group)
        return cut.join(parts)

    def mark_common(self, name: str, parameter: Tensor) -> Tensor | None:
        """Mark in what a process holds of a tensor the values that it has in common with others, where not all are."""
        cut = self.cuts[name]
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        marks = cut.mark_common(whole)
        return None if marks is None else take_part(marks, parameter)

    def take_part(self, name: str, whole: Tensor, like: Tensor) -> Tensor:
        """Take of a whole tensor the part that a process holds of a tensor `like` it."""
        cut = self.cuts.get(name)
        return take_part(whole if cut is None or not whole.ndim else cut.take(whole, self.rank), like)


ALL = Shares()
"""Those of a model that tensor parallelism does not cut."""


def drop_gathered(model: Any) -> None:
    """Let a model gather its weights anew at its next pass, as those that its processes hold have changed."""
    for module in model.modules():
        if (reshard := getattr(module, "reshard", None)) is not None:
            reshard()


def hold_back_replicas(model: Any, hold: bool) -> None:
    """Say whether the next backward pass leaves gradients of this replica alone, to be summed up over replicas with
    those of a later microbatch. Over the parts of a replica they are summed up each time."""
    if (require := getattr(model, "set_requires_all_reduce", None)) is not None:
        require(not hold)


@contextmanager
def ends_gathered(model: Any) -> Iterator[None]:
    """Hold the weights beside a model's layers whole inside the block, for passes that begin at a part of it, such as
    an encoder. All processes must enter it; a layer gathers its own as it runs."""
    unshard = getattr(model, "unshard", None)
    if unshard is None:
        yield
        return
    unshard()
    try:
        yield
    finally:
        drop_gathered(model)
