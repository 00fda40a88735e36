"""Describe the choices of an axis: the source of each, how its time and cache grow with the number of tokens T, and
which packaged models and families have it. Growth is computed from the components' FLOPs and cache, without torch."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.analysis.uses import find_users
from zoo.costs.pairs import Look
from zoo.costs.rows import count_values
from zoo.errors import ConfigError, name_options
from zoo.grammar import AXES
from zoo.grammar.vocabulary import read_choices
from zoo.model.attention.base import Sight
from zoo.paths import conf_dir
from zoo.spec import Spec, components
from zoo.spec.fields import find_paper

if TYPE_CHECKING:
    from zoo.compose.targets import Composer

LONG = 1 << 20
"""Number of tokens at which growth is measured: beyond every window of `SIZES`."""

SIZES = {"window": 64, "original_max_seq_len": 64, "bottleneck_width": 32, "eos_id": 0}
"""Dimensions that a choice may need and the small model does not state."""

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
"""Overrides that some choices need; tried in this order on a small model."""

CROSSED = {"merged": ("cross=merged", "~cross.scale", "position=rope", "~n_buckets", "~max_distance")}
"""Overrides that put another kind of cross-attention into a tiny T5."""


def list_axes() -> list[str]:
    """List the axes that have choices in conf/, in the order of the grammar."""
    return [axis for axis in AXES if (conf_dir() / axis).is_dir()]


def find_axis(axis: str) -> str:
    """Return the name of an axis unchanged. Raises ConfigError if there is no such axis."""
    if axis not in list_axes():
        hint = name_options(axis, list_axes())
        raise ConfigError(f"axis: there is no {axis!r}{hint}")
    return axis


def describe_axis(axis: str) -> list[dict[str, Any]]:
    """Describe every choice of an axis, in the order of their names. Raises ConfigError for an unknown axis."""
    find_axis(axis)
    return [describe_choice(axis, file) for file in sorted((conf_dir() / axis).glob("*.yaml"))]


def describe_choice(axis: str, file: Path) -> dict[str, Any]:
    """Describe a choice of an axis, given its file in conf/."""
    *_, tower = load_small(axis, file.stem)
    component = find_component(tower, axis)
    models, families = find_users(axis, file.stem)
    return {
        "choice": file.stem,
        "kind": component.kind,
        "source": find_source(component, read_choices(axis)[file.stem].comment),
        "looks": describe_looks(component),
        **grow(component, tower.causal),
        "models": models,
        "families": families,
    }


@functools.cache
def load_small(axis: str, choice: str) -> tuple[str, list[str], Any]:
    """Load a small model with a choice: return the packaged model's name, the overrides, and the tower.

    Raises ConfigError if no small model takes the choice.
    """
    from zoo.compose.targets import spec_of_composed

    def load(name: str, overrides: list[str]) -> tuple[str, list[str], Any]:
        return name, overrides, spec_of_composed(_open_small(name).compose(overrides))

    if axis == "cross":
        name, overrides, spec = load("t5-tiny", list(CROSSED.get(choice, ())))
        return name, overrides, spec.towers()["decoder"]
    body = (conf_dir() / axis / f"{choice}.yaml").read_text(encoding="utf-8")
    sizes = [f"{name}={size}" for name, size in SIZES.items() if f"up:{name}}}" in body]
    refused: Exception | None = None
    for context in CONTEXTS:
        if any(each.startswith(f"{axis}=") for each in context):
            continue  # the context would replace the choice
        try:
            found = load("llama-tiny", [f"{axis}={choice}", *context, *sizes])
            find_component(found[2], axis)
            return found
        except (ConfigError, StopIteration) as error:
            refused = refused or error
    assert refused is not None
    raise refused


@functools.cache
def _open_small(name: str) -> Composer:
    """Open a small packaged model, once per process."""
    from zoo.compose.targets import Composer

    return Composer(name)


def find_component(tower: Any, axis: str) -> Spec:
    """Find the component of an axis in a small model."""
    block = next(iter(tower.blocks.values()))
    if axis == "position":
        return tower.position
    if axis in ("block", "attention", "cross"):
        return block if axis == "block" else getattr(block, axis)
    if axis == "activation":
        return block.ffn.activation
    return next(each for _, each, _ in components(tower, tower.d_model) if each.axis == axis)


def grow(component: Spec, causal: bool) -> dict[str, str]:
    """Describe how three figures of a component grow with the number of tokens T: its time for all tokens ("time"), its
    time for one more token ("token") and its "cache".

    A time is "1", "T" or "T²". A cache is "T", "window", "constant", a sum of these or "none". Without `causal`,
    "token" and "cache" are "-". Products with weights take time T. The rest follows from the component's FLOPs for
    visible pairs and for its recurrent state, and from the sizes of its cache per token and of its state.
    """
    sight = getattr(component, "sight", Sight())  # only an attention has one
    look, rate = Look(causal, False, **sight._asdict()), sight.rate

    def whole(tokens: int) -> int:
        return component.core_flops(look.pairs(tokens)) + component.state_flops() * tokens

    def one_more(tokens: int) -> int:
        return component.decode_flops(look.pairs(1, tokens)) + component.state_flops()

    def kept(tokens: int) -> int:
        return count_values(component.cache()) * min(tokens, look.window or look.chunk or tokens) // rate

    state = count_values(component.state())
    cache = {"T": "T", "1": "window"}.get(_power(kept), "") if kept(LONG) else ""
    held = " + ".join(each for each in (cache, "constant" if state else "") if each)
    return {
        "time": _power(whole) if whole(LONG) else "T",
        "token": (_power(one_more) if one_more(LONG) else "1") if causal else "-",
        "cache": (held or "none") if causal else "-",
    }


def _power(figure: Callable[[int], float]) -> str:
    """Give the power of T with which a figure grows: 1, T or T²."""
    found = round(math.log2(figure(2 * LONG) / figure(LONG))) if figure(LONG) else 0
    return {0: "1", 1: "T", 2: "T²"}[found]


# ---------------------------------------------------------------- where it comes from


def find_source(component: Spec, comment: str) -> str:
    """Find the paper and year of a choice. Read from the comment of its YAML, else the docstring of its `scaling`
    (rotary positions), else the docstring of its class. Empty if none names a paper.
    """
    inside = getattr(component, "scaling", None)
    docs = (inspect.getdoc(each) or "" for each in (type(inside), type(component)) if each is not None)
    return next(filter(None, map(find_paper, (comment, *docs))), "")


def describe_looks(component: Spec) -> str:
    """Say in which direction a component reads along the tokens. The text is empty for a component that fits both
    directions and is not an attention."""
    either = "bidirectional, or causal in a decoder" if component.axis == "attention" else ""
    return {None: either, True: "causal (in decoders)", False: "bidirectional (in encoders)"}[component.causal]
