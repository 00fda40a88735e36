"""Find the metadata of a GGUF file that describes a config.json: the catalogue's expressions, inverted.

An inverse is a guess (zoo/families/binding.py). Callers read the metadata that was found, and compare the model that it
describes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.errors import ConfigError
from zoo.families.binding import assemble_fields, bind, try_evaluate
from zoo.families.expression import Expression, is_expression
from zoo.families.family import family_of_config
from zoo.families.gguf import DERIVED, LLAMA3, ROPE, find_llama3_factors, list_rows, read_catalogue
from zoo.families.gguf_header import ARCHITECTURE, Number


def list_writable(model_type: str) -> list[str]:
    """List the architectures, by llama.cpp's names, that a model of this `model_type` can be written as; empty if there
    is none."""
    rows = read_catalogue()["architectures"].items()
    is_written = model_type in read_catalogue()["written"]
    return [name for name, row in rows if is_written and model_type in _list_types(name, row or {})]


def _list_types(name: str, row: Mapping[str, Any]) -> set[str]:
    """List the model types that a row's expression may give."""
    stated = row.get("model_type", name)
    return set(stated.split('"')[1::2]) if is_expression(stated) else {stated}


def find_metadata(config: Mapping[str, Any], architecture: str, tensors: Sequence[str]) -> dict[str, Any]:
    """Find the metadata of an architecture that reads back as `config`, under names with the architecture's prefix.

    `tensors` are the names of the file's tensors. Counts are int, other numbers float.
    """
    row = read_catalogue()["architectures"][architecture] or {}
    family = family_of_config(dict(config), "config.json")
    stated = {**family.defaults, **config, **_find_rotary(config)}
    fields = {"vocab_size": stated.get("vocab_size"), "tied": "output.weight" not in tensors, "tensors": tensors}
    rows = {**list_rows(family, row.get("config") or {}), "model_type": row.get("model_type")}
    found: dict[str, Any] = {}
    for _ in range(2):  # a row may need a field that a later row gives
        for name, text in rows.items():
            own = name.removesuffix("?")
            value = stated.get(family.aliases.get(own, own))
            if is_expression(text) and value is not None:
                bound = bind(Expression(text[1:]).tree, value, _nest({**found, **fields}))
                entries = assemble_fields({path: each for path, each in bound.items() if path.endswith("]")})
                whole = {path: each for path, each in bound.items() if not path.endswith("]")}
                found = {**whole, **entries, **found}
        found = {path: each for path, each in found.items() if path.partition(".")[0] not in DERIVED}
        heads = found.get("attention.head_count") or 1
        fields["head_dim"] = found.get("attention.key_length") or found["embedding_length"] // heads
    own = row.get("requires") or {}
    for path, text in {**read_catalogue()["requires"], **own}.items():
        if path not in found and (path in own or is_expression(text)):  # other constants are llama.cpp's defaults
            found.update((path, value) for value in _values(text, _nest({**found, **fields})))
    found |= _describe_scaling(find_scaling(config))
    absent = _nest({})  # a false count, from the choice of a model type, is one that files lack
    said = {path: each for path, each in found.items() if each is not False or not _values(f"={path}", absent)}
    return {f"{architecture}.{path}": _to_stored(path, value) for path, value in said.items()}


def _values(text: Any, fields: Mapping[str, Any]) -> list[Any]:
    return list(try_evaluate(Expression(text[1:]).tree, fields)) if is_expression(text) else [text]


def _nest(found: Mapping[str, Any]) -> dict[str, Any]:
    """Nest metadata by dotted names, and add the values of entries that a file may lack."""
    return assemble_fields(found, read_catalogue()["absent"])


def _to_stored(path: str, value: Any) -> Any:
    """Convert a number to the type that the file has for it."""
    if isinstance(value, bool | str | list):
        return value
    if ARCHITECTURE.get(path) in (Number, ARCHITECTURE["rope.freq_base"]):
        return float(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


# ---------------------------------------------------------------- rotary scaling


def _find_rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """Copy `rope_theta` and `partial_rotary_factor` from `rope_parameters` to the top level, where an old config.json
    states them."""
    stated = config.get("rope_parameters") or {}
    return {name: stated[name] for name in ("rope_theta", "partial_rotary_factor") if name in stated}


def find_scaling(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Find the rotary scaling of a config.json, in its new form or its old; empty for none."""
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {} if stated.get("rope_type", "default") == "default" else stated


def _describe_scaling(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Make the metadata of a linear or YaRN scaling. Empty for no scaling and for Llama 3's, which a file states as
    factors (`find_factors`). Raises ConfigError for any other."""
    kind = scaling.get("rope_type")
    if kind in (None, "llama3"):
        return {}
    known = {"factor": "factor", "original_max_position_embeddings": "original_context_length"}
    known |= {name: f"yarn_{name}" for name in ("beta_fast", "beta_slow")} if kind == "yarn" else {}
    apart = {"rope_type", "rope_theta", "partial_rotary_factor"}
    strange = {name for name, value in scaling.items() if value is not None} - {*known, *apart}
    if kind not in ("linear", "yarn") or strange:
        what = ", ".join([str(kind), *sorted(strange)])
        raise ConfigError(f"rope_parameters: {what} is not written to GGUF (linear, yarn or llama3)")
    said = {f"rope.scaling.{path}": scaling[name] for name, path in known.items() if scaling.get(name) is not None}
    return {"rope.scaling.type": kind, **said}


def find_factors(config: Mapping[str, Any], metadata: Mapping[str, Any], architecture: str) -> dict[str, list[float]]:
    """Make the tensor of rotary factors that states Llama 3's scaling, by its name; empty for any other scaling. Raises
    ConfigError if the scaling's parameters differ from `LLAMA3`."""
    scaling = find_scaling(config)
    if scaling.get("rope_type") != "llama3":
        return {}
    if any(scaling.get(name) != value for name, value in LLAMA3.items()):
        raise ConfigError(f"rope_parameters: llama3 with others than {LLAMA3} is not written to GGUF")
    theta, width = (metadata[f"{architecture}.rope.{name}"] for name in ("freq_base", "dimension_count"))
    return {ROPE[0]: find_llama3_factors(scaling["factor"], theta, width // 2)}
