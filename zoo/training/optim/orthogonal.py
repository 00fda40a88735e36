# N matrices of one shape [A, B], A ≤ B
"""Muon and NorMuon on stacks of matrices: the processes of a mesh share the matrices of a stack among them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from zoo.costs.muon_stacks import count_stacked
from zoo.distributed.sharded_tensors import is_shared, own_part, reshard
from zoo.training.optim.update_rules import Groups, MatrixOptimizer

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Placement

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration: singular values come near 1 in five steps (Jordan et al.,
2024)."""

LEAST_NORM = 1e-7

RMS = 0.2
"""Root mean square of the elements of AdamW's update, as Liu et al. (2025) measured it."""


class MuonOptimizer(MatrixOptimizer):
    """Muon (Jordan et al., 2024) for groups with `hidden`, torch's AdamW for the others.

    Momentum is m ← μ·m + (1 − μ)·g, Nesterov's update (1 − μ)·g + μ·m, as in torch.optim.Muon. Matrices of one shape,
    transposed or not, are stacked and orthogonalised together. Each process of a mesh orthogonalises some of a stack's
    matrices (`MatrixOwners`). With torch's fused AdamW, both skip an update whose `found_inf` is 1.
    """

    def __init__(self, groups: Groups, *, dtype: torch.dtype, fused: bool = False, **options: Any) -> None:
        super().__init__(groups, fused=fused, **options)
        self.dtype = dtype
        self._step_supports_amp_scaling = fused

    def step_matrices(self, group: dict[str, Any]) -> None:
        for tensors in stack_by_shape(group["params"]):
            self._step_stack(group, tensors)

    def _step_stack(self, group: dict[str, Any], tensors: list[Tensor]) -> None:
        """Step tensors [A, B], [B, A] or stacks of them."""
        short, long = sorted(tensors[0].shape[-2:])
        x = find_owners(tensors[0]).share(
            self._stack(group, tensors), (short, long), partial(orthogonalise, iterations=group["iterations"])
        )
        for update, tensor in zip(x.split(count_own(tensors)), tensors, strict=True):
            own = own_part(tensor)
            turned = (update.mT if is_tall(tensor) else update).reshape(own.shape)
            factor = self._scale(group, tensor, turned)
            self.scale(own, 1 - group["lr"] * group["weight_decay"])
            own.add_(self.drop(turned), alpha=-group["lr"] * factor)

    def _scale(self, group: dict[str, Any], tensor: Tensor, update: Tensor) -> float:
        """Return the factor of this process' part of an orthogonal `update`, which may be changed in place. Here the
        factor gives AdamW's RMS (Liu et al., 2025)."""
        return RMS * math.sqrt(max(tensor.shape[-2:]))

    def _stack(self, group: dict[str, Any], tensors: list[Tensor]) -> Tensor:
        """Stack this process' parts of the updates to orthogonalise: [N, A, B], or a part of each matrix."""
        first, counts = tensors[0], count_own(tensors)
        height, width = own_part(first).shape[-2:]
        sizes = (width, height) if is_tall(first) else (height, width)
        dtype = torch.float64 if first.dtype is torch.float64 else self.dtype
        x = torch.empty(sum(counts), *sizes, dtype=dtype, device=first.device)
        for place, tensor in zip(x.split(counts), tensors, strict=True):
            update = self._momentum(group, tensor)
            update = update.reshape(len(place), *update.shape[-2:])
            place.copy_(update.mT if is_tall(tensor) else update)
        return x

    def _momentum(self, group: dict[str, Any], tensor: Tensor) -> Tensor:
        """Update the momentum; return this process' part of the update to orthogonalise."""
        state, momentum = self.state[tensor], group["momentum"]
        assert tensor.grad is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(tensor)
        mean, gradient = own_part(state["momentum_buffer"]), own_part(tensor.grad)
        gradient = self.keep(mean, gradient)
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum) if group["nesterov"] else mean


class NorMuonOptimizer(MuonOptimizer):
    """NorMuon (Li et al., 2025, algorithm 1): Muon whose orthogonal update O [m, n] has its rows (neurons) normalised.

    v ← β₂·v + (1 − β₂)·r, where r [m] is the mean of O² along each row; Ô = O / (√v + ε);
    w ← w − lr·λ·w − lr · 0.2·√(m·n)·Ô / ‖Ô‖_F. As ‖Ô‖² = n·Σ r / (√v + ε)², the norm follows from the means of rows.
    v has [m, 1] values for each matrix, and every process of a mesh has all of them.
    """

    def _scale(self, group: dict[str, Any], tensor: Tensor, update: Tensor) -> float:
        rows, state = mean_squares(tensor, update), self.state[tensor]
        if "row_square" not in state:
            state["row_square"] = torch.zeros_like(rows, dtype=tensor.dtype)
        kept = state["row_square"]
        kept.lerp_(self.keep(kept, rows.to(kept.dtype, copy=True)), 1 - group["beta2"])
        inverse = 1 / (kept.to(rows.dtype).sqrt() + group["eps"])
        size = (rows * inverse.square()).mean(-2, keepdim=True).sqrt()
        inverse /= size.clamp_(min=torch.finfo(size.dtype).tiny)  # no gradient, no update: 0 stays 0
        update.mul_(take_rows(inverse, tensor))
        return RMS


