"""Torch optimizers whose updates the device itself can skip: SGD, Lion, schedule-free AdamW and Adafactor, and the base
of those that step the matrices inside layers by a rule of their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from zoo.distributed.sharded_tensors import own_part

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


def step_lent(rule: Any, groups: list[dict[str, Any]], state: Any, skipped: Tensor | None) -> None:
    """Step the optimizer `rule` with the groups and states of another one, lent for this step only."""
    rule.param_groups, rule.state, rule.found_inf = groups, state, skipped
    rule.step()
    rule.param_groups, rule.state = [], defaultdict(dict)


class Skippable(Optimizer):
    """An optimizer whose update the device can skip: if its `found_inf`, a number on the device, is 1, weights and
    states stay as they are, bit for bit. The host does not read `found_inf` (the protocol of torch's GradScaler and
    fused AdamW)."""

    _step_supports_amp_scaling = True
    _skipped: Tensor | None = None

    def read_skipped(self) -> None:
        """Read `found_inf` at the beginning of a step, without waiting for the device."""
        found = getattr(self, "found_inf", None)
        self._skipped = None if found is None else found.bool()

    def keep(self, kept: Tensor, new: Tensor) -> Tensor:
        """Return `new`, overwritten with the mean `kept` if the update is skipped: averaging both then changes
        nothing."""
        return new if self._skipped is None else torch.where(self._skipped, kept, new, out=new)

    def drop(self, update: Any) -> Any:
        """Return an update or a number of the device, overwritten with 0 if the update is skipped."""
        return update if self._skipped is None else update.masked_fill_(self._skipped, 0)

    def scale(self, weight: Tensor, factor: float) -> None:
        """Multiply a tensor in place, unless the update is skipped."""
        if factor != 1:
            skipped = self._skipped
            weight.mul_(factor if skipped is None else make_number(factor, weight).masked_fill_(skipped, 1))

    def count(self, state: dict[str, Any], name: str, more: float, weight: Tensor) -> Any:
        """Add to a number in a state, unless the update is skipped, and return the sum. The number is Python's if the
        host decides whether to update, else a tensor on the device."""
        number = state[name]
        if self._skipped is None:
            number = float(number) if getattr(number, "is_cpu", False) else number  # restored from a checkpoint
        elif getattr(number, "device", None) != weight.device:
            number = make_number(number, weight)
        state[name] = number + (more if self._skipped is None else self.drop(make_number(more, weight)))
        return state[name]


class MatrixOptimizer(Skippable):
    """Step groups with `hidden` by `step_matrices`, the others by torch's AdamW, with which it shares its states."""

    def __init__(self, groups: Groups, *, fused: bool = False, **options: Any) -> None:
        super().__init__(groups, {"weight_decay": 0.0, "hidden": True, **options})
        others = [group for group in self.param_groups if not group["hidden"]]
        self._adamw = torch.optim.AdamW(others, fused=fused) if others else None

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override]
        loss = evaluate(closure)
        self.read_skipped()
        for group in self.param_groups:
            if group["hidden"]:
                self.step_matrices(group)
        others = [group for group in self.param_groups if not group["hidden"]]
        if self._adamw is not None and others:
            step_lent(self._adamw, others, self.state, getattr(self, "found_inf", None))
        return loss

    def step_matrices(self, group: dict[str, Any]) -> None:
        """Step the matrices [A, B] and stacks of matrices [experts, A, B] of a group."""
        raise NotImplementedError


