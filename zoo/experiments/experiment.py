"""Read experiments: YAML files with named arms, matching and tuning, seeds, and the expected results."""

# ruff: noqa: RUF012 (pydantic copies the defaults of its models)

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, PositiveFloat, PositiveInt, ValidationError, model_validator

from zoo.analysis.verdict.comparison import Verdict
from zoo.compose.sources import StatedFile, locate_faults
from zoo.errors import ConfigError, did_you_mean, name_options, refuse
from zoo.experiments.arm_tasks import Laddering, Overrides, Probe, Probing, Strict
from zoo.paths import recipes_dir
from zoo.report.arms import CURRENCIES
from zoo.report.history import HIGHER, RESULTS
from zoo.report.rate_table import WINDOW
from zoo.untrusted.yaml_file import parse_yaml


def _read_looks(seeds: int | list[int]) -> int | list[int]:
    looks = seeds if isinstance(seeds, list) else [seeds]
    if not looks or min(looks) < 2:
        raise ValueError("one seed has no spread, so that no test is possible (2 or more)")
    if sorted(set(looks)) != looks:
        raise ValueError("the numbers of seeds at which to look increase (seeds: [3, 6, 10])")
    return seeds


PROBED = ("accuracy", "scaled", "reach")
"""The metrics of a probe of which more is better."""

Seeds = Annotated[int | list[int], AfterValidator(_read_looks)]
"""The number of seeds. Several numbers are looks: seeds are added until the verdict is clear, and the significance
level is spent over the looks (`zoo.analysis.verdict.spending`)."""


class Expectation(Strict):
    """An expected result of an arm: either a verdict `against` another arm, or bounds (`at_least`, `at_most`). Bounds
    limit the arm's metric in every run. With `against` they limit the difference from the other arm for every seed;
    with `against` and `cost`, the ratio of both arms' costs. `paper` is the paper's figure."""

    arm: str
    against: str | None = None
    """The arm that it is compared with."""
    metric: str | None = None
    """The metric; by default the recipe's. `lr window` is the width in decades of the window of good learning rates,
    where wider is better."""
    verdict: Literal[Verdict, "any"] | None = None
    """The expected verdict; `any` shows the comparison without an expectation."""
    cost: Literal[CURRENCIES] | None = None  # pyright: ignore[reportInvalidTypeForm]
    """The cost whose ratio to the other arm's the bounds limit."""
    at_least: float | None = None
    at_most: float | None = None
    margin: PositiveFloat | None = None
    """The margin of equivalence; by default the experiment's."""
    effect: float | None = None
    """The paper's difference in the metric. The plan says if the design is too small to detect it."""
    paper: str = ""

    @model_validator(mode="after")
    def says_one_thing(self) -> Expectation:
        bounds = self.at_least is not None or self.at_most is not None
        compares = self.verdict is not None or self.cost is not None
        if (self.verdict is None) != bounds:
            raise ValueError("says either a verdict, or at_least or at_most")
        if compares and self.against is None:
            raise ValueError("against: is missing (the arm with which this one is compared)")
        if self.metric == WINDOW and self.verdict is None:
            raise ValueError(f"metric: {WINDOW} is compared with another arm's (verdict: better)")
        return self


class Measure(Strict):
    """A loss that is measured after training over the whole validation split: in windows of `context` tokens that begin
    `stride` tokens apart, or with another objective (`overrides` of `zoo eval`)."""

    context: PositiveInt | None = None
    stride: PositiveInt | None = None
    overrides: Overrides = []


class ExperimentForm(Strict):
    """A form of a recipe, whole or short: further `overrides` of every run, the `probe` or `ladder`, seeds, and
    expectations. A short form should state bounds, not verdicts: two seeds of twenty steps are too few for
    significance."""

    overrides: Overrides = []
    probe: Probe | None = None
    ladder: Laddering | None = None
    seeds: Seeds = 2
    expect: list[Expectation] = []

    @property
    def looks(self) -> list[int]:
        """The numbers of seeds at which the results are judged."""
        return self.seeds if isinstance(self.seeds, list) else [self.seeds]