def mean_squares(tensor: Tensor, part: Tensor) -> Tensor:
    """Compute the mean square of each row [..., m, 1] of a whole tensor [..., m, n]. This process has `part` of it,
    sharded like `tensor`. In float32, or float64 for a float64 tensor. All processes of a mesh must call this."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    if not is_shared(tensor):
        return torch.linalg.vector_norm(part, dim=-1, keepdim=True, dtype=dtype).square_().div_(part.shape[-1])
    from torch.distributed.tensor import DTensor

    places = {"shape": tensor.shape, "stride": tensor.stride(), "run_check": False}
    whole = DTensor.from_local(part, tensor.device_mesh, tensor.placements, **places)  # type: ignore[attr-defined]
    norms = torch.linalg.vector_norm(whole, dim=-1, keepdim=True, dtype=dtype)
    return norms.full_tensor().square().div(tensor.shape[-1])  # type: ignore[attr-defined]


def take_rows(rows: Tensor, tensor: Tensor) -> Tensor:
    """Select the rows of this process' part of a tensor from `rows` [..., m, 1], which every process has whole."""
    if not is_shared(tensor):
        return rows
    from torch.distributed.tensor import Replicate, distribute_tensor

    last = tensor.ndim - 1
    placed = [Replicate() if each.is_shard(last) else each for each in tensor.placements]  # type: ignore[attr-defined]
    return distribute_tensor(rows, tensor.device_mesh, placed, src_data_rank=None).to_local()  # type: ignore[attr-defined]


class MatrixOwners(NamedTuple):
    """The division of a tensor's matrices among `size` processes, which hold the tensor cut into `parts` parts. Each
    matrix is orthogonalised by one process.

    The processes of `replicas` hold equal values: each takes some of the matrices. The processes of `shards` hold a
    part of every matrix, cut along dimension `cut` of a stack [N, A, B]. They exchange parts by an all-to-all, which
    sends each part to one process; an all-gather would send it to all. `shards` is None if one process holds whole
    matrices.
    """

    size: int = 1
    parts: int = 1
    replicas: DeviceMesh | None = None
    shards: DeviceMesh | None = None
    cut: int = 0

    def share(self, parts: Tensor, sizes: tuple[int, int], work: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply `work` to whole matrices [n, A, B], this process' share of all N. Takes and returns this process' parts
        of the N matrices. All processes must call this."""
        from torch.distributed.tensor import Shard

        if self.shards is None:
            return self._share_copies(parts, work)
        shape, cut = (len(parts), *sizes), Shard(self.cut)
        parts = reshard(parts, shape, self.shards, cut, Shard(0))
        return reshard(self._share_copies(parts, work), shape, self.shards, Shard(0), cut)

    def _share_copies(self, matrices: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
        from torch.distributed.tensor import Replicate, Shard

        if self.replicas is None:
            return work(matrices)
        shape = tuple(matrices.shape)
        own = reshard(matrices, shape, self.replicas, Replicate(), Shard(0))
        return reshard(work(own), shape, self.replicas, Shard(0), Replicate())


def find_owners(tensor: Tensor) -> MatrixOwners:
    """Find the processes that share the matrices of a tensor [A, B] or [experts, A, B]."""
    if not is_shared(tensor):
        return MatrixOwners()
    return _read_owners(tensor.device_mesh, tensor.placements, tensor.ndim, is_tall(tensor))  # type: ignore[attr-defined]


@cache
def _read_owners(mesh: DeviceMesh, placements: tuple[Placement, ...], ndim: int, tall: bool) -> MatrixOwners:
    from torch.distributed.tensor import Shard

    found = MatrixOwners(mesh.size())
    for name, placement in zip(mesh.mesh_dim_names or (), placements, strict=True):
        along = mesh[name]
        if along.size() == 1:
            continue
        if not isinstance(placement, Shard):
            found = found._replace(replicas=along)
            continue
        found = found._replace(parts=along.size())
        if (side := placement.dim - ndim) >= -2:  # of a matrix, not of the stack of experts
            found = found._replace(shards=along, cut=(-3 - side if tall else side) + 3)
    return found


def stack_by_shape(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group the parameters that have a gradient by matrix shape (or its transpose), device, dtype and owners. A group
    has the matrices that are orthogonalised at once (`count_stacked`), or one parameter."""
    alike: dict[Any, list[Tensor]] = defaultdict(list)
    for each in parameters:
        if each.grad is not None:
            alike[*sorted(each.shape[-2:]), each.device, each.dtype, find_owners(each)].append(each)
    for (short, long, *_, owners), tensors in alike.items():
        most, stack = count_stacked(short, long, owners.size, owners.parts), []
        for each in tensors:
            if stack and sum(map(count_matrices, [*stack, each])) > most:
                yield stack
                stack = []
            stack.append(each)
        yield stack


def count_matrices(tensor: Tensor) -> int:
    """Count the matrices in a tensor: 1, or the experts of a stack."""
    return math.prod(tensor.shape[:-2])


def count_own(tensors: Iterable[Tensor]) -> list[int]:
    """Count the matrices in each tensor of which this process has all or a part."""
    return [count_matrices(own_part(each)) for each in tensors]


def is_tall(tensor: Tensor) -> bool:
    """Whether matrices have more rows than columns: they are transposed in a stack."""
    return tensor.shape[-2] > tensor.shape[-1]


def orthogonalise(x: Tensor, iterations: int) -> Tensor:
    """Bring the singular values of x [N, A, B], A ≤ B, near 1 by Newton-Schulz iterations. Overwrites x.

    Costs `iterations` × (4·A²·B + 2·A³) FLOPs a matrix. Two buffers alternate, so that memory does not depend on
    references to x: after Dynamo has run in a process, callers keep references to their arguments.
    """
    a, b, c = COEFFICIENTS
    x.div_(torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_(min=LEAST_NORM))
    other = torch.empty_like(x)
    for _ in range(iterations):
        gram = x @ x.mT  # N A A
        torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a, out=other)
        x, other = other, x
    return x
