"""Run tasks of lm-evaluation-harness (Gao et al., 2021) on a model: by name, or from a YAML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from zoo.checkpoint import store
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ConfigError
from zoo.run.environment import find_version
from zoo.run.fastest_dtype import spell_dtype
from zoo.text import loading
from zoo.text.loading import Loaded
from zoo.text.reader import find_weight, longest_text
from zoo.text.score import check_model
from zoo.text.task_files import refuse_files

if TYPE_CHECKING:
    from zoo.model.tower import Topology
    from zoo.run.layer import Model

Tell = Callable[[str], object]

OLDEST = "0.4.13"  # the first whose TaskManager loads tasks by name and by file

ROWS = 32
"""Number of rows the engine serves at once."""


def evaluate_tasks(
    model: str | Path | Model,
    tasks: Sequence[str | Path],
    *,
    tokenizer: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    trust: bool = False,
    context: int | None = None,
    weights: str | None = None,
    fp8: str | None = None,
    dtype: str | None = None,
    kernel: str | None = None,
    device: str = "cpu",
    note: Tell | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Score a decoder on tasks. In the result, `tasks` has for each task its metrics with standard errors, its version,
    and the numbers of examples and of few-shot examples.

    `model` is a folder, or a model with its `tokenizer`. A task is a name of lm-evaluation-harness, or a YAML file in
    its format; such a file can run any code, so it needs `trust`. `limit` takes only the first examples, `num_fewshot`
    is the number of few-shot examples, and `context` the maximum number of tokens that the model reads (default: its
    own length). Encoding, truncation and start tokens equal those of the harness's `hf` models. `weights` and `fp8`
    quantise the weights of matrix products.

    Raises ConfigError for a model that does not generate text, unknown tasks and invalid options, and if the package
    lm_eval is missing.
    """
    refuse_files([str(task) for task in tasks], trust)
    require_harness()
    how = {"device": device, "dtype": dtype, "fp8": fp8, "weights": weights}
    loaded = load(model, tokenizer, how, note or (lambda line: None))
    most = settle_context(loaded.model.spec, context)

    from zoo.text.eval_harness import Harness, run_tasks

    lm = Harness(loaded, most, kernel=kernel, progress=progress)
    found = run_tasks(lm, [str(task) for task in tasks], limit=limit, num_fewshot=num_fewshot)
    stored = weights or (f"fp8 {fp8}" if fp8 else "exact")
    about = {"weights": stored, "dtype": spell_dtype(find_weight(loaded.model).dtype)}
    return {"model": str(loaded.folder) if isinstance(model, str | Path) else "", **about, **found}


def require_harness() -> None:
    """Raise ConfigError if lm-evaluation-harness is not installed, or too old."""
    found = find_version("lm_eval")
    if found is None or Version(found) < Version(OLDEST):
        what = "none" if found is None else found
        raise ConfigError(f"tasks: need lm-eval {OLDEST} or newer, found {what} (pip install 'transformer-zoo[evals]')")


def load(model: str | Path | Model, tokenizer: str | Path | None, how: dict[str, Any], note: Tell) -> Loaded:
    """Load the model of a folder, or wrap a given model. Raises ConfigError for a model that does not generate text."""
    if isinstance(model, str | Path):
        check_model(store.load_spec(model))
        return loading.load(model, rows=ROWS, note=note, **how)
    check_model(model.spec)
    if tokenizer is None:
        raise ConfigError("tokenizer: a model alone does not read text (pass its tokenizer.json)")
    if changed := [name for name, value in how.items() if value is not None and name != "device"]:
        raise ConfigError(f"{changed[0]}: the model is given, and stays as it is (a folder, or convert the model)")
    return Loaded(model, Tokenizer.load(tokenizer), (), Path(tokenizer))


def settle_context(spec: Topology, context: int | None) -> int:
    """Choose the maximum number of tokens that the model reads at once. Raises ConfigError for a `context` of fewer
    than 2 tokens, or of more than the model's length."""
    most = longest_text(spec)
    if context is not None and not 2 <= context <= most:
        raise ConfigError(f"context: is {context}, not a whole number from 2 to {most}, the model's length")
    return context or most
