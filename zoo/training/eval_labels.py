# B rows
"""Evaluate on labelled records, by the metrics of the objective that reads them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.data.labelled import prepare_labelled
from zoo.data.tokens import TokenFile, read_evaluation_batches
from zoo.errors import ConfigError, ZooError
from zoo.lazy import torch
from zoo.text.reading import longest_text
from zoo.text.score import MANY_TOGETHER, TOGETHER, Score
from zoo.training.eval_parts import Advance, Material, Tell
from zoo.training.gradient import move_batch
from zoo.training.objective import Context, Labelled

if TYPE_CHECKING:
    from zoo.data import Prepared
    from zoo.data.tokens import Collate
    from zoo.training.eval_data import EvaluationPlan


@dataclass(frozen=True)
class Judged:
    """Labelled rows: the objective's loss, and its metrics."""

    name: str
    tokens: TokenFile
    objective: Labelled
    collate: Collate
    context: int

    @property
    def size(self) -> int:
        return self.tokens.count_rows(self.context)

    def score(self, model: Any, advance: Advance) -> Score:
        """Score all rows. Raises ZooError where a loss is no number."""
        device = next(model.parameters()).device
        together = max(TOGETHER.get(device.type, MANY_TOGETHER) // self.context, 1)
        total, targets, metrics = 0.0, 0, self.objective.open_metrics()
        for batch in read_evaluation_batches(self.tokens, together, self.context, collate=self.collate):
            with torch.no_grad():
                total += float(self.objective.judge(model, move_batch(batch, device), metrics))
            if not math.isfinite(total):
                raise ZooError(f"eval: the loss is {total} (sound weights, or dtype=fp32)")
            targets += self.objective.targets(batch)
            advance(len(batch.input_ids))
        return Score(total, targets, None, metrics.compute())


def prepare_records(
    plan: EvaluationPlan, spec: Any, context: int | None, tell: Tell, progress: Callable[[str, int, int], None]
) -> Prepared:
    """Prepare the records that validate: those of the run, or all that overrides name. Raises ConfigError."""
    objective = plan.objective
    assert isinstance(objective, Labelled)
    if context is not None and plan.seq_len not in (None, context) and not plan.whole:
        raise ConfigError(f"context: is {context}, the run's rows have {plan.seq_len} tokens (leave it out)")
    known = getattr(objective, objective.shared[0])
    how = {"limit": settle_length(plan, spec, context), "opens": objective.pools_first}
    say = (lambda line: None) if plan.whole else tell  # there the same records stand in both parts
    return prepare_labelled(plan.data, objective.make_task(), known, **how, say=say, progress=progress)


def settle_length(plan: EvaluationPlan, spec: Any, context: int | None) -> int:
    """Settle the most tokens of a row. Raises ConfigError for more than the model reads."""
    most = longest_text(spec)
    if context is not None and not 1 <= context <= most:
        raise ConfigError(f"context: is {context}, not a whole number from 1 to {most}, the model's length")
    return context or plan.seq_len or most


def make_judged(plan: EvaluationPlan, data: Prepared, spec: Any, context: int | None, stride: int | None) -> Material:
    """Make rows of labelled records. Raises ConfigError."""
    objective, length = plan.objective, settle_length(plan, spec, context)
    assert isinstance(objective, Labelled)
    if stride is not None:
        raise ConfigError(f"stride: is {stride}, and rows of {objective.kind} do not overlap (leave it out)")
    collate = objective.collator(Context(spec, data.tokenizer, length, plan.seed, False, one_shape=False))
    parts = [Judged(each.name, each.tokens, objective, collate, length) for each in data.held_out]
    return Material(parts, plan.describe(), objective.kind, objective.scored, length, None)
