"""Step the matrices inside layers by a rule of their own, and all other tensors by AdamW."""

from __future__ import annotations

from typing import Any

import torch

from zoo.training.optim.update_rules import Closure, Groups, Skippable, evaluate, step_lent


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
