"""Tensors of which each process holds a part: give them whole, and take a part of a whole one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.ranks.group import RankGroup
    from zoo.spec.cuts import Cut


def is_shared(tensor: Any) -> bool:
    """Whether each process holds a part of a tensor (torch's DTensor)."""
    return hasattr(tensor, "placements") and hasattr(tensor, "full_tensor")


def find_mesh(tensor: Any) -> Any:
    """The device mesh that a tensor is shared on, None for a plain one."""
    return getattr(tensor, "device_mesh", None)


def group_by_mesh(tensors: Iterable[Any]) -> list[list[Any]]:
    """RankGroup tensors by the device mesh that they are shared on: torch computes with several of one mesh at once."""
    groups: dict[Any, list[Any]] = {}
    for each in tensors:
        groups.setdefault(find_mesh(each), []).append(each)
    return list(groups.values())


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
class Division:
    """How the ranks of a group divide the tensors of a model, by name."""

    cuts: Mapping[str, Cut]
    group: RankGroup

    def find(self, name: str) -> Cut | None:
        """The cut of a tensor, where it is cut."""
        cut = self.cuts.get(name)
        return None if cut is None or cut.is_whole else cut

    def join(self, name: str, part: Tensor) -> Tensor:
        """Join the parts of all ranks."""
        cut = self.find(name)
        return part if cut is None else cut.join(self.group.stack(part).unbind())

    def take(self, name: str, whole: Tensor) -> Tensor:
        """Take this rank's part."""
        cut = self.find(name)
        return whole if cut is None else cut.take(whole, self.group.rank)


@dataclass(frozen=True)
class Stages:
    """The stages of a pipeline, each with layers of its own; and by name the weights that several of them have in
    `common`, with those that have them."""

    group: RankGroup
    common: Mapping[str, RankGroup]

    def collect(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring the tensors of all stages to the first one, one by one. All ranks of the group must call it."""
        from torch import distributed

        sizes = {name: (tuple(each.shape), each.dtype) for name, each in tensors.items()}
        found: list[Any] = [None] * self.group.size
        distributed.all_gather_object(found, sizes, group=self.group.group)
        first = distributed.get_global_rank(self.group.group, 0)
        for stage, theirs in enumerate(found[1:], 1):
            for name, (shape, dtype) in theirs.items():
                if self.group.rank == stage:
                    distributed.send(tensors[name].contiguous(), first, group=self.group.group)
                elif self.group.rank == 0:
                    place = next(iter(tensors.values())).device
                    received = torch.empty(shape, dtype=dtype, device=place)
                    distributed.recv(received, distributed.get_global_rank(self.group.group, stage), self.group.group)
                    tensors.setdefault(name, received)
        return tensors


@dataclass(frozen=True)
class Shares:
    """The part of each tensor of a model that a process holds, by name: of the `experts` the part of its rank of expert
    parallelism, of that the part that its rank of tensor parallelism (`tensor`) computes, and of that the shard of
    torch's DTensor. `groups` are the ranks of tensor parallelism that have the same values, by how many they are;
    `stages` those of a pipeline."""

    experts: Division | None = None
    tensor: Division | None = None
    groups: Mapping[int, Any] = field(default_factory=dict)
    stages: Stages | None = None

    @property
    def divisions(self) -> list[Division]:
        """The divisions, first to last."""
        return [each for each in (self.experts, self.tensor) if each is not None]

    def splits(self, name: str, tensor: Tensor) -> bool:
        """Whether a process holds a part of a tensor."""
        return is_shared(tensor) or any(each.find(name) for each in self.divisions)

    def make_whole(self, name: str, tensor: Tensor) -> Tensor:
        """Gather a tensor, or a state as large as it, whole on every process, which all must call."""
        part = make_whole(tensor)
        for each in reversed(self.divisions if part.ndim else []):
            part = each.join(name, part)
        return part

    def count_copies(self, name: str) -> int:
        """Count the ranks of tensor parallelism that have the same values of a tensor."""
        return 1 if self.tensor is None else self.tensor.cuts[name].copies

    def learns(self, name: str) -> bool:
        """Whether the loss gives a tensor a gradient on some rank of tensor parallelism."""
        return self.tensor is None or self.tensor.cuts[name].learns

    def collect(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring whole tensors of all stages to the first one."""
        return tensors if self.stages is None else self.stages.collect(tensors)

    def mark_common(self, name: str, parameter: Tensor) -> Tensor | None:
        """Mark in what a process holds of a tensor the values that it has in common with others, where not all are."""
        if self.tensor is None or not self.tensor.cuts[name].is_mixed:
            return None
        part = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        return take_part(self.tensor.cuts[name].mark_common(part), parameter)

    def take_part(self, name: str, whole: Tensor, like: Tensor) -> Tensor:
        """Take of a whole tensor the part that a process holds of a tensor `like` it."""
        for each in self.divisions if whole.ndim else []:
            whole = each.take(name, whole)
        return take_part(whole, like)


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
