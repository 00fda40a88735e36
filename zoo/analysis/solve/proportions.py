"""Scale a model's dimensions to another width, keeping its proportions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from zoo import grammar
from zoo.analysis.compare import flatten
from zoo.compose.targets import compose_model, spec_of_composed
from zoo.errors import ConfigError
from zoo.model.tower import Tower

Dims = dict[str, int]
"""Dimensions by the dotted key of their override."""

ModelSource = str | Path | Mapping[str, Any]
"""A model to compose: a packaged name, a file or a mapping."""

SOLVED = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff")


def choose_width_step(width: int) -> int:
    """Choose the step between widths: 128, which fills the tiles of a matrix product; 64 below 512, where 128 is too
    coarse; more from 4096 on, where 128 is needlessly fine."""
    for limit, step in ((512, 64), (4096, 128), (8192, 256)):
        if width < limit:
            return step
    return 512


def choose_ffn_step(width: int) -> int:
    """Choose the step between values of d_ff, at this d_model."""
    return 64 if width < 2048 else 128 if width < 4096 else 256


class ComposedModel:
    """A composed model whose dimensions can be changed.

    `own` are its published dimensions, `dims` the dimensions with the user's overrides. `fixed` are the keys of these
    overrides, and n_layers if the model has a loop. `solved` are the dimensions that a shape sets: those in SOLVED and
    every d_ff, if the model reads them and they are not fixed. Raises ConfigError if the model states no number as its
    d_model or n_layers.
    """

    def __init__(self, model: ModelSource, overrides: Iterable[str]) -> None:
        composed = compose_model(model, overrides)
        spec = spec_of_composed(composed)
        self.model, self.typed, self.cfg = model, composed.typed, composed.cfg
        looped = any(tower.loop is not None for tower in spec.towers().values())  # its depth must fit the loop
        self.fixed = {*composed.touched, *(("n_layers",) if looped else ())}
        self.dims = _stated(self.cfg)
        if lost := [key for key in ("d_model", "n_layers") if key not in self.dims]:
            raise ConfigError(*(f"{key}: is no number here, and a shape is scaled from it ({key}=512)" for key in lost))
        self.own = {**self.dims, **(_stated(compose_model(model, ()).cfg) if composed.typed else {})}
        OmegaConf.set_struct(self.cfg, False)
        asked = (key for key in self.dims if key in SOLVED or key.endswith(".d_ff"))  # of experts, of dense layers
        self.solved = [key for key in asked if key not in self.fixed]
        self.unread = self._unread()
        self.solved = [key for key in self.solved if key not in self.unread]
        patterns = [tower.pattern for tower in spec.towers().values()]
        self.least_layers = 1 + max(each.index(kind) for each in patterns for kind in set(each))  # has all kinds
        self._specs: dict[tuple[int, ...], Any] = {}

    def _unread(self) -> set[str]:
        """Find the dimensions in the file that the model does not read, such as n_kv_heads for MLA."""
        try:
            grammar.to_spec(self.cfg, self.solved)
        except ConfigError as error:
            return {fault.split(":")[0] for fault in error.faults}
        return set()

    def spec(self, dims: Mapping[str, int]) -> Any:
        """Make the Spec with these dimensions, one for each of `solved`."""
        values = tuple(dims[key] for key in self.solved)
        if values not in self._specs:
            for key, value in zip(self.solved, values, strict=True):
                OmegaConf.update(self.cfg, key, value)
            self._specs[values] = grammar.to_spec(self.cfg)
        return self._specs[values]

    def overrides_of(self, dims: Mapping[str, int]) -> list[str]:
        """List the overrides that a user types to get these dimensions."""
        return [*self.typed, *(f"{key}={dims[key]}" for key in self.solved)]

    def at_width(self, width: int) -> Iterator[Dims]:
        """List dimensions at this width, with unchanged depth: first with the model's own ratio of query heads to
        key-value heads, then with fewer key-value heads. The list is empty if heads do not fit the width."""
        dims = {key: self.dims[key] for key in self.solved} | ({} if "d_model" in self.fixed else {"d_model": width})
        for key in self.solved:
            if key.split(".")[-1] == "d_ff":
                dims[key] = self.ffn(width, key)
        n_heads = self._heads(width)
        if n_heads is None:
            return
        if "n_heads" in dims:
            dims["n_heads"] = n_heads
        if "n_kv_heads" not in dims:
            kept = self.dims.get("n_kv_heads", n_heads)
            yield from () if "n_kv_heads" in self.fixed and n_heads % kept else (dims,)
            return
        yield from ({**dims, "n_kv_heads": n} for n in self._key_heads(n_heads))

    def _key_heads(self, n_heads: int) -> list[int]:
        """List numbers of key-value heads that divide these query heads: the nearest to the model's own ratio, then
        fewer. The list is empty if the nearest is off by a factor of more than 2, or if query heads for 4 or more of
        the model's own groups do not fill whole groups."""
        group = self.own["n_heads"] / self.own["n_kv_heads"]
        if n_heads >= 4 * group and n_heads % group:
            return []
        divisors = [n for n in range(n_heads, 0, -1) if n_heads % n == 0]
        nearest = min(divisors, key=lambda n: abs(math.log(n * group / n_heads)))
        return [n for n in divisors if n <= nearest] if 0.5 <= nearest * group / n_heads <= 2 else []

    def ffn(self, width: int, key: str = "d_ff", ratio: float = 1.0) -> int:
        """Compute d_ff: `ratio` times the model's own d_ff / d_model times this width, rounded to a step."""
        step = choose_ffn_step(width)
        return max(1, round(ratio * width * self.own[key] / self.own["d_model"] / step)) * step

    def _heads(self, width: int) -> int | None:
        """Compute the query heads at this width; None if the model's own heads fill d_model, and whole heads cannot
        fill this width."""
        if "n_heads" not in self.solved:
            return self.dims.get("n_heads", 1)
        was = self.own["n_heads"] * self.own.get("head_dim", 1)
        heads = width * was / self.own["d_model"] / self.dims.get("head_dim", 1)
        if was == self.own["d_model"]:
            return int(heads) if heads.is_integer() else None
        group = self.own["n_heads"] // self.own.get("n_kv_heads", self.own["n_heads"])
        return max(1, round(heads / group)) * group


def truncate_layers(spec: Any, layers: int) -> Any:
    """Cut a Spec to its first `layers` layers, as n_layers would. Towers of another depth than n_layers stay whole."""

    def cut(tower: Tower) -> Any:
        return dataclasses.replace(tower, pattern=tower.pattern[:layers])

    towers = spec.towers()
    if "" in towers:
        return cut(spec)
    deep = {name: cut(tower) for name, tower in towers.items() if tower.n_layers == spec.n_layers}
    return dataclasses.replace(spec, **deep)


def _stated(cfg: Any) -> Dims:
    """List every integer in the model's file by its dotted key."""
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    leaves = flatten({key: value for key, value in raw.items() if key != "about"})
    return {key: leaf for key, leaf in leaves.items() if isinstance(leaf, int) and not isinstance(leaf, bool)}
