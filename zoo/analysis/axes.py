"""Describe the choices of an axis: where each comes from, how its time and cache grow with the tokens T, and which
packaged models and families have it. The costs are read off the components; nothing here imports torch."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import yaml

from zoo.costs.pairs import Look
from zoo.errors import ConfigError, did_you_mean
from zoo.families.family import Family, family_names, read_family
from zoo.grammar import AXES, to_dict
from zoo.grammar.dialect import knows, list_fields, read_choice
from zoo.grammar.keys import BASES
from zoo.paths import conf_dir
from zoo.spec import Spec, components
from zoo.spec.faults import list_choices

LONG = 1 << 20
"""Tokens at which growth is measured: beyond every window of `SIZES`."""

SIZES = {"window": 64, "original_max_seq_len": 64, "bottleneck_width": 32, "eos_id": 0}
"""Dimensions of which a choice may need one that the small model does not state."""

CONTEXTS = (
    (),
    ("position=none",),
    ("ffn=moe",),
    ("attention=mamba2",),
    ("block=bottleneck",),
    ("+streams={kind: altup, count: 4}",),
    ("+streams={kind: weighted, count: 4}",),
    ("kind=encoder",),
    ("kind=encoder", "position=none"),
    ("kind=encoder", "ffn=moe"),
    ("kind=encoder", "position=relative_buckets", "position_buckets=8"),
    ("kind=encoder", "position=relative"),
    ("kind=encoder", "attention=disentangled", "position_buckets=8"),
    ("kind=encoder", "attention=disentangled_v1"),
    ("kind=encoder", "position=t5_globals"),
    ("kind=encoder", "attention=transient_global", "window=8"),
)
"""What a choice may only be of use with, tried in this order in a small model."""

CROSSED = {"merged": ("cross=merged", "~cross.scale", "position=rope", "~n_buckets", "~max_distance")}
"""What cross-attention of another kind than T5's needs in a tiny T5."""

YEAR = re.compile(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")


def list_axes() -> list[str]:
    """List the axes that have choices in conf/, in the order of the grammar."""
    return [axis for axis in AXES if (conf_dir() / axis).is_dir()]


def describe_axis(axis: str) -> list[dict[str, Any]]:
    """Describe every choice of an axis, by name. Raises ConfigError for an axis that there is not."""
    models, families = _list_uses(_refuse_axis(axis))
    return [
        {
            **_describe(axis, file),
            "models": sorted(models.get(file.stem, ())),
            "families": sorted(families.get(file.stem, ())),
        }
        for file in sorted((conf_dir() / axis).glob("*.yaml"))
    ]


def describe_fields(axis: str, word: str) -> list[dict[str, str]]:
    """Describe the fields of a choice: what each takes, and what it is unless said, by the choice's file or by default.
    Raises ConfigError for an axis or a choice that there is not."""
    base = BASES.get(axis) or BASES[_refuse_axis(axis)]
    if not knows(base, word):
        raise ConfigError(f"axis: {axis} has no choice {word!r}{did_you_mean(word, list_choices(base))}")
    stated = read_choice(base, word)
    choice = base.kinds[stated["kind"]]
    slots = list_fields(choice)
    return [
        {
            "field": each.name,
            "takes": f"a choice of {slots[each.name].axis}" if each.name in slots else _name_type(str(each.type)),
            "unless said": _name_value(stated[each.name] if each.name in stated else to_dict(each.default)),
        }
        for each in choice.fields()
    ]


TYPES = {
    **{"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"},
    **{"PositiveInt": "a whole number above 0", "NonNegativeInt": "a whole number from 0 up"},
    **{"PositiveFloat": "a number above 0", "NonNegativeFloat": "a number from 0 up", "None": "null"},
}
"""What a field takes, by its type in Python."""


def _name_type(annotation: str) -> str:
    """Say what a type takes: `PositiveInt | None` is a whole number above 0, or null."""
    annotation = re.sub(r"Annotated\[(.*), \w+(?:\(.*\))?\]", r"\1", annotation)  # without the checks
    annotation = re.sub(
        r"Literal\[([^]]*)\]", lambda found: re.sub(r"[\"']", "", found[1]).replace(",", " |"), annotation
    )
    annotation = re.sub(r"tuple\[[^]]*\]", "a list", annotation)
    return " or ".join(TYPES.get(each, each) for each in annotation.split(" | "))


def _name_value(value: Any) -> str:
    """Write a default, or the names around a component from which its value comes."""
    if found := re.fullmatch(r"\$\{(up|or):([^{}]*)\}", str(value)):
        names = [each.strip() for each in found[2].split(",")]
        return f"the model's {', else '.join(names)}"
    if isinstance(value, Mapping):
        return f"{value.get('kind', 'a mapping')} (with fields of its own)"
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]
    return "(needed)" if value is MISSING else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]


def _refuse_axis(axis: str) -> str:
    """Raise ConfigError for an axis that there is not."""
    if axis not in list_axes():
        hint = did_you_mean(axis, list_axes())
        raise ConfigError(f"axis: there is no {axis!r}{hint} (one of: {', '.join(list_axes())})")
    return axis


def _describe(axis: str, file: Path) -> dict[str, Any]:
    tower, component = _load(axis, file.stem)
    return {
        "choice": file.stem,
        "kind": component.kind,
        "source": find_source(component, file),
        **grow(component, tower.causal),
    }


