"""Read recipes: YAML files with the arms of an experiment, the expected results, and their source."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from zoo.analysis.verdict import Verdict
from zoo.compose.gate import check_overrides
from zoo.compose.sources import StatedFile, locate_faults
from zoo.errors import ConfigError, did_you_mean
from zoo.paths import recipes_dir
from zoo.report.arms import CURRENCIES
from zoo.untrusted.yaml_file import parse_yaml

if TYPE_CHECKING:
    from zoo.ladder import LadderRequest

Seeds = Annotated[int, Field(ge=2)]
"""The number of seeds. One seed has no spread, so that no test is possible."""


def _name_no_code(overrides: list[str]) -> list[str]:
    """Raise ValueError for overrides that name code, which only a person may type."""
    try:
        check_overrides(overrides, "overrides")
    except ConfigError as error:
        raise ValueError(error.faults[0].removeprefix("overrides: ")) from None
    return overrides


Overrides = Annotated[list[str], AfterValidator(_name_no_code)]
"""The overrides of a recipe. They are data and name no code."""


class Strict(BaseModel):
    """A part of a recipe. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Expectation(Strict):
    """An expectation of an arm: either a verdict `against` another arm, or bounds (`at_least`, `at_most`). Bounds limit
    the arm's metric in every run. With `against` they limit its difference from the other arm with every seed, and with
    a `cost` as well the ratio of both arms' costs. `paper` is the source's figure."""

    arm: str
    against: str | None = None
    metric: str | None = None
    """The metric, if not the recipe's."""
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
    """A loss that is measured after training over the whole validation split of a run: in windows of `context` tokens
    that begin `stride` tokens apart, or by another objective (`overrides` of `zoo eval`)."""

    context: PositiveInt | None = None
    stride: PositiveInt | None = None
    overrides: Overrides = []


class Modelled(Strict):
    """Runs that start from a model rather than from a training config."""

    model: str = "llama-tiny"

    def split_model(self, overrides: list[str]) -> tuple[str, list[str]]:
        """Split overrides into the model named by `model=` (default: `self.model`), and the other overrides."""
        named = [each.removeprefix("model=") for each in overrides if each.startswith("model=")]
        return (named or [self.model])[-1], [each for each in overrides if not each.startswith("model=")]


class Laddering(Modelled):
    """A ladder (`zoo ladder`) of each arm in place of single runs: the loss of its largest size is predicted from the
    other sizes before it is trained. Its metrics are those of `zoo.experiments.laddering`."""

    sizes: Annotated[int, Field(ge=4)] = 5
    smallest: PositiveFloat | None = None
    largest: PositiveFloat | None = None
    tokens_per_param: PositiveFloat = 20.0

    def request(self, overrides: list[str]) -> LadderRequest:
        """Make the request for the ladder with these overrides."""
        from zoo.ladder import LadderRequest

        model, rest = self.split_model(overrides)
        rungs = self.model_dump(exclude={"model"})
        return LadderRequest(model=model, overrides=tuple(rest), **rungs)


class Probing(Modelled):
    """A probe (`zoo probe`) in place of training on text: every arm is shrunk to the probe's size. Its first seed is
    trained at each learning rate of `rates` (None: those of `zoo probe`), the other seeds at the best one. The metrics
    are `reach`, and those of a level, such as `accuracy at 16`."""

    name: str
    size: Literal["card", "small"] = "card"
    settings: dict[str, Any] = {}
    rates: list[PositiveFloat] | None = None

    def list_settings(self) -> dict[str, Any]:
        """Give all settings of the probe, defaults included."""
        from zoo.probes.all_probes import make_probe

        return make_probe(self.name, self.size, self.settings).settings()


class RecipeForm(Strict):
    """A form of a recipe, whole or short: further `overrides` of every run, its `probe` or `ladder`, its seeds, and its
    expectations. A short form should state bounds, not verdicts: two seeds of twenty steps tell nothing at 5 %."""

    overrides: Overrides = []
    probe: Probing | None = None
    ladder: Laddering | None = None
    seeds: Seeds = 2
    expect: list[Expectation] = []


