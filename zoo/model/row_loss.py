# R runs of tokens, N labelled tokens, V vocabulary
"""Losses that depend on a row's tokens together: functions of log-probabilities that are summed over a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from zoo.lazy import Tensor, torch
from zoo.model.loss import TokenLoss, accumulating, split_for_softmax


@dataclass(frozen=True)
class RowLoss(TokenLoss):
    """Loss of runs of tokens, such as answers: `weight` × f(s), with s [R] the sum of log p(target) over each run.

    The gradient at a token is ∂f/∂s of its run, times the gradient of its own log p. So the head runs twice: without
    gradients to compute s, then chunk by chunk for the gradient. The logits of all tokens never exist together.
    """

    terms: tuple[str, ...] = field(kw_only=True)  # type: ignore[misc]
    """Names of the numbers that `combine` computes; the first is f."""
    runs: Tensor = field(kw_only=True)
    """The run of each position of the batch [B·T], a number below `n_runs`."""
    n_runs: int = field(kw_only=True)
    """The number of runs R."""
    combine: Callable[[Tensor], Mapping[str, Tensor]] = field(kw_only=True)
    """Function that computes the terms by name from s [R]. Each term is a sum over the batch."""
    slopes: Tensor | None = None
    """∂f/∂s [R], once s is known."""

    def start(self, hidden: Tensor) -> Tensor:
        return torch.zeros(self.n_runs, device=hidden.device, dtype=accumulating(hidden))

    def look_ahead(self, measure: Callable[[], Tensor]) -> RowLoss:
        with torch.no_grad():
            sums = measure()
        with torch.enable_grad():
            sums.requires_grad_()
            total = self.combine(sums)[self.terms[0]]
        return replace(self, slopes=torch.autograd.grad(total, sums)[0])

    def finish(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        found = self.combine(sums)
        terms = torch.stack([found[name] for name in self.terms]) * self.weight
        return terms[0].clone(), terms

    def overwrite(self, logits: Tensor, targets: Tensor, rows: slice | Tensor) -> Tensor:
        assert self.slopes is not None
        sums, of = self.start(logits), self.runs[rows]
        for block in split_for_softmax(logits):
            values, nll, log_z = self._normalise(logits[block], targets[block])
            p = self._exponentiate(values, log_z)
            self._subtract_targets(p, targets[block])
            torch.mul(p, -self.weight * self.slopes[of[block]][:, None], out=logits[block])
            sums.index_add_(0, of[block], -nll[:, 0].to(sums.dtype))
        return sums

    def measure(self, logits: Tensor, targets: Tensor, rows: slice | Tensor) -> Tensor:
        sums, of = self.start(logits), self.runs[rows]
        for block in split_for_softmax(logits):
            _, nll, _ = self._normalise(logits[block], targets[block])
            sums.index_add_(0, of[block], -nll[:, 0].to(sums.dtype))
        return sums
