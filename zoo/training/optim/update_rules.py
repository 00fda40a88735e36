# N matrices of one shape [A, B], A ≤ B
"""The update rules that torch lacks, as torch optimizers: Lion, schedule-free AdamW, and Muon on stacked matrices."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from zoo.distributed.sharded_tensors import make_whole, take_part

Groups = Iterable[dict[str, Any]]
Closure = Callable[[], float] | None

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration: singular values come near 1 in five steps (Jordan et al.,
2024)."""

LEAST_NORM = 1e-7

STACK = 1 << 24
"""Most elements orthogonalised at once, unless one tensor has more. More would take memory and save no time."""


def evaluate(closure: Closure) -> float | None:
    """Call a step's closure with gradients enabled, if there is one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def list_due(optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], Tensor, Tensor, dict[str, Any]]]:
    """Yield the group, the parameter, its gradient and its state, for each parameter with a gradient."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                yield group, parameter, parameter.grad, optimizer.state[parameter]


class LionOptimizer(Optimizer):
    """w ← (1 − lr·λ)·w − lr·sign(β₁·m + (1 − β₁)·g); m ← β₂·m + (1 − β₂)·g (Chen et al., 2023, algorithm 2)."""

    def __init__(self, groups: Groups, lr: float, betas: tuple[float, float], weight_decay: float = 0.0) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override]
        loss = evaluate(closure)
        for group, parameter, gradient, state in list_due(self):
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter)
            (first, second), lr = group["betas"], group["lr"]
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(state["exp_avg"].lerp(gradient, 1 - first).sign_(), alpha=-lr)
            state["exp_avg"].lerp_(gradient, 1 - second)
        return loss


class ScheduleFreeAdamW(Optimizer):
    """Schedule-free AdamW (Defazio et al., 2024, algorithm 1, with AdamW's preconditioner).

    A parameter holds y, at which gradients are taken; its state holds z. The average x, weighted by lr², follows from
    both: x = (y − (1 − β₁)·z) / β₁.
    """

    def __init__(
        self, groups: Groups, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override]
        loss = evaluate(closure)
        for group, y, gradient, state in list_due(self):
            if not state:
                state["step"] = state["weight_sum"] = 0.0
                state["z"] = y.clone(memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(y)
            self._step_one(group, y, gradient, state)
        return loss

    def _step_one(self, group: dict[str, Any], y: Tensor, gradient: Tensor, state: dict[str, Any]) -> None:
        (first, second), lr = group["betas"], group["lr"]
        state["step"] += 1
        state["weight_sum"] += lr**2
        share = lr**2 / float(state["weight_sum"]) if lr else 0.0  # weight of the newest z in the average
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        correction = 1 - second ** float(state["step"])
        update = gradient / (state["exp_avg_sq"] / correction).sqrt_().add_(group["eps"])
        if group["weight_decay"]:
            update.add_(y, alpha=group["weight_decay"])
        # y moves by `share` towards z, as the average does, and takes 1 − β₁ · (1 − share) of z's step
        y.lerp_(state["z"], share).add_(update, alpha=-lr * (1 - first * (1 - share)))
        state["z"].sub_(update, alpha=lr)

    @torch.no_grad()
    def evaluation_weights(self) -> dict[Tensor, Tensor]:
        """Return the average x of each parameter that has been stepped."""
        found = {}
        for group in self.param_groups:
            first = group["betas"][0]
            for y in group["params"]:
                if "z" in self.state.get(y, {}):
                    found[y] = (y - (1 - first) * self.state[y]["z"]) / first
        return found


class MuonOptimizer(Optimizer):
    """Muon (Jordan et al., 2024) for groups with `orthogonalise`, torch's AdamW for the others.

    Momentum is m ← μ·m + (1 − μ)·g, Nesterov's update (1 − μ)·g + μ·m, as in torch.optim.Muon. Matrices of one shape,
    transposed or not, are stacked and orthogonalised together.
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
            self._adamw.step()
            self._adamw.param_groups, self._adamw.state = [], defaultdict(dict)
        return loss

    def _step_stack(self, group: dict[str, Any], tensors: list[Tensor]) -> None:
        """Step tensors [A, B], [B, A] or stacks of them."""
        x = orthogonalise(self._stack(group, tensors), group["iterations"])
        long, lr = x.shape[-1], group["lr"]
        for place, tensor in zip(x.split(count_matrices(tensors)), tensors, strict=True):
            tensor.mul_(1 - lr * group["weight_decay"])
            tall = tensor.shape[-2] > tensor.shape[-1]
            update = (place.mT if tall else place).reshape(tensor.shape)
            tensor.add_(take_part(update, tensor), alpha=-lr * 0.2 * math.sqrt(long))

    def _stack(self, group: dict[str, Any], tensors: list[Tensor]) -> Tensor:
        """Stack the updates to orthogonalise: [N, A, B] with A ≤ B."""
        counts, (short, long) = count_matrices(tensors), sorted(tensors[0].shape[-2:])
        dtype = torch.float64 if tensors[0].dtype is torch.float64 else self.dtype
        x = torch.empty(sum(counts), short, long, dtype=dtype, device=tensors[0].device)
        for place, tensor in zip(x.split(counts), tensors, strict=True):
            place.copy_(lay_down(make_whole(self._momentum(group, tensor))))
        return x

    def _momentum(self, group: dict[str, Any], tensor: Tensor) -> Tensor:
        state, gradient, momentum = self.state[tensor], tensor.grad, group["momentum"]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(tensor)
        state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum_buffer"], momentum) if group["nesterov"] else state["momentum_buffer"]


def stack_by_shape(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group the parameters that have a gradient by matrix shape (or its transpose), device and dtype. A group has at
    most STACK elements, or one parameter."""
    alike: dict[Any, list[Tensor]] = defaultdict(list)
    for each in parameters:
        if each.grad is not None:
            alike[*sorted(each.shape[-2:]), each.device, each.dtype].append(each)
    for tensors in alike.values():
        stack: list[Tensor] = []
        for each in tensors:
            if stack and sum(held.numel() for held in stack) + each.numel() > STACK:
                yield stack
                stack = []
            stack.append(each)
        yield stack


def count_matrices(tensors: Iterable[Tensor]) -> list[int]:
    """Count the matrices in each tensor: 1, or the experts of a stack."""
    return [math.prod(tensor.shape[:-2]) for tensor in tensors]


def lay_down(matrices: Tensor) -> Tensor:
    """Reshape matrices to [N, A, B] with A ≤ B: tall ones are transposed."""
    stacked = matrices.reshape(-1, *matrices.shape[-2:])
    return stacked.mT if stacked.shape[-2] > stacked.shape[-1] else stacked


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
