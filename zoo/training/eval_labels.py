"""Evaluate on labelled records, by the metrics of the objective that reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zoo.data.labelled import prepare_labelled
from zoo.errors import ConfigError
from zoo.text.reading import longest_text
from zoo.training.eval_parts import Collated, Material, Tell
from zoo.training.objective import Context, Labelled

if TYPE_CHECKING:
    from zoo.data import Prepared
    from zoo.training.eval_data import EvaluationPlan


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
    parts = [Collated(each.name, each.tokens, objective, collate, length) for each in data.held_out]
    return Material(parts, plan.describe(), objective.kind, objective.scored, length, None)