class TensorRule(Skippable):
    """A rule that steps one tensor after another. `options` are the hyperparameters of groups that state no others."""

    def __init__(self, groups: Groups, **options: Any) -> None:
        super().__init__(groups, {"weight_decay": 0.0, **options})

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override]
        loss = evaluate(closure)
        self.read_skipped()
        for group, parameter, gradient, state in list_due(self):
            if not state:
                state |= self.begin(group, parameter)
            own = {name: own_part(value) if torch.is_tensor(value) else value for name, value in state.items()}
            self.step_one(group, own_part(parameter), own_part(gradient), own)
            state |= {name: value for name, value in own.items() if is_counter(value)}
        return loss

    def begin(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        """Make the states of a parameter."""
        raise NotImplementedError

    def step_one(self, group: dict[str, Any], weight: Tensor, gradient: Tensor, state: dict[str, Any]) -> None:
        """Step this process' part of a tensor. The gradient may be overwritten."""
        raise NotImplementedError


def is_counter(value: object) -> bool:
    """Whether a state is a single number, not a tensor of values."""
    return not torch.is_tensor(value) or value.ndim == 0


def make_number(value: Any, weight: Tensor) -> Tensor:
    """Make a number on a weight's device, in float64 if the device has it. The host does not wait."""
    dtype = torch.float32 if weight.device.type == "mps" else torch.float64
    return torch.full((), float(value), dtype=dtype, device=weight.device)


def as_scalar(number: Any, weight: Tensor) -> Any:
    """Cast a number on the device to a weight's dtype. A Python number is returned as it is."""
    return number.to(weight.dtype) if torch.is_tensor(number) else number


class SGDOptimizer(TensorRule):
    """SGD, as torch.optim.SGD: m ← μ·m + g + λ·w; w ← w − lr·m, or with `nesterov` w − lr·(g + λ·w + μ·m)."""

    def begin(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        return {"momentum_buffer": torch.zeros_like(parameter)} if group["momentum"] else {}

    def step_one(self, group: dict[str, Any], weight: Tensor, gradient: Tensor, state: dict[str, Any]) -> None:
        update = gradient.add(weight, alpha=group["weight_decay"]) if group["weight_decay"] else gradient
        update = self.drop(update)
        if momentum := group["momentum"]:
            mean = state["momentum_buffer"]
            self.scale(mean, momentum)
            mean.add_(update)
            if group["nesterov"]:
                update = self.drop(update.add(mean, alpha=momentum))
            else:
                update = mean if self._skipped is None else self.drop(gradient.copy_(mean))
        weight.add_(update, alpha=-group["lr"])


class LionOptimizer(TensorRule):
    """Lion (Chen et al., 2023, algorithm 2): w ← w − lr·(sign(β₁·m + (1 − β₁)·g) + λ·w); m ← β₂·m + (1 − β₂)·g."""

    def begin(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        return {"exp_avg": torch.zeros_like(parameter)}

    def step_one(self, group: dict[str, Any], weight: Tensor, gradient: Tensor, state: dict[str, Any]) -> None:
        (first, second), mean = group["betas"], state["exp_avg"]
        gradient = self.keep(mean, gradient)
        self.scale(weight, 1 - group["lr"] * group["weight_decay"])
        weight.add_(self.drop(mean.lerp(gradient, 1 - first).sign_()), alpha=-group["lr"])
        mean.lerp_(gradient, 1 - second)


class ScheduleFreeAdamW(TensorRule):
    """Schedule-free AdamW (Defazio et al., 2024, algorithm 1, with AdamW's preconditioner).

    A parameter holds y, at which gradients are taken; its state holds z. The average x, weighted by lr², follows from
    both: x = (y − (1 − β₁)·z) / β₁.
    """

    def begin(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        z = parameter.clone(memory_format=torch.preserve_format)
        return {"step": 0.0, "weight_sum": 0.0, "z": z, "exp_avg_sq": torch.zeros_like(parameter)}

    def step_one(self, group: dict[str, Any], weight: Tensor, gradient: Tensor, state: dict[str, Any]) -> None:
        (first, second), lr, z, square = group["betas"], group["lr"], state["z"], state["exp_avg_sq"]
        step, total = self.count(state, "step", 1.0, weight), self.count(state, "weight_sum", lr**2, weight)
        share = self.drop(lr**2 / total) if lr else 0.0  # weight of the newest z in the average
        square.lerp_(self.keep(square, gradient * gradient), 1 - second)
        update = gradient / (square / (1 - second**step)).sqrt_().add_(group["eps"])
        if group["weight_decay"]:
            update.add_(weight, alpha=group["weight_decay"])
        update = self.drop(update)
        # the average moves by `share` towards the new z, and y = (1 − β₁)·z + β₁·x with it
        weight.sub_(update, alpha=lr * (1 - first))
        weight.lerp_(z.sub_(update, alpha=lr), as_scalar(share, weight))

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


class AdafactorOptimizer(TensorRule):
    """Adafactor without a first moment (Shazeer and Stern, 2018), as torch.optim.Adafactor, but without its two waits
    for the device per tensor to read norms. `eps` is the lower bound of mean squares, `min_rms` that of a weight's RMS,
    `clip_rms` the upper bound of an update's RMS."""

    def begin(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        if parameter.ndim < 2:
            return {"step": 0.0, "variance": torch.zeros_like(parameter)}
        *many, rows, columns = parameter.shape
        return {
            "step": 0.0,
            "row_var": parameter.new_zeros(*many, rows, 1),
            "col_var": parameter.new_zeros(*many, 1, columns),
        }

    def step_one(self, group: dict[str, Any], weight: Tensor, gradient: Tensor, state: dict[str, Any]) -> None:
        lr, step = group["lr"], self.count(state, "step", 1.0, weight)
        newest = as_scalar(self.drop(step ** group["beta2_decay"]), weight)
        most = step**-0.5
        most = as_scalar(most.clamp(max=lr) if torch.is_tensor(most) else min(lr, most), weight)
        rate = mean_root(weight).clamp_(min=group["min_rms"]) * most
        self.scale(weight, 1 - lr * group["weight_decay"])
        if weight.ndim < 2:
            state["variance"].lerp_(self.keep(state["variance"], gradient * gradient), newest)
            update = state["variance"].clone()
        else:
            for name, dim in (("row_var", -1), ("col_var", -2)):
                square = torch.linalg.vector_norm(gradient, dim=dim, keepdim=True).square_().div_(gradient.shape[dim])
                state[name].lerp_(self.keep(state[name], square), newest)
            update = state["row_var"] @ state["col_var"]
            update.div_(state["row_var"].mean(-2, keepdim=True).clamp_(min=group["eps"]))
        update = self.drop(update.clamp_(min=group["eps"] ** 2).rsqrt_().mul_(gradient))
        rate = rate / (mean_root(update) / group["clip_rms"]).clamp_(min=1)
        weight.addcmul_(update, rate, value=-1)


def mean_root(value: Tensor) -> Tensor:
    """Compute the root mean square of a tensor, on its device."""
    return torch.linalg.vector_norm(value) / value.numel() ** 0.5
