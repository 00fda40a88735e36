# N matrices of one shape [A, B], A ≤ B
"""Muon on stacks of matrices: the processes of a mesh share the matrices of a stack among them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from zoo.costs.muon_stacks import count_stacked
from zoo.distributed.sharded_tensors import is_shared, own_part, reshard
from zoo.training.optim.update_rules import Closure, Groups, evaluate

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Placement

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration: singular values come near 1 in five steps (Jordan et al.,
2024)."""

LEAST_NORM = 1e-7


class MuonOptimizer(Optimizer):
    """Muon (Jordan et al., 2024) for groups with `orthogonalise`, torch's AdamW for the others.

    Momentum is m ← μ·m + (1 − μ)·g, Nesterov's update (1 − μ)·g + μ·m, as in torch.optim.Muon. Matrices of one shape,
    transposed or not, are stacked and orthogonalised together. Each process of a mesh orthogonalises some of a stack's
    matrices (`MatrixOwners`). With torch's fused AdamW it skips an update whose `found_inf` is 1, as that does.
    """

    def __init__(
        self,
        groups: Groups,
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        iterations: int,
        dtype: torch.dtype,
        betas: tuple[float, float],
        eps: float,
        fused: bool = False,
    ) -> None:
        self.dtype = dtype
        mine = {"momentum": momentum, "nesterov": nesterov, "iterations": iterations}
        adamw = {"lr": lr, "weight_decay": 0.0, "betas": betas, "eps": eps}
        super().__init__(groups, {**adamw, "orthogonalise": True, **mine})
        others = [group for group in self.param_groups if not group["orthogonalise"]]
        self._adamw = torch.optim.AdamW(others, fused=fused) if others else None
        self._step_supports_amp_scaling = fused

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override]
        loss = evaluate(closure)
        for group in self.param_groups:
            if group["orthogonalise"]:
                for tensors in stack_by_shape(group["params"]):
                    self._step_stack(group, tensors)
        others = [group for group in self.param_groups if not group["orthogonalise"]]
        if self._adamw is not None and others:  # torch's AdamW shares these groups and states
            self._adamw.param_groups, self._adamw.state = others, self.state
            self._adamw.found_inf = self._skipped  # type: ignore[attr-defined]
            self._adamw.step()
            self._adamw.param_groups, self._adamw.state = [], defaultdict(dict)
        return loss

    def _step_stack(self, group: dict[str, Any], tensors: list[Tensor]) -> None:
        """Step tensors [A, B], [B, A] or stacks of them."""
        short, long = sorted(tensors[0].shape[-2:])
        x = find_owners(tensors[0]).share(
            self._stack(group, tensors), (short, long), partial(orthogonalise, iterations=group["iterations"])
        )
        for update, tensor in zip(x.split(count_own(tensors)), tensors, strict=True):
            own, turned = own_part(tensor), update.mT if is_tall(tensor) else update
            new = own if self._skipped is None else own.clone()
            new.mul_(1 - group["lr"] * group["weight_decay"])
            new.add_(turned.reshape(own.shape), alpha=-group["lr"] * 0.2 * math.sqrt(long))
            if new is not own:
                own.copy_(self._choose(own, new))

    def _stack(self, group: dict[str, Any], tensors: list[Tensor]) -> Tensor:
        """Stack what this process has of the updates to orthogonalise: [N, A, B], or a part of each matrix."""
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
        if self._skipped is not None:
            gradient = self._choose(mean, gradient)  # an average with itself changes nothing
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum) if group["nesterov"] else mean

    @property
    def _skipped(self) -> Tensor | None:
        return getattr(self, "found_inf", None)

    def _choose(self, kept: Tensor, new: Tensor) -> Tensor:
        """Return `kept` if the update is skipped, else `new`. The host does not wait."""
        assert self._skipped is not None
        return torch.where(self._skipped.bool(), kept, new)


class MatrixOwners(NamedTuple):
    """How the `size` processes that hold a tensor, cut into `parts` parts, share its matrices: each is orthogonalised
    by one of them.

    The processes of `replicas` hold equal values: each takes some of the matrices. Those of `shards` hold a part of
    every matrix, cut along dimension `cut` of a stack [N, A, B]: they exchange parts (all-to-all), which sends each
    part to one process, where gathering would send it to all. None where a matrix lies whole in one process.
    """

    size: int = 1
    parts: int = 1
    replicas: DeviceMesh | None = None
    shards: DeviceMesh | None = None
    cut: int = 0

    def share(self, parts: Tensor, sizes: tuple[int, int], work: Callable[[Tensor], Tensor]) -> Tensor:
        """Do `work` on whole matrices [n, A, B], where this process has parts of all N. Returns the parts of its
        results. All processes must call this."""
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
    references to x: once Dynamo has run in a process, callers hold on to their arguments.
    """
    a, b, c = COEFFICIENTS
    x.div_(torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_(min=LEAST_NORM))
    other = torch.empty_like(x)
    for _ in range(iterations):
        gram = x @ x.mT  # N A A
        torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a, out=other)
        x, other = other, x
    return x