class Experiment(Strict):
    """An experiment: arms, and the design of their runs. An arm is a list of overrides, added to the `shared` ones.
    Runs train by `config`, a training YAML (a path, or a name in recipes/configs/; by default `zoo train`'s config).
    With a `probe` or `ladder`, the runs are the probe's or the ladder's."""

    claim: str = ""
    source: str = ""
    notes: str = ""
    minutes: PositiveInt | None = None
    """Upper bound of the minutes of the whole experiment on two cores."""
    config: str | None = None
    probe: Probe | None = None
    ladder: Laddering | None = None
    shared: Overrides = []
    """Overrides of all arms."""
    arms: dict[str, Overrides]
    """The overrides of each arm by its name: two arms or more."""
    baseline: str | None = None
    """The arm to which the others are matched and with which they are compared; by default the first."""
    seeds: Seeds = 3
    """The number of seeds of each arm; or several numbers, the looks at which the results are judged."""
    tune: bool | list[str] | dict[Literal["proxy"], Overrides] = False
    """Whether each arm's learning rate is searched before its seeds run, on a separate seed and separate data. A list
    names further numbers ([optim.weight_decay]), searched in turn after the rate, each at the values found before.
    {proxy: model.d_model=64 …} searches the rate on a narrower model, under muP."""
    match: str | None = None
    """The cost that is made equal over the arms before the runs (as `zoo train -m --match`)."""
    match_by: str | None = None
    """The dimension that is changed to make the cost `match` equal."""
    matched: list[Literal["params", "tokens", "flops", "cache_bytes"]] = []
    """The costs in which all arms are within 1 % of the first."""
    measure: dict[str, Measure] = {}
    """Further metrics, by name, that are measured after each run."""
    metric: str = "val_loss"
    """The metric that is compared: a figure of a run's result, or a name in `measure`."""
    higher: bool = False
    """Whether a higher metric is better. Of accuracies and levels it is, without being stated."""
    margin: PositiveFloat | None = None
    """The largest difference in the metric that does not matter. Without a margin no arm is called equivalent."""
    withdrawn: str = ""
    """Why the verdict no longer counts. The verdict's file is not deleted."""
    sigma: PositiveFloat | None = None
    """Standard deviation of the difference between two arms with the same seed, for the plan's power."""
    expect: list[Expectation] = []
    """The results that are expected, registered before the first run; each is of one arm. Without any, each arm is
    compared with the baseline."""
    short: ExperimentForm = ExperimentForm()

    @model_validator(mode="after")
    def expects_of_its_arms(self) -> Experiment:
        if len(self.arms) < 2:
            found = f"is one, {next(iter(self.arms))}" if self.arms else "are none"
            raise ValueError(f"arms: there {found} (two or more)")
        named = {name for each in (*self.expect, *self.short.expect) for name in (each.arm, each.against) if name}
        if unknown := sorted(named - self.arms.keys()):
            raise ValueError(f"expect: names {', '.join(unknown)}, and the arms are {', '.join(self.arms)}")
        if any(each.verdict == "equivalent" and self.find_margin(each) is None for each in self.expect):
            raise ValueError("expect: equivalent needs a margin (margin: 0.02, say)")
        if [self.config, self.probe, self.ladder].count(None) < 2:
            raise ValueError("config: an experiment trains by a config, or has a probe, or a ladder (one of the three)")
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(f"baseline: there is no arm {self.baseline!r}, and the arms are {', '.join(self.arms)}")
        if not self.trains and (
            self.tune or self.match or any(isinstance(each, list) for each in (self.seeds, self.short.seeds))
        ):
            raise ValueError("tune, match and looks: are for arms that train (a probe searches its own rates)")
        if (self.probe is None and self.short.probe) or (self.ladder is None and self.short.ladder):
            raise ValueError(f"short: has a {'probe' if self.short.probe else 'ladder'}, and the whole experiment none")
        for at, each in enumerate(self.expect):
            more = self.prefers_higher(each.metric)
            up = more == (each.verdict == "better")
            if each.effect and each.verdict in ("better", "worse") and (each.effect > 0) != up:
                way = f"{each.verdict} is a {'higher' if up else 'lower'} {each.metric or self.metric}"
                raise ValueError(
                    f"expect.{at}.effect: is {each.effect:+g}, and {way} ({-each.effect:+g}, or the other verdict)"
                )
        windows = [at for at, each in enumerate(self.expect) if each.metric == WINDOW]
        if windows and not self.tune:
            raise ValueError(f"expect.{windows[0]}.metric: {WINDOW} is measured by the search (add tune: true)")
        metrics = (*RESULTS, *self.measure, *([WINDOW] if self.tune else []))
        if unknown := [each for each in self.list_metrics() if self.trains and each not in metrics]:
            hint = name_options(unknown[0], metrics)
            raise ValueError(f"metric: a run has no {unknown[0]!r}{hint}")
        file = self.config_file()
        if file is not None and not file.is_file():
            known = ", ".join(sorted(each.stem for each in (recipes_dir() / "configs").glob("*.yaml")))
            raise ValueError(f"config: there is no {self.config!r} (a path, or one of: {known})")
        return self

    @property
    def trains(self) -> bool:
        """Whether the arms train on text, rather than on a probe or as ladders."""
        return self.probe is None and self.ladder is None

    def prefers_higher(self, metric: str | None) -> bool:
        """Whether more of a metric is better; None is the experiment's own."""
        name = (metric or self.metric).partition(" at ")[0]
        return name in (*HIGHER, *PROBED, WINDOW) or (self.higher and name != "loss")

    def find_margin(self, each: Expectation) -> float | None:
        """Return the margin of equivalence of an expectation: its own, or else the experiment's if both have the same
        metric."""
        return each.margin or (self.margin if each.metric in (None, self.metric) else None)

    def list_metrics(self, short_form: bool = False) -> list[str]:
        """List every metric that is measured or has an expectation, the recipe's own first. If a probe's short form
        compares only costs, the list is `reach` alone: the small probe may lack the level of the recipe's metric."""
        form = self.form(short_form)
        unnamed = [each for each in form.expect if each.metric is None and (form.probe is None or each.cost is None)]
        own = [self.metric] if unnamed or not form.expect else []
        named = [each.metric for each in form.expect if each.metric]
        return list(dict.fromkeys([*own, *self.measure, *named])) or ["reach"]

    def form(self, short_form: bool) -> ExperimentForm:
        """Return the short form or the whole one."""
        if not short_form:
            return ExperimentForm(probe=self.probe, ladder=self.ladder, seeds=self.seeds, expect=self.expect)
        task = {"probe": self.short.probe or self.probe, "ladder": self.short.ladder or self.ladder}
        return self.short.model_copy(update=task)

    def list_expectations(self, short_form: bool = False) -> list[Expectation]:
        """List the expectations. If there are none, list a comparison of each arm with the baseline (verdict `any`)."""
        first = self.first_arm()
        seen = [Expectation(arm=arm, against=first, verdict="any") for arm in self.arms if arm != first]
        return self.form(short_form).expect or seen

    def count_comparisons(self) -> int:
        """Count the expected verdicts, over which p-values are corrected. 0 if there are only bounds; the correction is
        then over the arms."""
        return sum(each.verdict is not None for each in self.list_expectations())

    def key(self) -> str:
        """Hash everything that affects the results of the whole form, except expectations. A verdict stores the hash,
        which shows whether the experiment has changed since."""
        ran = self.model_dump(include={"shared", "arms", "seeds", "metric", "measure", "probe"})
        ran |= self.model_dump(include={"baseline", "tune", "match", "match_by"}, exclude_defaults=True)
        config = None if (file := self.config_file()) is None else file.read_text(encoding="utf-8")
        settings = None if self.probe is None else self.probe.make().settings()
        ladder = [] if self.ladder is None else [self.ladder.model_dump()]
        return hashlib.sha256(json.dumps([ran, config, settings, *ladder], sort_keys=True).encode()).hexdigest()[:12]

    def config_file(self) -> Path | None:
        """Return the file of the runs' training config; None for `zoo train`'s default."""
        if self.config is None or self.config.endswith((".yaml", ".yml")):
            return None if self.config is None else Path(self.config)
        return recipes_dir() / "configs" / f"{self.config}.yaml"

    def first_arm(self) -> str:
        """Return the name of the baseline arm."""
        return self.baseline or next(iter(self.arms))


