"""Make the pages of `zoo explain` on verdicts, experiments and ladders, from docstrings of modules and classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from zoo.analysis.scaling import ladder_sizes, optimal_speedup
from zoo.analysis.verdict import comparison, power, speedup, spending, worst_rank
from zoo.analysis.verdict.rate_optimum import TOLERANCE
from zoo.experiments import registration
from zoo.experiments.experiment import Expectation, Experiment
from zoo.ladder import climbing, rate_tuning
from zoo.probes.card import LEGEND
from zoo.report.rate_table import WINDOW
from zoo.spec.fields import read_docstrings
from zoo.training.setting_pages import make_page

CARD = {(parts := line.partition(": "))[0]: parts[2] for line in LEGEND}


class WordPage(NamedTuple):
    """A page: the words that lead to it (its name first), their meaning, and by heading the sources of further
    paragraphs: a text, or an object with a docstring. The first line of a module's or function's docstring is left out,
    because it says what the code does. A class's docstring is followed by its fields'."""

    words: tuple[str, ...]
    text: str
    sources: Mapping[str, object] = MappingProxyType({})
    example: str = "zoo experiment FILE --run"
    also: tuple[str, ...] = ()


EXPERIMENT = WordPage(
    ("experiment", "arm"),
    "A comparison of named arms, written down in a YAML file before it runs: `zoo experiment FILE`.",
    {"": Experiment, "an entry of expect": Expectation},
)
PAGES = (
    WordPage(
        ("verdict", "better", "worse", "equivalent", "equivalence", "inconclusive", "holm"),
        "What runs show of an arm against another: better, worse, equivalent within a margin, or inconclusive.",
        {"": comparison},
    ),
    WordPage(
        ("power", "detectable"),
        "The chance that a true difference of some size is found significant; plans and verdicts ask for 0.8.",
        {"": power},
        "zoo experiment FILE --plan",
    ),
    WordPage(
        ("looks", "look"),
        "The numbers of seeds at which an experiment is judged, if it adds seeds until it is decided.",
        {"": spending},
        "seeds: [3, 6, 10]",
    ),
    WordPage(("diverged",), "Said of a run whose loss stopped being a number.", {"": worst_rank}),
    WordPage(
        ("speedup", "effective speedup", "compute-optimal", "compute-optimal speedup"),
        "How many times the variant's cost the baseline needs for the variant's loss; 1.2 is a fifth more.",
        {"effective speedup": speedup, "compute-optimal speedup": optimal_speedup},
        "zoo report FOLDER --fit fit.json; zoo ladder MODEL --arm NAME=OVERRIDES",
    ),
    WordPage(
        ("ladder", "rung"),
        "One architecture trained at several sizes (rungs) by one rule, for a scaling law.",
        {"held out": climbing, "sizes": ladder_sizes, "learning rate (--tune)": rate_tuning},
        "zoo ladder MODEL --plan",
    ),
    WordPage(
        ("registration", "registered", "late"),
        "What an experiment writes down before its first run: arms, budget and expectations.",
        {"": registration},
    ),
    WordPage(
        ("pareto", "pareto front"),
        "The arms that no other arm of equal or lower cost beats in the metric; there is a front for each cost.",
        {"": comparison.find_front},
        "zoo report FOLDER --json",
    ),
    WordPage(
        (WINDOW, "window of good rates"),
        "How wide the good learning rates are, in decades. What is good differs between experiments and probes.",
        {
            "experiments, tuned": f"a loss within {100 * TOLERANCE:g} % of the best; ≥ if an end was not reached.",
            "cards of probes": CARD[WINDOW].removeprefix("decades of learning rate with "),
        },
        f"expect: [{{arm: normed, against: plain, metric: {WINDOW}, verdict: better}}]",
        ("probe", "experiment"),
    ),
    WordPage(
        ("reach", "scaled"),
        "Metrics of an experiment of a probe, like `accuracy`.",
        {
            "reach": f"{CARD['reaches'].partition(',')[0]}, for each seed.",
            "accuracy at LEVEL": "the share of right answers at a level of the probe.",
            "scaled at LEVEL": "(accuracy − guess) ÷ (1 − guess): 0 is a guess, 1 all right.",
        },
        "metric: reach",
        ("probe", "experiment"),
    ),
    EXPERIMENT,
)

EXAMPLES = {
    "arms": "arms: {plain: '', gated: attention.gate=true}",
    "shared": "shared: model=llama-tiny steps=300",
    "minutes": "minutes: 30",
    "baseline": "baseline: plain",
    "seeds": "seeds: 5",
    "tune": "tune: true",
    "match": "match: flops",
    "match_by": "match_by: model.ffn.d_ff",
    "matched": "matched: [params, flops]",
    "measure": "measure: {long: {context: 512, stride: 64}}",
    "metric": "metric: val_loss",
    "higher": "higher: true",
    "margin": "margin: 0.02",
    "withdrawn": "withdrawn: the arms' rates were not searched",
    "sigma": "sigma: 0.01",
    "expect": "expect: [{arm: gated, against: plain, verdict: better}]",
    "against": "expect: [{arm: gated, against: plain, verdict: any}]",
    "effect": "expect: [{arm: gated, against: plain, verdict: better, effect: -0.04}]",
    "cost": "expect: [{arm: gated, against: plain, cost: params, at_most: 1.02}]",
}
"""A line of an experiment's file for each key that has a page."""


def explain_word(name: str) -> dict[str, Any] | None:
    """Describe a word, or a key of an experiment's file, as a page like a training setting's; None for other names."""
    page = next((each for each in PAGES if name.lower() in each.words), None)
    if page is not None:
        values = [line for heading, source in page.sources.items() for line in _list_lines(heading, source)]
        also = {"also": [*page.also]} if page.also else {}
        return make_page(page.words[0], page.text, page.example, values) | also
    told = [fields[name] for each in (Experiment, Expectation) if name in (fields := read_docstrings(each))]
    if not told:
        return None
    return make_page(name, told[0], EXAMPLES[name], told[1:]) | {"also": [EXPERIMENT.words[0], PAGES[0].words[0]]}


def _list_lines(heading: str, source: object) -> list[str]:
    """List the paragraphs of a source below its heading, without lists of files, and a line for each documented field
    of a class."""
    paragraphs = (source if isinstance(source, str) else inspect.getdoc(source) or "").split("\n\n")
    said = paragraphs if isinstance(source, str | type) else paragraphs[1:]
    lines = [" ".join(each.split()) for each in said if not each.startswith((" ", "FOLDER/"))]
    fields = read_docstrings(source) if isinstance(source, type) else {}
    return [
        ": ".join(filter(None, (heading, lines[0]))),
        *lines[1:],
        *(f"{key}: {told}" for key, told in fields.items()),
    ]
