"""Collect the facts of a model's page: figures from `price`, cache by engine, GPUs that can hold the model, YAML."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.analysis.compare import flatten, pattern_text
from zoo.analysis.explain.cache import list_cache_lines
from zoo.analysis.explain.parameters import list_parameter_lines
from zoo.analysis.explain.terms import trace_spec
from zoo.analysis.holding import LADDER
from zoo.analysis.solve.gpus import count_sequences
from zoo.compose.composing import Composed
from zoo.compose.targets import compose_model, is_file, spec_of_composed, to_plain_yaml
from zoo.costs.cache_sizes import kv_cache
from zoo.costs.price import price
from zoo.costs.rows import tabulate
from zoo.costs.setup import ENGINES, Setup
from zoo.drawing.contents import ModelPlan, plan_model
from zoo.drawing.folding import Fold
from zoo.gallery.family_facts import FamilyFacts, find_family, find_year, read_notes, trace_lineage
from zoo.grammar import to_dict
from zoo.paths import conf_dir
from zoo.report.glance import list_first_figures

SHORTEST = 128
"""Shortest context of a curve, in tokens. The following ones double, up to the model's own."""

SERVED = 8192
"""Context, in tokens, for which a GPU's largest batch is computed, in addition to the model's own context."""


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """A model in the gallery. `name` is the name of its page, `target` its name on the command line."""

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
        """A note on the model's special features; "" if there is none."""
        return str(self.about.get("note", ""))

    @property
    def source(self) -> str:
        return str(self.about.get("source", ""))

    @property
    def year(self) -> int | None:
        """The year in the model's source. None without a year, or if the model only follows a published recipe."""
        return None if "the recipe of" in self.source else find_year(self.source)

    @property
    def kind(self) -> str:
        return self.spec.kind.replace("_", "-")

    @property
    def place(self) -> str:
        """Path of the model's page within the site."""
        return f"models/{self.name}.html"

    @property
    def family(self) -> FamilyFacts | None:
        return find_family(self.target)

    @property
    def lineage(self) -> list[FamilyFacts]:
        return [] if self.family is None else trace_lineage(self.family)

    @property
    def patterns(self) -> dict[str, str]:
        """Number and pattern of layers, by tower."""
        return {tower.where: _say_pattern(tower.folds) for tower in self.plan.towers}

    @property
    def depths(self) -> str:
        """Number of layers of each tower: `12 + 12`."""
        return " + ".join(str(len(tower.pattern)) for tower in self.spec.towers().values())

    @property
    def depth(self) -> int:
        return sum(len(tower.pattern) for tower in self.spec.towers().values())

    @property
    def generates(self) -> bool:
        return "kv_cache" in self.figures["memory"]

    @functools.cached_property
    def plan(self) -> ModelPlan:
        """Plan of the model's drawings."""
        return plan_model(self.spec, self.title)

    def list_first(self) -> list[tuple[str, str]]:
        """List the headline figures of `zoo stats`, each as (label, text)."""
        return list_first_figures(self.spec, Setup(), self.figures)

    def list_contexts(self) -> list[int]:
        """List context lengths, doubled up to the model's own. Each fills whole pages in every engine, so that curves
        differ by the tokens kept and not by rounding."""
        longest = self.spec.max_seq_len
        return [*(at for power in range(32) if (at := SHORTEST << power) < longest), longest]

    def list_caches(self) -> dict[str, list[int]]:
        """List the bytes of the cache at each of `list_contexts`, by engine."""
        contexts = self.list_contexts()
        return {
            engine: [kv_cache(self.spec, Setup(context=each, engine=engine))["bytes"] for each in contexts]
            for engine in ENGINES
        }

    def explain(self) -> list[dict[str, Any]]:
        """List the formulas of parameters and cache, as rows of `zoo stats --explain`."""
        traced = trace_spec(self.spec)
        lines = list_parameter_lines(tabulate(traced))
        return [line.row() for line in [*lines, *(list_cache_lines(traced, Setup()) if self.generates else [])]]

    def list_holders(self) -> list[dict[str, Any]]:
        """List, for each type of GPU, the smallest number of GPUs that holds the weights and one sequence, and the
        number of sequences that they hold: at SERVED tokens, and at the model's own context."""
        contexts = sorted({min(SERVED, self.spec.max_seq_len), self.spec.max_seq_len})
        found = count_sequences(self.spec, Setup(context=contexts[0]), LADDER, contexts)
        return [{"gpu": gpu, "count": count, "contexts": contexts, "batches": batches} for gpu, count, batches in found]

    @functools.cached_property
    def published(self) -> list[dict[str, Any]]:
        """Figures for this model from other publications, each with Zoo's figure."""
        return list_published(self.target, self.spec)

    def describe_shape(self) -> dict[str, Any]:
        """Return the architecture as values by dotted path, without unset fields. Kinds of layer are numbered, so that
        models with different names for kinds can be compared."""
        order: dict[str, int] = {}

        def number(kind: re.Match[str]) -> str:
            return f"blocks.{order.setdefault(kind[1], len(order) + 1)}"

        return {
            re.sub(r"\bblocks\.([^.]+)", number, path): value
            for path, value in flatten(_tidy(to_dict(self.spec))).items()
        }


