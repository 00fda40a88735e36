"""Collect the facts of an axis' page: its choices with papers, formulas, growth, fields and users."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from zoo.analysis.grammar_names import describe_page, key_sentence
from zoo.grammar.vocabulary import AxisChoice, read_choices


@dataclasses.dataclass(frozen=True)
class AxisFacts:
    """An axis: its description, and for each choice its page of `zoo explain` with the class docstring (`more`)."""

    name: str
    what: str
    choices: list[Mapping[str, Any]]

    @property
    def place(self) -> str:
        """Path of the axis' page within the site."""
        return f"axes/{self.name}.html"


def collect_axis(name: str, shown: Collection[str]) -> AxisFacts:
    """Collect the facts of an axis, most used choices first. Of the packaged models with a choice, only those in
    `shown` are listed."""
    pages = [_describe(choice, shown) for choice in read_choices(name).values()]
    return AxisFacts(name, key_sentence(name), sorted(pages, key=lambda each: (-len(each["models"]), each["word"])))


def _describe(choice: AxisChoice, shown: Collection[str]) -> dict[str, Any]:
    found, text = describe_page(choice), inspect.getdoc(choice.spec) or ""
    grown = dict.fromkeys(("looks", "time", "token", "cache"), "")  # of a node or a whole model they are not known
    more = [part.rstrip() for part in text.split("\n\n")]
    models = [name for name in found["models"] if name in shown]
    return {**grown, **found, "word": choice.word, "more": more, "models": models}
