"""Make the pages of `zoo explain` on verdicts, experiments and ladders, from docstrings of modules and classes."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any, NamedTuple

from zoo.analysis.scaling import ladder_sizes, optimal_speedup
from zoo.analysis.verdict import comparison, power, speedup, spending, worst_rank
from zoo.experiments.experiment import Expectation, Experiment
from zoo.ladder import climbing, rate_tuning
from zoo.spec.fields import read_docstrings


class WordPage(NamedTuple):
    """A page: the words that lead to it (its name first), the modules or classes whose docstrings are its text, and an
    example. The text has all paragraphs of a docstring; for a class also the docstrings of its fields."""

    words: tuple[str, ...]
    sources: tuple[ModuleType | type, ...]
    example: str = "zoo experiment FILE --run"


EXPERIMENT = WordPage(("experiment", "arm"), (Experiment, Expectation))
PAGES = (
    WordPage(("verdict", "better", "worse", "equivalent", "equivalence", "inconclusive"), (comparison,)),
    WordPage(("power", "detectable"), (power,), "zoo experiment FILE --plan"),
    WordPage(("looks",), (spending,), "seeds: [3, 6, 10] in an experiment's FILE"),
    WordPage(("diverged",), (worst_rank,)),
    WordPage(
        ("speedup", "compute-optimal"),
        (speedup, optimal_speedup),
        "zoo report FOLDER --fit fit.json; zoo ladder MODEL --arm NAME=OVERRIDES",
    ),
    WordPage(("ladder", "rung"), (climbing, ladder_sizes, rate_tuning), "zoo ladder MODEL --plan"),
    EXPERIMENT,
)


def explain_word(name: str) -> dict[str, Any] | None:
    """Make the page of a word or of a key in an experiment's file, in the form of a training setting's page. None for
    other names."""
    page = next((each for each in PAGES if name in each.words), None)
    if page is not None:
        text, *values = (line for source in page.sources for line in _list_lines(source))
        return {"page": "setting", "name": page.words[0], "text": text, "values": values, "example": page.example}
    told = [fields[name] for each in (Experiment, Expectation) if name in (fields := read_docstrings(each))]
    if not told:
        return None
    made = {"page": "setting", "name": name, "text": told[0], "values": told[1:], "example": EXPERIMENT.example}
    return {**made, "also": [EXPERIMENT.words[0], PAGES[0].words[0]]}


def _list_lines(source: ModuleType | type) -> list[str]:
    """List a docstring's paragraphs, without indented lists of files, and a line per documented field of a class."""
    paragraphs = (inspect.getdoc(source) or "").split("\n\n")
    lines = [" ".join(each.split()) for each in paragraphs if not each.startswith(" ")]
    fields = read_docstrings(source) if isinstance(source, type) else {}
    return [*lines, *(f"{key}: {told}" for key, told in fields.items())]
