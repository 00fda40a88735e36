"""Read the catalogue of packaged models: names, titles, parameters, sources, parts."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.errors import ConfigError, did_you_mean, name_options
from zoo.grammar.keys import AXES
from zoo.grammar.patches import lay_patch
from zoo.paths import list_conf, read_conf


def read_models() -> list[dict[str, Any]]:
    """List the packaged models, smallest first, as mappings: name, kind, title, published parameters, source, note,
    `parts`.

    `parts` are the names of all choices, and of all fields of choices, in the model's file.
    """
    models = [_about(name) | {"parts": sorted(_list_parts(body))} for name, body in read_bodies().items()]
    return sorted(models, key=lambda m: (m["params"], m["name"]))


@dataclasses.dataclass(frozen=True)
class Selection:
    """A filter of models. A model passes if it is of `kind`, has all of `parts`, has `least` to `most` parameters, and
    has each of `words` in its name, title, note, source or parts."""

    words: Sequence[str] = ()
    kind: str | None = None
    parts: Sequence[str] = ()
    least: float = 0
    most: float = math.inf

    def takes(self, model: Mapping[str, Any]) -> bool:
        sized = self.least <= model["params"] <= self.most
        has = set(self.parts) <= set(model["parts"])
        return self.kind in (None, model["kind"]) and sized and has and all(w in _text(model) for w in self.folded)

    @property
    def folded(self) -> list[str]:
        return [word.casefold() for word in self.words]

    def describe(self) -> str:
        """Describe the filter for the error message that no model passes it."""
        whose = "" if self.kind is None else f" of kind {self.kind}"
        size = f" of {self.least:,.0f} to {self.most:,.0f} parameters" if self.least or self.most < math.inf else ""
        words = f" has {' and '.join(map(repr, self.folded))} in its name, title, note, source or parts"
        parts = f" has the parts {', '.join(self.parts)}"
        asked = " and".join([*([words] if self.words else []), *([parts] if self.parts else [])])
        return f"no packaged model{whose}{size}{asked or ' is there'}"


def select_models(models: Sequence[dict[str, Any]], asked: Selection) -> list[dict[str, Any]]:
    """List the models that pass the filter. Raises ConfigError for an unknown kind or part, and if no model passes."""
    kinds = sorted({model["kind"] for model in models})
    if asked.kind is not None and asked.kind not in kinds:
        hint = name_options(asked.kind, kinds)
        raise ConfigError(f"kind: there is no {asked.kind!r}{hint}")
    known = {part for model in models for part in model["parts"]}
    if strange := [part for part in asked.parts if part not in known]:
        hint = did_you_mean(strange[0], known) or " (`zoo list --axis attention` lists the choices of an axis)"
        raise ConfigError(f"with: no packaged model has {strange[0]!r}{hint}")
    if not (found := [model for model in models if asked.takes(model)]):
        names = [model["name"] for model in models if asked.kind in (None, model["kind"])]
        hint = did_you_mean(asked.folded[-1], names) if asked.words else ""
        raise ConfigError(f"list: {asked.describe()}{hint or ' (`zoo list` shows all)'}")
    return found


def _list_parts(node: Any, key: str = "") -> set[str]:
    """List the names of the choices in a model's YAML, and of the component fields that it sets."""
    if isinstance(node, Mapping):
        inner = {
            str(name).rpartition("@")[2].rpartition(".")[2].rpartition("/")[2]: each for name, each in node.items()
        }
        below = [_list_parts(each, name) for name, each in inner.items() if name not in ("about", "pattern")]
        own = set() if key in ("", "layers") else {name for name, each in inner.items() if each not in (None, False)}
        return own.union(*below) - {"kind", "layers", "defaults"}
    if isinstance(node, list):
        return set().union(*(_list_parts(each, key) for each in node if key == "defaults"))
    chosen = isinstance(node, str) and "${" not in node and (key == "kind" or key in AXES)
    return {str(node), _name_general(key, str(node))} if chosen else set()


@functools.cache
def _name_general(axis: str, word: str) -> str:
    """Return the kind in a choice's name: moe for moe_clamped. If there is none, return the choice's own name."""
    kind = read_conf(f"{axis}/{word}")["kind"] if word in list_conf(axis) else word
    return str(kind) if word.startswith(f"{kind}_") else word


@functools.cache
def read_bodies() -> dict[str, dict[str, Any]]:
    """Read the YAML of every packaged model, merged over the YAML of its base model."""
    return {name: _read_whole(name) for name in _read_files()}


@functools.cache
def _read_files() -> Mapping[str, Any]:
    return {name: read_conf(f"model/{name}") for name in list_conf("model")}


@functools.cache
def _read_whole(name: str) -> dict[str, Any]:
    body = _read_files()[name]
    base = next(iter(body.get("defaults", ())), None)
    inherited = {}
    if isinstance(base, str):  # another model, or `/llama@_here_`: the choices of Llama
        inherited = _read_whole(base) if base in _read_files() else read_conf("llama")
    entries = [*inherited.get("defaults", ()), *body.get("defaults", ())]
    chosen = {group.split()[-1]: word for each in entries if isinstance(each, Mapping) for group, word in each.items()}
    return {**lay_patch(inherited, body, name, []), "defaults": [{group: word} for group, word in chosen.items()]}


def _text(model: Mapping[str, Any]) -> str:
    return " ".join([*(str(model[key]) for key in ("name", "title", "note", "source")), *model["parts"]]).casefold()


def _about(name: str) -> dict[str, Any]:
    """Read a file's `about`. A file without one is an alias of the first model in its defaults list."""
    file = _read_files()[name]
    if (about := file.get("about")) is None:
        base = file["defaults"][0]
        return {**_about(base), "name": name, "note": f"another name for {base}"}
    return {"name": name, "kind": _read_whole(name).get("kind", "decoder"), **about}
