"""Tensors of which each process holds a part: give them whole, and take a part of a whole one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


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