def list_overrides(recipe: Experiment, arm: str, short_form: bool = False) -> list[str]:
    """List the overrides of an arm's runs, without the seed."""
    return [*recipe.shared, *recipe.arms[arm], *recipe.form(short_form).overrides]


def list_recipes() -> list[str]:
    """List the names of the packaged recipes."""
    return sorted(file.stem for file in recipes_dir().glob("*.yaml"))


def find_recipe(name: str) -> tuple[str, Experiment]:
    """Read a packaged recipe or a file. Return its name and the experiment. Raises ConfigError for an unknown name or a
    faulty file."""
    file, node = read_node(name)
    return file.stem, make_experiment(node, file)


def read_recipe(file: Path) -> Experiment:
    """Read an experiment's file. Raises ConfigError with all faults."""
    return find_recipe(str(file))[1]


def read_node(name: str) -> tuple[Path, Any]:
    """Read the file of an experiment or packaged recipe as plain data, and return it with its path. The `config` path
    is made relative to the working directory, and so is a model's file that is found only next to the experiment's.
    Raises ConfigError for an unknown name, a missing or faulty file, and a missing model's file."""
    file = Path(name)
    if not name.endswith((".yaml", ".yml")):
        if name not in (known := list_recipes()):
            hint = did_you_mean(name, known) or f" (one of: {', '.join(known)}, or a file)"
            raise ConfigError(f"recipe: there is no {name!r}{hint}")
        file = recipes_dir() / f"{name}.yaml"
    try:
        node: Any = parse_yaml(file)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file (an experiment)") from None
    if isinstance(node, dict) and str(node.get("config", "")).endswith((".yaml", ".yml")):
        node["config"] = str(file.parent / node["config"])
    return file, place_models(node, file) if isinstance(node, dict) else node


