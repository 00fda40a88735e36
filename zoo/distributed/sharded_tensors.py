"""Sharded tensors: gather them whole, and take this process' part of a whole one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Placement
    from torch.nn import Module

    from zoo.distributed.group import RankGroup
    from zoo.spec.cuts import Cut


def is_shared(tensor: object) -> bool:
    """Whether a tensor is sharded: a torch DTensor."""
    return hasattr(tensor, "placements") and hasattr(tensor, "full_tensor")


def find_mesh(tensor: object) -> Any:
    """Return the device mesh of a DTensor, None for a plain tensor."""
    return getattr(tensor, "device_mesh", None)


def group_by_mesh(tensors: Iterable[Any]) -> list[list[Any]]:
    """Group tensors by device mesh: torch's operations on lists of tensors take tensors of one mesh."""
    groups: dict[Any, list[Any]] = {}
    for each in tensors:
        groups.setdefault(find_mesh(each), []).append(each)
    return list(groups.values())


def own_part(tensor: Tensor) -> Tensor:
    """Return this process' part of a tensor; a plain tensor itself."""
    return tensor.to_local() if is_shared(tensor) else tensor  # type: ignore[attr-defined]


def make_whole(tensor: Tensor) -> Tensor:
    """All-gather a DTensor; return a plain tensor as it is. All processes must call this."""
    return tensor.full_tensor() if is_shared(tensor) else tensor  # type: ignore[attr-defined]


def take_part(whole: Tensor, like: Tensor) -> Tensor:
    """Shard a whole tensor, which every process has, as the tensor `like` is sharded; unchanged if `like` is plain or
    has another shape."""
    if not is_shared(like) or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    with torch.no_grad():
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


def reshard(part: Tensor, shape: tuple[int, ...], mesh: DeviceMesh, old: Placement, new: Placement) -> Tensor:
    """Redistribute a tensor of `shape` over a mesh of one dimension from placement `old` to `new`. Takes this process'
    old part and returns its new one. All processes of the mesh must call this."""
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    whole = DTensor.from_local(part, mesh, [old], run_check=False, shape=torch.Size(shape), stride=stride)
    return whole.redistribute(placements=[new]).to_local()


@dataclass(frozen=True)
class Division:
    """How the ranks of a group divide a model's tensors: `cuts` maps names to Cuts."""

    cuts: Mapping[str, Cut]
    group: RankGroup

    def find(self, name: str) -> Cut | None:
        """Return the cut of a tensor, None if each rank has the whole tensor."""
        cut = self.cuts.get(name)
        return None if cut is None or cut.is_whole else cut

    def take(self, name: str, whole: Tensor) -> Tensor:
        """Take this rank's part of a whole tensor."""
        cut = self.find(name)
        return whole if cut is None else cut.take(whole, self.group.rank)


@dataclass(frozen=True)
class Stages:
    """The stages of a pipeline, each with its own layers. `common` maps the name of each weight that several stages
    hold to the group of these stages."""

    group: RankGroup
    common: Mapping[str, RankGroup]


@dataclass(frozen=True)
class Shares:
    """The part of each model tensor that a process holds. A tensor is divided by expert parallelism (`experts`) first,
    then by tensor parallelism (`tensor`), then by FSDP (DTensor). `groups[n]` is the process group of the n
    tensor-parallel ranks that hold the same values; `stages` are those of a pipeline."""

    experts: Division | None = None
    tensor: Division | None = None
    groups: Mapping[int, Any] = field(default_factory=dict)
    stages: Stages | None = None

    @property
    def divisions(self) -> list[Division]:
        """The divisions in order: experts, then tensor parallelism."""
        return [each for each in (self.experts, self.tensor) if each is not None]

    def splits(self, name: str, tensor: Tensor) -> bool:
        """Whether a process holds only a part of a tensor."""
        return is_shared(tensor) or any(each.find(name) for each in self.divisions)

    def count_copies(self, name: str) -> int:
        """Count the tensor-parallel ranks that hold the same values of a tensor."""
        return 1 if self.tensor is None else self.tensor.cuts[name].copies

    def learns(self, name: str) -> bool:
        """Whether a tensor gets a gradient from the loss (`Cut.learns`); True without tensor parallelism."""
        return self.tensor is None or self.tensor.cuts[name].learns

    def mark_common(self, name: str, parameter: Tensor) -> Tensor | None:
        """Make a mask of this process' part: 1 for the values that the largest number of tensor-parallel ranks hold, 0
        for the others. None if equally many ranks hold each value."""
        if self.tensor is None or not self.tensor.cuts[name].is_mixed:
            return None
        part = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        return take_part(self.tensor.cuts[name].mark_common(part), parameter)

    def take_part(self, name: str, whole: Tensor, like: Tensor) -> Tensor:
        """Take this process' part of a whole tensor, sharded as the tensor `like`."""
        for each in self.divisions if whole.ndim else []:
            whole = each.take(name, whole)
        return take_part(whole, like)


ALL = Shares()
"""Shares of a model that is divided by none of expert parallelism, tensor parallelism and a pipeline."""


def drop_gathered(model: Module) -> None:
    """Make FSDP free its gathered weights, so that the next pass gathers the shards anew."""
    for module in model.modules():
        if (reshard := getattr(module, "reshard", None)) is not None:
            reshard()


def hold_back_replicas(model: Module, hold: bool) -> None:
    """Set whether the next backward pass skips the all-reduce of gradients over replicas, leaving it to a later
    microbatch. The reduce-scatter over a replica's shards is never skipped."""
    if (require := getattr(model, "set_requires_all_reduce", None)) is not None:
        require(not hold)


def count_gathered(model: Module, width: int | None = None) -> int:
    """Count the bytes of all sharded weights when gathered, with `width` bytes per value (None: as stored)."""
    return sum(each.numel() * (width or each.element_size()) for each in model.parameters() if is_shared(each))


@contextmanager
def weights_gathered(model: Module) -> Iterator[None]:
    """Gather all weights once, and keep them for the time of a `with` statement. Passes inside it gather nothing, and
    may begin at any part of the model. All processes must enter the statement."""
    units = [each for each in model.modules() if hasattr(each, "unshard")]
    inner: Any = [each for each in units if each is not model]  # FSDP keeps the outermost unit's weights anyway
    for each in (model, *inner) if units else ():  # the outermost first: FSDP finds by it which unit is the root
        each.unshard()  # type: ignore[operator]
    for each in inner:
        each.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for each in inner:
            each.set_reshard_after_forward(True, recurse=False)
        drop_gathered(model)
