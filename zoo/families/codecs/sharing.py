"""Read and write fields of configs in which layers reuse the keys and values of earlier layers (Gemma 3n, Gemma 4,
Mistral Large 4), or layers of one type have their own sizes (full layers of Gemma, sliding layers of dots3 note)."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.errors import ConfigError
from zoo.families.binding import bind, try_evaluate
from zoo.families.codecs.rope import Rope
from zoo.families.expression import FUNCTIONS, Bindings, Codec, PlainFunction

LENDS, READS = "_lends", "_reads"

FULL, SLIDING = "full_attention", "sliding_attention"

SLIDING_SIZES: tuple[str, ...] = (
    *("num_attention_heads", "num_key_value_heads", "q_lora_rank", "kv_lora_rank", "head_dim"),
    *("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
)
"""The fields for which sliding layers of dots3 note may have their own values."""


def find_part(layer_types: Sequence[str], n_shared: int, layer: int) -> str:
    """`kv_part(layer_types, num_kv_shared_layers, layer)`: READS for the last `n_shared` layers, LENDS for layers whose
    keys and values they read, else "". A layer reads from the last layer of its own type before the `n_shared`. Raises
    ConfigError if there is no such layer."""
    first = len(layer_types) - n_shared
    own = layer_types[layer]
    if layer >= first:
        if own not in layer_types[: max(first, 0)]:
            raise ConfigError(
                f"num_kv_shared_layers: is {n_shared}, and no {own} layer before those lends keys (fewer)"
            )
        return READS
    lends = own in layer_types[first:] and own not in layer_types[layer + 1 : first]
    return LENDS if lends else ""


def count_readers(pattern: Sequence[str]) -> int:
    """`count_readers(pattern)`: the number of layers that read keys and values of earlier layers."""
    return sum(READS in kind for kind in pattern)


class OfType(Codec):
    """`of_full("head_dim", global_head_dim, 512)`: a field's value in the layers of one type. The value comes from
    `per_layer_config` (as transformers writes it), else from the second argument (a field of published configs), else
    from the third. If a fourth argument is false, the second is ignored. `sizes` are the fields that may differ by type
    of layer; ConfigError is raised for any other field in `per_layer_config`, and for values that differ within the
    type."""

    def __init__(self, layer_type: str, sizes: Sequence[str]) -> None:
        self.layer_type, self.sizes = layer_type, sizes

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        name, stated = args[:2]
        default = args[2] if len(args) > 2 else None
        own = env.get("per_layer_config")
        if own is None:
            return default if stated is None or not all(args[3:]) else stated
        types = env["layer_types"]
        said = {int(layer): dict(fields) for layer, fields in own.items()}
        strange = [layer for layer in said if layer >= len(types) or types[layer] != self.layer_type]
        found = {
            said.get(layer, {}).get(name, env[name]) for layer, each in enumerate(types) if each == self.layer_type
        }
        unread = {each for fields in said.values() for each in fields} - set(self.sizes)
        if strange or unread or len(found) > 1:
            which = f"layer {strange[0]}" if strange else min(unread) if unread else f"{name} of several values"
            would = f"{', '.join(self.sizes)} of {self.layer_type} layers, all alike, would do"
            raise ConfigError(f"per_layer_config: has {which}, which no model here implements ({would})")
        return next(iter(found), env[name])

    def bind(self, value: object, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        return bind(args[1], value, env)


class RopeOfType(Rope):
    """`rope_of_type(qk_rope_head_dim, "sliding_attention")`: rotary positions of the layers of one type. All
    `qk_rope_head_dim` channels are rotated, whatever the config's partial rotary factor (dots3 note)."""

    def convert_parameters(self, found: Mapping[str, Any], head_dim: int) -> Mapping[str, Any]:
        return {name: value for name, value in found.items() if name != "partial_rotary_factor"}


class DoubledIf(Codec):
    """`doubled_if(use_double_wide_mlp, intermediate_size)`: the number, doubled if the first argument is true."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        return 2 * args[1] if args[0] else args[1]

    def bind(self, value: object, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        for number in try_evaluate(args[1], env):
            if value in (number, 2 * number):
                return bind(args[0], value != number, env)
        return {}


def write_own_sizes(pattern: Sequence[str], head_dim: int, n_kv_heads: int) -> dict[str, dict[str, int]]:
    """`full_sizes(pattern, global_head_dim, kv_heads)`: the `per_layer_config` with these sizes for full layers."""
    sizes = {"head_dim": head_dim, "num_key_value_heads": n_kv_heads}
    return {str(layer): sizes for layer, kind in enumerate(pattern) if kind.startswith("full")}


def write_sliding_sizes(pattern: Sequence[str], *sizes: int) -> dict[str, dict[str, int]]:
    """`sliding_sizes(pattern, …)`: the `per_layer_config` of sliding layers, with a size for each of SLIDING_SIZES."""
    own = dict(zip(SLIDING_SIZES, sizes, strict=True))
    return {str(layer): own for layer, kind in enumerate(pattern) if "sliding" in kind}


def find_source_part(kv_source_layers: Sequence[int], groups: Sequence[Any], layer: int) -> str:
    """`kv_source_part(kv_source_layers, no_rope_layers, layer)`: LENDS, READS or "" as for `kv_part`, for configs that
    name for each layer the layer whose latents it reads. Raises ConfigError unless a layer names itself or the last
    lender before it in its group (layers with positions, or layers without): the published code always reads that
    one."""
    source = kv_source_layers[layer]
    if source == layer:
        return LENDS if layer in kv_source_layers[layer + 1 :] else ""
    if source not in range(layer) or kv_source_layers[source] != source:
        raise ConfigError(f"kv_source_layers: layer {layer} names layer {source}, which has no latents before it")
    lenders = {lender for index, lender in enumerate(kv_source_layers) if lender != index}
    read = max((each for each in lenders if each < layer and bool(groups[each]) == bool(groups[layer])), default=None)
    if read != source:
        found = f"names layer {source}, and the last lender with as much of positions before it is {read}"
        raise ConfigError(f"kv_source_layers: layer {layer} {found} (that one)")
    return READS


FUNCTIONS |= {
    "kv_source_part": PlainFunction(find_source_part),
    "kv_part": PlainFunction(find_part),
    "count_readers": PlainFunction(count_readers),
    "of_full": OfType(FULL, ("head_dim", "num_key_value_heads")),
    "of_sliding": OfType(SLIDING, SLIDING_SIZES),
    "sliding_sizes": PlainFunction(write_sliding_sizes),
    "rope_of_type": RopeOfType(interleaved=True),
    "doubled_if": DoubledIf(),
    "full_sizes": PlainFunction(write_own_sizes),
}