def _load(axis: str, choice: str) -> tuple[Any, Spec]:
    """Load a small model that has a choice: its tower, and the choice's component."""
    from zoo.compose.targets import compose_model, spec_of_composed

    def load(name: str, overrides: Iterable[str]) -> Any:
        return spec_of_composed(compose_model(name, overrides))

    if axis == "cross":
        tower = load("t5-tiny", CROSSED.get(choice, ())).towers()["decoder"]
        return tower, _find(tower, axis)
    body = (conf_dir() / axis / f"{choice}.yaml").read_text(encoding="utf-8")
    sizes = [f"{name}={size}" for name, size in SIZES.items() if f"up:{name}}}" in body]
    refused: Exception | None = None
    for context in CONTEXTS:
        if any(each.startswith(f"{axis}=") for each in context):
            continue  # it would be asked for the context's choice
        try:
            tower = load("llama-tiny", [f"{axis}={choice}", *context, *sizes])
            return tower, _find(tower, axis)
        except (ConfigError, StopIteration) as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _find(tower: Any, axis: str) -> Spec:
    """The component of an axis in a small model."""
    block = next(iter(tower.blocks.values()))
    if axis == "position":
        return tower.position
    if axis in ("block", "attention", "cross"):
        return block if axis == "block" else getattr(block, axis)
    if axis == "activation":
        return block.ffn.activation
    return next(each for _, each, _ in components(tower, tower.d_model) if each.axis == axis)


def grow(component: Spec, causal: bool) -> dict[str, str]:
    """How a component's time for T tokens, its time for one more token, and what it keeps for generating grow with T.

    Products with weights take time T. What else there is, is asked of the component: its FLOPs for the pairs that its
    queries see, those of its state, what it caches a token and for all tokens.
    """
    look = Look(causal, False, getattr(component, "visible_window", None), getattr(component, "visible_chunk", None))
    look = look._replace(blocks=getattr(component, "visible_blocks", None))
    rate = getattr(component, "compress_rate", 1)
    if rate > 1:
        look = look._replace(window=None, pool=rate, near=getattr(component, "near_window", 0))

    def whole(tokens: int) -> int:
        return component.core_flops(look.pairs(tokens)) + component.state_flops() * tokens

    def one_more(tokens: int) -> int:
        return component.decode_flops(look.pairs(1, tokens)) + component.state_flops()

    def kept(tokens: int) -> int:
        return _values(component.cache()) * min(tokens, look.window or look.chunk or tokens) // rate

    state = _values(component.state())
    cache = {"T": "T", "1": "window"}.get(_power(kept), "") if kept(LONG) else ""
    held = " + ".join(each for each in (cache, "constant" if state else "") if each)
    return {
        "time": _power(whole) if whole(LONG) else "T",
        "token": (_power(one_more) if one_more(LONG) else "1") if causal else "-",
        "cache": (held or "none") if causal else "-",
    }


def _power(figure: Any) -> str:
    """The power of T by which a figure grows."""
    found = round(math.log2(figure(2 * LONG) / figure(LONG))) if figure(LONG) else 0
    return {0: "1", 1: "T", 2: "T²"}[found]


def _values(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


# ---------------------------------------------------------------- where it comes from


def find_source(component: Spec, file: Path) -> str:
    """The paper and year of a choice: from the comment in its YAML, or from the docstring of what tells it from
    others."""
    comment = " ".join(
        line.lstrip("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    )
    inside = getattr(component, "scaling", None)
    for text in (
        comment,
        *(inspect.getdoc(each) or "" for each in (type(inside), type(component)) if each is not None),
    ):
        found = YEAR.search(" ".join(text.split()))
        if found is not None:
            return found[1]
    return ""


# ---------------------------------------------------------------- who has it


@functools.cache
def _list_uses(axis: str) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """The packaged models and the families that have each choice, from their YAMLs: nothing is composed."""
    from zoo.compose.catalogue import read_bodies

    found: tuple[dict[str, set[str]], dict[str, set[str]]] = {}, {}
    bodies = [(0, name, body) for name, body in read_bodies().items()]
    bodies += [(1, name, model) for name in family_names() for model in _list_models(read_family(name))]
    for whose, name, body in bodies:
        if axis == "router" and not any(each.startswith("moe") for each in _find_choices("ffn", body)):
            continue  # a dense model names one too, so that experts can be swapped in
        for choice in _find_choices(axis, body):
            found[whose].setdefault(choice, set()).add(name)
    return found


def _list_models(family: Family) -> Iterator[Mapping[str, Any]]:
    """The model of a family, and that of each tower whose config is one within its config.json."""
    yield family.model
    yield from (tower.family.model for tower in family.towers.values() if tower.family is not None)


def _find_choices(axis: str, body: Mapping[str, Any]) -> Iterator[str]:
    """The choices of an axis that a body names: in its defaults list, as a node with a kind, or in an expression."""
    for key, value in body.items():
        if key == "defaults":
            entries = [item for each in value if isinstance(each, Mapping) for item in each.items()]
            named = [choice for group, choice in entries if group in (f"/{axis}", f"override /{axis}")]
            yield from named[-1:]  # a later one takes the place of an earlier
        elif key == axis:
            yield from _read_choice(axis, value)
        if isinstance(value, Mapping):
            yield from _find_choices(axis, value)


def _read_choice(axis: str, value: Any) -> Iterator[str]:
    known = {path.stem for path in (conf_dir() / axis).glob("*.yaml")}
    if isinstance(value, Mapping):
        value = value.get("kind", "")
    words = [value] if isinstance(value, str) and not value.startswith("=") else re.findall(r"\w+", str(value))
    yield from (word for word in words if word in known)