def place_models(node: dict[str, Any], file: Path) -> dict[str, Any]:
    """Replace each `model=FILE` in `shared` and in the arms by an existing path: in the working directory, or else next
    to `file`. Raises ConfigError for a missing file."""
    faults: list[str] = []

    def place(overrides: Any, key: str) -> Any:
        if isinstance(overrides, list):
            return [place(each, key) for each in overrides]
        if not isinstance(overrides, str):
            return overrides
        return re.sub(r"(?<!\S)model=(\S+\.ya?ml)", lambda word: find(word[1], key), overrides)

    def find(name: str, key: str) -> str:
        beside = file.parent / name
        if not Path(name).exists() and not beside.exists():
            faults.append(f"{file}: {key}: model={name}: no such file, nor beside {file.name}")
        return f"model={name if Path(name).exists() else beside}"

    placed = {"shared": place(node["shared"], "shared")} if "shared" in node else {}
    if isinstance(arms := node.get("arms"), dict):
        placed["arms"] = {name: place(each, f"arms.{name}") for name, each in arms.items()}
    refuse(locate_faults(faults, [StatedFile(file, str(file))]))
    return node | placed


def make_experiment(node: Any, file: Path) -> Experiment:
    """Make an experiment from plain data. Raises ConfigError with all faults, each with its line in the file."""
    try:
        return Experiment.model_validate(node)
    except ValidationError as error:
        said = (f"{file}: {fault}" for fault in _describe_faults(error, node))
        raise ConfigError(*locate_faults(said, [StatedFile(file, str(file))])) from error


_PARTS: dict[str, type[Strict]] = {
    "expect": Expectation,
    "measure": Measure,
    "probe": Probing,
    "ladder": Laddering,
    "short": ExperimentForm,
}
"""The classes of an experiment's parts, by key."""


def _describe_faults(error: ValidationError, node: Any) -> Iterator[str]:
    """Describe each faulty key once, although pydantic reports a fault for every type that the key may have."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for each in error.errors():
        found.setdefault(find_place(each["loc"], node, absent=each["type"] == "missing"), []).append(each)
    for place, faults in found.items():
        key, item, kind = ".".join(place), faults[0], faults[0]["type"]
        would = list(dict.fromkeys(filter(None, map(say_wanted, faults))))
        if kind == "extra_forbidden":
            part = next((_PARTS[each] for each in reversed(place[:-1]) if each in _PARTS), Experiment)
            said = f"no such key{did_you_mean(place[-1], part.model_fields)}"
        elif would:
            hint = did_you_mean(str(item["input"]), re.findall("'([^']*)'", item.get("ctx", {}).get("expected", "")))
            said = f"is {item['input']!r}" + (hint or f" ({', or '.join(would)})")
        else:
            said = "is missing" if kind == "missing" else item["msg"].removeprefix("Value error, ")
        yield f"{key}: {said}" if key else said


def find_place(loc: tuple[Any, ...], node: Any, absent: bool) -> tuple[str, ...]:
    """Return the path of a faulty key in the file. Names of types, which pydantic adds, are removed."""
    place: list[str] = []
    for each in loc:
        inside = each in node if isinstance(node, dict) else isinstance(node, list) and each in range(len(node))
        if inside:
            node, place = node[each], [*place, str(each)]
    return (*place, str(loc[-1])) if absent else tuple(place)


_WANTED = {"integer": "a whole number", "string": "a text", "boolean": "true or false", "dictionary": "a mapping"}


def say_wanted(item: Any) -> str:
    """Describe the values that a key accepts, from pydantic's fault. Empty for other sorts of faults."""
    if item["type"] == "literal_error":
        return "one of: " + ", ".join(re.findall("'([^']*)'", item["ctx"]["expected"]))
    if wanted := re.match(r"Input should be (?:a valid )?(\w+)(?: than (or equal to )?(.*))?", item["msg"]):
        least = f"{wanted[3]} or more" if wanted[2] else f"a number above {wanted[3]}"
        return least if wanted[3] else _WANTED.get(wanted[1], f"a {wanted[1]}")
    return ""
