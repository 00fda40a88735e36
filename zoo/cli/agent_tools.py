"""Define the tools of `zoo mcp`: each calls the Python API, and returns what the verb's `--json` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from zoo.errors import ConfigError

Data = dict[str, Any]
Setting = Mapping[str, Any] | None


def list_models(words: list[str] | None = None, kind: str | None = None, parts: list[str] | None = None) -> list[Data]:
    """List the packaged models that match: name, kind, exact parameters, source and special features.

    `words` are searched in name, title, note and source; `parts` are choices or fields such as moe, mla, qk_norm.
    """
    from zoo.compose.catalogue import Selection, read_models, select_models

    return select_models(read_models(), Selection(words or (), kind, parts or ()))


def explain(name: str) -> Data:
    """Explain a name of the YAML grammar: an axis (attention), a choice (attention.gqa), a field of one, a key of a
    model or of training. Gives types, defaults, papers, which models use it, and an example."""
    from zoo.cli.explain import explain_name

    return explain_name(name)


def price(model: str, overrides: list[str] | None = None, setup: Setting = None) -> Data:
    """Price a model without building it: parameters, FLOPs, KV cache and memory, exact.

    `overrides` change it: attention=mqa, n_layers=4, norm.eps=1e-5, position=alibi.
    """
    import zoo

    return zoo.stats(model, overrides or (), **(setup or {}))


def diff(model: str, other: str, overrides: list[str] | None = None, setup: Setting = None) -> Data:
    """Compare two models: the fields in which their architectures differ, and each figure of both."""
    import zoo

    return zoo.diff(model, other, overrides or (), **(setup or {}))


def solve(
    question: Literal["batch", "context", "gpu", "shape"],
    model: str,
    overrides: list[str] | None = None,
    gpu: str | None = None,
    params: float | None = None,
    train: bool = False,
    setup: Setting = None,
) -> Any:
    """Search on exact prices, for generation or with `train` for training. The question is the largest `batch` or
    `context` that fits a `gpu`, how many of each GPU (or of `gpu`) hold the model, or `shape`s of the model with about
    `params` parameters."""
    from zoo.analysis import solve as search
    from zoo.api import make_setup
    from zoo.cli.solve import Usable
    from zoo.compose import load
    from zoo.costs.hardware import list_gpus

    usable, priced = Usable(), make_setup(setup or {})
    if question == "shape":
        return search.solve_shapes(model, overrides or [], search.ShapeBudget(params=params), priced, train=train)
    spec = load(model, overrides or ())
    if question == "gpu":
        rooms = [usable.of(each) for each in ([gpu] if gpu else list_gpus())]
        return search.find_fewest_gpus(spec, priced, rooms, train=train)
    if gpu is None:
        raise ConfigError(f"gpu: says what the {question} must fit on (one of: {', '.join(list_gpus())})")
    largest = search.find_largest_batch if question == "batch" else search.find_largest_context
    return largest(spec, priced, usable.of(gpu), train=train)


def draw(model: str, overrides: list[str] | None = None) -> str:
    """Draw a model's architecture as an SVG: its stack, layers, attention, experts, and the cost of each part."""
    from zoo.compose import load
    from zoo.drawing.contents import plan_model
    from zoo.drawing.model_figure import draw_model
    from zoo.drawing.vector import write_svg

    return write_svg(draw_model(plan_model(load(model, overrides or ()), model)))


def plan_experiment(arms: dict[str, str], shared: str = "", design: Setting = None) -> Data:
    """Plan a comparison of architectures without running it: cost of each arm, and the smallest difference that its
    seeds can detect.

    `arms` are names with overrides, the baseline first: {"plain": "", "qk_norm": "model.attention.qk_norm=rmsnorm"}.
    `shared` are overrides of all runs: "model=llama-tiny steps=300". `design` has keys of an experiment's file:
    {"seeds": 5, "tune": true, "margin": 0.01}.
    """
    from zoo.cli.experiment import foresee
    from zoo.experiments.looking import FOLDER

    outlook, _, blind, _ = foresee(_make(arms, shared, design), FOLDER / "mcp", measure=False)
    return {**outlook.to_dict(), "cannot_see": blind}


def read_report(folder: str, metric: str | None = None, margin: float | None = None) -> Data:
    """Judge the runs in a folder (a sweep or an experiment): which arms are better, worse, equivalent within `margin`,
    or inconclusive, with intervals, and what would decide it."""
    from zoo.experiments.looking import report_folders

    made, unfinished = report_folders([Path(folder)], None, metric, margin)
    return {**made.to_dict(), "hints": made.hints(), "unfinished": unfinished}


def run_experiment(arms: dict[str, str], folder: str, shared: str = "", design: Setting = None) -> Data:
    """Train the arms of an experiment with all seeds into a folder, and judge them. Runs that have ended are not run
    again. Takes as long as `plan_experiment` says: plan first."""
    from dataclasses import asdict

    from zoo.cli.observing import PrintingObserver
    from zoo.experiments.looking import judge_in_folder

    where = Path(folder)
    return asdict(judge_in_folder(where.name, _make(arms, shared, design), where, True, PrintingObserver()).outcome)


def _make(arms: dict[str, str], shared: str, design: Setting) -> Any:
    from zoo.experiments.experiment import make_experiment

    return make_experiment({**(design or {}), "arms": arms, "shared": shared.split()}, Path("experiment"))


Tools = tuple[Callable[..., Any], ...]

READING: Tools = (list_models, explain, price, diff, solve, draw, plan_experiment, read_report)
WRITING: Tools = (run_experiment,)
"""Tools that write files, or train: offered with --allow-write."""
