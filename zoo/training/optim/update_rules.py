"""The element-wise update rules that torch lacks, as torch optimizers: Lion and schedule-free AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Groups = Iterable[dict[str, Any]]
Closure = Callable[[], float] | None


def evaluate(closure: Closure) -> float | None:
    """Call a step's closure with gradients enabled, if there is one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def list_due(optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], Tensor, Tensor, dict[str, Any]]]:
    """Yield group, parameter, gradient and state, for each parameter with a gradient."""
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
