"""Collect what a model's page shows: its figures from `price`, its cache by engine, the GPUs that hold it, its YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from zoo.compose.composing import Composed
from zoo.compose.targets import compose_model, find_target, is_file, spec_of_composed, to_plain_yaml
from zoo.costs.price import price
from zoo.costs.setup import Setup
from zoo.paths import conf_dir


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """A model's place in the gallery: its `name` is that of its page, `target` what a command is given."""

    name: str
    target: str
    about: Mapping[str, Any]
    spec: Any
    figures: Mapping[str, Any]
    yaml: str

    @property
    def title(self) -> str:
        return str(self.about.get("title", self.name))

    @property
    def note(self) -> str:
        """What is special about it."""
        return str(self.about.get("note", ""))

    @property
    def place(self) -> str:
        """The path of its page within the site."""
        return f"models/{self.name}.html"


def collect_model(target: str, about: Mapping[str, Any]) -> ModelFacts:
    """Collect the facts of a packaged model, or of a file or folder that the user named. Raises ConfigError for a model
    that cannot be read."""
    composed = compose_model(target)
    spec = spec_of_composed(composed)
    name = find_target(target).label.rpartition("/")[2] if is_file(target) else target
    return ModelFacts(name, target, about, spec, price(spec, Setup()), _read_yaml(target, composed))


def _read_yaml(target: str, composed: Composed) -> str:
    """Read a packaged model's file with its comments. Of another model, write what a person would."""
    if is_file(target):
        return to_plain_yaml(composed.cfg)
    text = (conf_dir() / "model" / f"{target}.yaml").read_text(encoding="utf-8")
    return text.partition("\n")[2] if text.startswith("# yaml-language-server") else text
