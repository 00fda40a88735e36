"""Read recipes: YAML files that name the arms of an experiment, what to expect of them, and who says so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from zoo.analysis.verdict import Verdict
from zoo.errors import ConfigError, did_you_mean, short
from zoo.paths import recipes_dir
from zoo.report.arms import CURRENCIES

Seeds = Annotated[int, Field(ge=2)]
"""Fewer have no spread, and tell nothing."""


class Strict(BaseModel):
    """A part of a recipe: a key that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Expectation(Strict):
    """What is expected of an arm: a verdict against another arm, or bounds. Bounds are of its metric in every run, of
    its difference from another arm with every seed, or of a `cost` as a multiple of another arm's. `paper` is what the
    source prints."""

    arm: str
    against: str | None = None
    metric: str | None = None
    """In place of the recipe's."""
    verdict: Verdict | None = None
    cost: Literal[CURRENCIES] | None = None  # pyright: ignore[reportInvalidTypeForm]
    at_least: float | None = None
    at_most: float | None = None
    paper: str = ""

    @model_validator(mode="after")
    def says_one_thing(self) -> Expectation:
        bounds = self.at_least is not None or self.at_most is not None
        compares = self.verdict is not None or self.cost is not None
        if (self.verdict is None) != bounds or (compares and self.against is None):
            raise ValueError("says a verdict, or at_least or at_most; a verdict and a cost are against another arm")
        return self


class Measure(Strict):
    """A loss that is measured after training, over the run's whole validation split: in windows of `context` tokens
    that begin `stride` apart, or by another objective (`overrides`, as `zoo eval` takes them)."""

    context: PositiveInt | None = None
    stride: PositiveInt | None = None
    overrides: list[str] = []


class Form(Strict):
    """How long a recipe runs, and what is expected of that: `overrides` of every run, and its seeds."""

    overrides: list[str] = []
    seeds: Seeds = 2
    expect: list[Expectation] = []


class Recipe(Strict):
    """An experiment. Its runs start from `config`, a file of recipes/configs/. An arm is a list of overrides on top of
    the `shared` ones; the first arm is the baseline."""

    claim: str
    source: str
    notes: str = ""
    minutes: PositiveInt
    """What the whole of it takes on two cores, at most."""
    config: str
    shared: list[str] = []
    arms: Annotated[dict[str, list[str]], Field(min_length=2)]
    seeds: Seeds = 3
    matched: list[Literal["params", "tokens", "flops", "cache_bytes"]] = []
    """The costs in which all arms are within 1 % of the first."""
    measure: dict[str, Measure] = {}
    """What else is measured of every run, by name."""
    metric: str = "val_loss"
    """A figure of a run's result, or one that is measured."""
    higher: bool = False
    """More of the metric is better."""
    expect: Annotated[list[Expectation], Field(min_length=1)]
    short: Form = Form()

    @model_validator(mode="after")
    def expects_of_its_arms(self) -> Recipe:
        named = {name for each in (*self.expect, *self.short.expect) for name in (each.arm, each.against) if name}
        if unknown := sorted(named - self.arms.keys()):
            raise ValueError(f"expect: names {', '.join(unknown)}, and the arms are {', '.join(self.arms)}")
        if not self.config_file().is_file():
            known = ", ".join(sorted(file.stem for file in self.config_file().parent.glob("*.yaml")))
            raise ValueError(f"config: there is no {self.config!r} (one of: {known})")
        return self

    def list_metrics(self) -> list[str]:
        """Every metric that something is expected of, the recipe's own first."""
        named = [each.metric for each in (*self.expect, *self.short.expect) if each.metric]
        return list(dict.fromkeys([self.metric, *self.measure, *named]))

    def form(self, short_form: bool) -> Form:
        """The whole experiment, or its short form."""
        return self.short if short_form else Form(seeds=self.seeds, expect=self.expect)

    def key(self) -> str:
        """A hash of what runs: that of a verdict tells whether the recipe has changed since."""
        ran = self.model_dump(include={"shared", "arms", "seeds", "metric", "measure"})
        config = self.config_file().read_text(encoding="utf-8")
        return hashlib.sha256(json.dumps([ran, config], sort_keys=True).encode()).hexdigest()[:12]

    def config_file(self) -> Path:
        """The training config that all runs start from."""
        return recipes_dir() / "configs" / f"{self.config}.yaml"


def list_overrides(recipe: Recipe, arm: str, short_form: bool = False) -> list[str]:
    """The overrides of every run of an arm, its seed left out."""
    return [*recipe.shared, *recipe.arms[arm], *recipe.form(short_form).overrides]


def list_recipes() -> list[str]:
    """The names of the packaged recipes."""
    return sorted(file.stem for file in recipes_dir().glob("*.yaml"))


def find_recipe(name: str) -> tuple[str, Recipe]:
    """Read a packaged recipe, or a file; gives its name too. Raises ConfigError."""
    if name.endswith((".yaml", ".yml")):
        return Path(name).stem, read_recipe(Path(name))
    if name not in (known := list_recipes()):
        hint = did_you_mean(name, known) or f" (one of: {', '.join(known)}, or a file)"
        raise ConfigError(f"recipe: there is no {name!r}{hint}")
    return name, read_recipe(recipes_dir() / f"{name}.yaml")


def read_recipe(file: Path) -> Recipe:
    """Read a recipe's file. Raises ConfigError with all faults."""
    try:
        node: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read, found {short(error)} (a recipe)") from error
    try:
        return Recipe.model_validate(node)
    except ValidationError as error:
        faults = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]
        raise ConfigError(*(f"{file}: {where or 'recipe'}: {said}" for where, said in faults)) from error