class Recipe(Strict):
    """An experiment. Its runs start from `config`, a file of recipes/configs/, or are those of a `probe` or `ladder`.
    An arm is a list of overrides in addition to the `shared` ones; the first arm is the baseline."""

    claim: str
    source: str
    notes: str = ""
    minutes: PositiveInt
    """Upper bound of the minutes that the whole recipe takes on two cores."""
    config: str | None = None
    probe: Probing | None = None
    ladder: Laddering | None = None
    shared: Overrides = []
    arms: Annotated[dict[str, Overrides], Field(min_length=2)]
    seeds: Seeds = 3
    matched: list[Literal["params", "tokens", "flops", "cache_bytes"]] = []
    """The costs in which all arms are within 1 % of the first."""
    measure: dict[str, Measure] = {}
    """Further metrics that are measured after each run, by name."""
    metric: str = "val_loss"
    """A figure of a run's result, or a name of `measure`."""
    higher: bool = False
    """Whether a higher metric is better."""
    expect: Annotated[list[Expectation], Field(min_length=1)]
    short: RecipeForm = RecipeForm()

    @model_validator(mode="after")
    def expects_of_its_arms(self) -> Recipe:
        named = {name for each in (*self.expect, *self.short.expect) for name in (each.arm, each.against) if name}
        if unknown := sorted(named - self.arms.keys()):
            raise ValueError(f"expect: names {', '.join(unknown)}, and the arms are {', '.join(self.arms)}")
        if [self.config, self.probe, self.ladder].count(None) != 2:
            raise ValueError("config: a recipe trains by a config, or has a probe, or a ladder (one of the three)")
        if (self.probe is None) != (self.short.probe is None) or (self.ladder is None) != (self.short.ladder is None):
            raise ValueError("short: is of the same kind as the recipe (probe: {name: …, size: small}, ladder: {…})")
        if self.config is not None and not self.config_file().is_file():
            known = ", ".join(sorted(file.stem for file in self.config_file().parent.glob("*.yaml")))
            raise ValueError(f"config: there is no {self.config!r} (one of: {known})")
        return self

    def list_metrics(self, short_form: bool = False) -> list[str]:
        """List every metric that is measured or has an expectation, the recipe's own first. For a probe's form that
        compares only costs the list is `reach` alone: the small probe may lack the level of the recipe's metric."""
        form = self.form(short_form)
        unnamed = [each for each in form.expect if each.metric is None and (form.probe is None or each.cost is None)]
        own = [self.metric] if unnamed or not form.expect else []
        named = [each.metric for each in form.expect if each.metric]
        return list(dict.fromkeys([*own, *self.measure, *named])) or ["reach"]

    def form(self, short_form: bool) -> RecipeForm:
        """Give the whole form, or the short one."""
        whole = RecipeForm(probe=self.probe, ladder=self.ladder, seeds=self.seeds, expect=self.expect)
        return self.short if short_form else whole

    def key(self) -> str:
        """Hash everything that affects the results of the whole form, expectations left out. A verdict keeps the hash,
        so that a later change of the recipe is noticed."""
        ran = self.model_dump(include={"shared", "arms", "seeds", "metric", "measure", "probe"})
        config = None if self.config is None else self.config_file().read_text(encoding="utf-8")
        settings = None if self.probe is None else self.probe.list_settings()
        ladder = [] if self.ladder is None else [self.ladder.model_dump()]
        return hashlib.sha256(json.dumps([ran, config, settings, *ladder], sort_keys=True).encode()).hexdigest()[:12]

    def config_file(self) -> Path:
        """Give the file of the training config that all runs start from."""
        return recipes_dir() / "configs" / f"{self.config}.yaml"


def list_overrides(recipe: Recipe, arm: str, short_form: bool = False) -> list[str]:
    """List the overrides of an arm's runs, without the seed."""
    return [*recipe.shared, *recipe.arms[arm], *recipe.form(short_form).overrides]


def list_recipes() -> list[str]:
    """List the names of the packaged recipes."""
    return sorted(file.stem for file in recipes_dir().glob("*.yaml"))


def find_recipe(name: str) -> tuple[str, Recipe]:
    """Read a packaged recipe, or a file; return its name and the recipe. Raises ConfigError for an unknown name or a
    faulty file."""
    if name.endswith((".yaml", ".yml")):
        return Path(name).stem, read_recipe(Path(name))
    if name not in (known := list_recipes()):
        hint = did_you_mean(name, known) or f" (one of: {', '.join(known)}, or a file)"
        raise ConfigError(f"recipe: there is no {name!r}{hint}")
    return name, read_recipe(recipes_dir() / f"{name}.yaml")


def read_recipe(file: Path) -> Recipe:
    """Read a recipe's file. Raises ConfigError with all faults."""
    try:
        node: Any = parse_yaml(file)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file (a recipe)") from None
    try:
        return Recipe.model_validate(node)
    except ValidationError as error:
        faults = [(".".join(map(str, each["loc"])) or "recipe", _word(each["msg"])) for each in error.errors()]
        lines = locate_faults((f"{file}: {where}: {said}" for where, said in faults), [StatedFile(file, str(file))])
        raise ConfigError(*lines) from error


def _word(message: str) -> str:
    """Reword a message of pydantic's in the style of Zoo's errors."""
    said = message.removeprefix("Value error, ")
    return {"Field required": "is missing", "Extra inputs are not permitted": "no such key"}.get(said, said)
