"""Weight decay that is not the same share of every weight: cautious decay, and matrices kept on a sphere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from zoo.distributed.sharded_tensors import own_part
from zoo.errors import ConfigError
from zoo.training.optim.update_rules import Closure, evaluate, step_lent


class DecayedOptimizer(Optimizer):
    """Step the optimizer `rule` without weight decay, then `settle` each weight. Shares groups and states with it.

    During a step it keeps a copy of the weights that it settles. It skips updates whose `found_inf` is 1, if `rule`
    can.
    """

    def __init__(self, rule: Optimizer) -> None:
        super().__init__(rule.param_groups, rule.defaults)
        self._rule, self.state = rule, rule.state

    @property
    def _step_supports_amp_scaling(self) -> bool:  # type: ignore[override]
        self._rule.param_groups, self._rule.state = self.param_groups, self.state
        return getattr(self._rule, "_step_supports_amp_scaling", False)

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override]
        loss = evaluate(closure)
        skipped = getattr(self, "found_inf", None)
        mine = [group for group in self.param_groups if self.concerns(group)]
        before = {each: each.detach().clone() for group in mine for each in group["params"] if each.grad is not None}
        groups = [{**group, "weight_decay": 0.0} if self.concerns(group) else group for group in self.param_groups]
        step_lent(self._rule, groups, self.state, skipped)
        for group in mine:
            for weight in (each for each in group["params"] if each in before):
                old = before[weight]
                self.settle(group, weight, old if skipped is None else old.clone())
                if skipped is not None:
                    own = own_part(weight)
                    own.copy_(torch.where(skipped.bool(), own_part(old), own))
        return loss

    def concerns(self, group: dict[str, Any]) -> bool:
        """Whether the weights of a group are settled here rather than decayed by the rule."""
        raise NotImplementedError

    def settle(self, group: dict[str, Any], weight: Tensor, old: Tensor) -> None:
        """Change in place a weight that the rule has stepped from `old`, which may be overwritten."""
        raise NotImplementedError


class CautiousOptimizer(DecayedOptimizer):
    """Cautious weight decay (Chen et al., 2025, algorithm 1): w ← w − lr·(u + λ·[u·w ≥ 0]·w) for a rule's update u, so
    that decay never works against the update."""

    def concerns(self, group: dict[str, Any]) -> bool:
        return group["weight_decay"] > 0

    def settle(self, group: dict[str, Any], weight: Tensor, old: Tensor) -> None:
        weight, old = own_part(weight), own_part(old)
        agree = (old - weight).sign_().mul_(old.sign()).ge_(0)  # of signs: a product of small numbers could be 0
        weight.addcmul_(old, agree, value=-group["lr"] * group["weight_decay"])


class HyperballOptimizer(DecayedOptimizer):
    """Hyperball (Wen et al., 2026): w ← R·N(w − lr·R·N(u)) for the matrices inside layers, where N(x) = x / ‖x‖_F.

    R is a matrix' initial Frobenius norm. The weight has this norm before each step, so nothing needs to be stored. The
    matrix of each expert has its own R. Raises ConfigError for a matrix of zeros, which would stay zero.
    """

    def __init__(self, rule: Optimizer) -> None:
        super().__init__(rule)
        for group in filter(self.concerns, self.param_groups):
            for weight in group["params"]:
                if not bool((norm(weight) > 0).all()):
                    found = f"keeps each matrix at its initial norm, which is 0 for one of {tuple(weight.shape)}"
                    raise ConfigError(f"optim.decay: hyperball {found} (another init, or decay=uniform)")

    def concerns(self, group: dict[str, Any]) -> bool:
        return group["hidden"]

    def settle(self, group: dict[str, Any], weight: Tensor, old: Tensor) -> None:
        radius, update = norm(old), old - weight
        length = norm(update)
        old.sub_(update.mul_(group["lr"] * radius / length.clamp(min=torch.finfo(length.dtype).tiny)))
        weight.copy_(old.mul_(radius / norm(old)))


def norm(value: Tensor) -> Tensor:
    """Compute the Frobenius norm [..., 1, 1] of each matrix [..., A, B]. Every process with a part gets the norm of the
    whole."""
    found = torch.linalg.vector_norm(value, dim=(-2, -1), keepdim=True)
    if not hasattr(found, "placements"):
        return found
    from torch.distributed.tensor import Replicate

    stays = [Replicate() if each.is_partial() else each for each in found.placements]  # type: ignore[attr-defined]
    return found.redistribute(placements=stays)  # type: ignore[attr-defined]


DECAYS = {"cautious": CautiousOptimizer, "hyperball": HyperballOptimizer}