def collect_model(target: str, about: Mapping[str, Any]) -> ModelFacts:
    """Collect the facts of a packaged model, or of a user's file or folder. Raises ConfigError for a model that cannot
    be read."""
    composed = compose_model(target)
    spec = spec_of_composed(composed)
    title = Path(target).stem if is_file(target) else target
    name = re.sub(r"[^\w.-]+", "-", title)  # of a file, and in links
    return ModelFacts(name, target, about or {"title": title}, spec, price(spec), _read_yaml(target, composed))


def _say_pattern(folds: Sequence[Fold]) -> str:
    """Format the number of layers and the sequence of their kinds, folded as in the drawing: `24: (local, global) ×
    12`."""
    count = sum(number * fold.times for fold in folds for _, number in fold.runs)
    if len({kind for fold in folds for kind, _ in fold.runs}) == 1:
        return f"{count}"
    return f"{count}: {', '.join(map(str, folds))}"


def _read_yaml(target: str, composed: Composed) -> str:
    """Read a packaged model's file with its comments. For other models, write the YAML from the composed config."""
    if is_file(target):
        return to_plain_yaml(composed.cfg)
    text = (conf_dir() / "model" / f"{target}.yaml").read_text(encoding="utf-8")
    return text.partition("\n")[2] if text.startswith("# yaml-language-server") else text


def list_published(model: str, spec: Any) -> list[dict[str, Any]]:
    """List the published figures of a packaged model, each with Zoo's figure and the reason for a difference."""
    notes = read_notes()
    rows = [each for each in notes["published"] if each["model"] == model]
    return [
        {
            **_face(spec, row),
            "by": row["by"],
            "source": notes["sources"][row["by"]],
            "why": notes["reasons"][row["why"]],
        }
        for row in rows
    ]


def _face(spec: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """Pair a published figure with Zoo's; for a cache also with that of a paged engine."""
    if "figure" in row:
        ours = flatten(price(spec, parts=[row["figure"]]))[row["figure"]]
        return {"figure": row["figure"], "theirs": row["theirs"], "ours": ours, "unit": ""}
    context = row["context"]
    ours, paged = (kv_cache(spec, Setup(context=context, engine=engine))["bytes"] for engine in ("ideal", "paged"))
    theirs = round(row["token_kib"] * 1024 * context)
    return {"figure": "kv_cache.bytes", "context": context, "theirs": theirs, "ours": ours, "paged": paged, "unit": "B"}


def _tidy(node: Any) -> Any:
    """Copy plain data without unset values and with patterns in short form."""
    if isinstance(node, Mapping):
        return dict(_tidy_items(node))
    return [_tidy(each) for each in node] if isinstance(node, list | tuple) else node


def _tidy_items(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if key == "pattern":
            yield from (("n_layers", len(value)), (key, pattern_text(value)))
        elif value not in (None, False):
            yield key, _tidy(value)
