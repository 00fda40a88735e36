"""Run tasks of lm-evaluation-harness (Gao et al., 2021) on a model: by name, or from a YAML file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError, did_you_mean
from zoo.text import loading
from zoo.text.loading import Loaded

Tell = Callable[[str], object]
Progress = Callable[[str, int, int], None]

TOGETHER = 32
"""Rows that are served at once."""


def evaluate_tasks(
    model: Any,
    tasks: Sequence[str | Path],
    *,
    tokenizer: Any = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    context: int | None = None,
    weights: str | None = None,
    fp8: str | None = None,
    dtype: str | None = None,
    kernel: str | None = None,
    device: str = "cpu",
    note: Tell | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a decoder on tasks: of each its metrics with their standard errors, its version, and how many examples and
    solved ones it had.

    `model` is a folder, or a model with its `tokenizer`. A task is a name that lm-evaluation-harness knows, or a YAML
    file in its format. `limit` takes the first examples alone, `num_fewshot` puts so many solved ones before each, and
    `context` is the most tokens that the model reads (its own length unless given). Tokens, their cuts and the
    beginning of texts are those of the harness's `hf` models. `weights` and `fp8` put products in fewer bits.

    Raises ConfigError, also where the package lm_eval is missing.
    """
    require_harness()
    loaded = load(model, tokenizer, note or (lambda line: None), device=device, dtype=dtype, fp8=fp8, weights=weights)
    from zoo.text.harness import Harness, run_tasks

    lm = Harness(loaded, context=context, kernel=kernel, progress=progress)
    found = run_tasks(lm, list(tasks), limit=limit, num_fewshot=num_fewshot)
    return {"model": str(model) if isinstance(model, str | Path) else "", **found}


def require_harness() -> None:
    """Raise ConfigError where lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("tasks: need lm-evaluation-harness, found no package lm_eval (pip install lm-eval)")
