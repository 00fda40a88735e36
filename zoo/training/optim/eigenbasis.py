# N matrices [A, B] of a tensor, each with a basis [A, A] of its rows and [B, B] of its columns
"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zoo.training.optim.update_rules import Groups, MatrixOptimizer

SIDES = (("left", -2), ("right", -1))
"""The sides of a matrix that are rotated: the name of a side's states, and the dimension of the matrix."""


class SOAPOptimizer(MatrixOptimizer):
    """SOAP (Vyas et al., 2024, algorithm 3) for groups with `hidden`, torch's AdamW for the others.

    L ← β·L + (1 − β)·G·Gᵀ, R ← β·R + (1 − β)·Gᵀ·G with β = `shampoo_beta`; G' = Q_Lᵀ·G·Q_R and M' = Q_Lᵀ·M·Q_R, where M
    is the momentum; V ← β₂·V + (1 − β₂)·G'²; w ← w − lr·λ·w − lr·Q_L·(M' / (√V + ε))·Q_Rᵀ, M' and V corrected for their
    bias as Adam's. The bases are the eigenvectors of L and R at the first step, which changes no weight. Every
    `precondition_frequency` steps they follow L and R by a power iteration and a QR decomposition, with columns ordered
    by eigenvalue. A side longer than `max_precondition_dim` is not rotated. Each expert's matrix has its own bases.

    The device can skip an update, as with torch's fused AdamW, except a matrix' first one, whose `eigh` waits for the
    device anyway. The host reads the number of updates only at steps at which the bases may be due.
    """

    def __init__(self, groups: Groups, *, fused: bool = False, **options: Any) -> None:
        super().__init__(groups, fused=fused, **options)
        self._fused = fused
        self._next: dict[Tensor, tuple[int, int]] = {}
        """When the bases of a matrix are updated next: in how many steps at the soonest, and after which update."""
        self._counted: dict[Tensor, Any] = {}
        """The `step` of a matrix after its last update. A different object comes from a restored checkpoint."""

    @property
    def _step_supports_amp_scaling(self) -> bool:  # type: ignore[override]
        hidden = (group["params"] for group in self.param_groups if group["hidden"])
        matrices = (each for params in hidden for each in params if each.grad is not None)
        return self._fused and all(self.state.get(each) for each in matrices)

    def step_matrices(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is not None:
                state = self.state[parameter]
                gradient = widen(parameter.grad)
                if not state:
                    self._begin(group, parameter, gradient, state)
                else:
                    self._step_one(group, parameter, gradient, state)

    def _begin(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor, state: dict[str, Any]) -> None:
        state["step"] = 0.0
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        for side, dim in SIDES:
            if parameter.shape[dim] <= group["max_precondition_dim"]:
                mean = (1 - group["shampoo_beta"]) * outer(gradient, dim)
                state[side] = mean.to(parameter.dtype)
                state[f"{side}_basis"] = torch.linalg.eigh(mean)[1].flip(-1).to(parameter.dtype, copy=True)

    def _step_one(self, group: dict[str, Any], weight: Tensor, gradient: Tensor, state: dict[str, Any]) -> None:
        (first, second), lr = group["betas"], group["lr"]
        if self._counted.get(weight) is not state["step"]:
            self._look(group["precondition_frequency"], weight, int(state["step"]))
        step, square = self.count(state, "step", 1.0, weight), state["exp_avg_sq"]
        self._counted[weight] = step
        state["exp_avg"].lerp_(self.keep(state["exp_avg"], gradient.to(weight.dtype)), 1 - first)
        square.lerp_(self.keep(square, rotate(gradient, state).square_().to(weight.dtype)), 1 - second)
        update = rotate(widen(state["exp_avg"]), state).div_(1 - first**step)
        update.div_((widen(square) / (1 - second**step)).sqrt_().add_(group["eps"]))
        self.scale(weight, 1 - lr * group["weight_decay"])
        weight.add_(self.drop(rotate(update, state, back=True)), alpha=-lr)
        due = self._follow_now(group["precondition_frequency"], weight, state)
        for side, dim in list_rotated(state):
            mean, share = state[side], 1 - group["shampoo_beta"]
            mean.lerp_(self.keep(mean, outer(gradient, dim).to(weight.dtype)), share)
            if due:
                refresh(state, side, dim)

    def _follow_now(self, every: int, weight: Tensor, state: dict[str, Any]) -> bool:
        """Whether the bases are updated at this step: they are every `every` updates. A step makes at most one update,
        so the host reads the number of updates only after as many steps as updates are missing."""
        soonest, update = self._next[weight]
        if soonest > 1:
            self._next[weight] = soonest - 1, update
            return False
        made = int(state["step"])
        self._look(every, weight, made)
        return made == update

    def _look(self, every: int, weight: Tensor, made: int) -> None:
        missing = every - made % every
        self._next[weight] = missing, made + missing


def widen(value: Tensor) -> Tensor:
    """Return a tensor in at least float32, in which decompositions and products are computed."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def list_rotated(state: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the sides of a matrix that have a basis."""
    return ((side, dim) for side, dim in SIDES if side in state)


def outer(gradient: Tensor, dim: int) -> Tensor:
    """Multiply a gradient [..., A, B] by its transpose: [..., A, A] for dim −2, [..., B, B] for dim −1."""
    return gradient @ gradient.mT if dim == -2 else gradient.mT @ gradient


def rotate(value: Tensor, state: dict[str, Any], back: bool = False) -> Tensor:
    """Rotate matrices [..., A, B] into the bases of both sides, or with `back` out of them. Returns a new tensor."""
    made = value
    for side, dim in list_rotated(state):
        basis = widen(state[f"{side}_basis"])
        basis = basis.mT if back else basis
        made = basis.mT @ made if dim == -2 else made @ basis
    return made.clone() if made is value else made


def refresh(state: dict[str, Any], side: str, dim: int) -> None:
    """Update a side's basis towards the eigenvectors of its preconditioner, and order the second moments like its
    columns."""
    mean, basis = widen(state[side]), state[f"{side}_basis"]
    power = mean @ widen(basis)
    values = (widen(basis) * power).sum(-2)  # of each column: estimated eigenvalue
    order = values.argsort(-1, descending=True)  # ... A
    square = state["exp_avg_sq"]
    square.copy_(square.take_along_dim(order.unsqueeze(-2 if dim == -1 else -1), dim))
    basis.copy_(torch.linalg.qr(power.take_along_dim(order.unsqueeze(-2), -1))[0])
