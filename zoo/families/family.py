"""Read a family of published models: the meaning of its config.json, and the map of its tensors. conf/family/ has a
YAML for each family.

    model_type: llama                    # as in config.json; by default the name of the file
    architectures:                       # the classes, each with its changes, the default first; left out if that is
                                         # the first class of `like`, under the family's own name (classes.py)
      LlamaForCausalLM: {prefix: model.}
      LLaMAForCausalLM: {as: LlamaForCausalLM}  # another name of a class: an older one, or transformers' own
      XVLForConditionalGeneration: {prefix: model., within: true}  # its head exists only inside a multimodal folder
      T5EncoderModel: {alone: true}      # the encoder of an encoder-decoder, with the rows of its tower
    bare: {model: {pooler: {…}}}         # further changes of the class without a head (LlamaModel, named after the
                                         # first class); null if there is no such class
    tasks:                               # classes with a head for a task, named after the first, and their changes
      ForTokenClassification: {model: {head: {kind: token, labels: =labels()}}, keys: {head.out: classifier}}
                                         # (those that many families have in common are in conf/tasks.yaml)
    defaults: {attention_bias: false}    # values of fields that a config.json may leave out
    unset: [num_key_value_heads]         # fields that it may leave out, then null; free of what its base requires
    requires: {pretraining_tp: 1}        # fields that must have this value, else the config is refused
    harmless: [use_cache]                # fields that do not change the model's outputs
    model:                               # in the model grammar; `=…` is evaluated over the fields (expression.py)
      n_heads: =num_attention_heads
      layers: {moe: {ffn: …}}            # may read `layer`, the layer's index; kinds may combine parts, such as
                                         # `_sliding` in `dense{,_sliding}` (body.combine_kinds)
      pattern: ="dense" if layer < first_k_dense_replace else "moe"
    present: {"*.gate": {legacy: false}} # values of fields that config.json leaves out, if the file has this tensor
                                         # (of this shape: "*.gate [_, hidden_size]"). A field beginning with _ is never
                                         # written to config.json: it records how this file stores its tensors
    derive: {layer_types: =…, _roped: =…}  # fields that a config.json may leave out, and helpers with _, never written
    export: {n_layer: =n_layers}         # fields that the inverse of `model` does not give; may read `pattern`
    optional: [final_logits_bias]        # tensors that a file may lack: initial values are used
    unprefixed: {h.#.ln.weight: h.#.ln_1.weight}  # names in files without the prefix, if not the class's
    unread: {~shared.weight: ~encoder.embed_tokens.weight}  # tensors that the model does not read, and the tensor to
                                         # copy when writing; "" keeps the folder's tensor ("*.x_min": "")
    towers: {encoder: {}, decoder: {}}   # towers with configs of their own within config.json, of the family that the
                                         # inner config names, or of one that is stated here (tower_configs.py)
    crossed: {keys: {…}}                 # cross-attention of the family's causal model as the decoder of such a pair
    keys:                                # ours: theirs (mapping.py); ~ is the prefix of the class
      norm: ~norm
      blocks.#.ffn.{gate,up}: ~layers.#.mlp.{gate,up}_proj  # two rows
    like: llama                          # inherits from that family, and by default from conf/usual.yaml; a row of
                                         # `keys` replaces inherited rows of the same tensors, and null removes what is
                                         # inherited

A class may have `requires`, `keys` and `defaults` of its own. A `model_type` usually has a family of its own, even if
transformers loads it with another family's class (EXAONE and InternLM3 with Llama's): its defaults and names differ,
and serving engines choose their code by its published class. It has no family of its own if nothing differs.

Both directions use this one description. Import evaluates `model`. Export pairs the unevaluated `model` with a Spec,
finds fields with which each expression has the Spec's value, and imports the result: only a config that gives the same
Spec is written.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError, ConfigError, did_you_mean
from zoo.families import codecs  # noqa: F401  (registers the functions of its language)
from zoo.families.body import Body, combine_kinds, lay_over, lay_rows, take_encoder, write_out_keys
from zoo.families.classes import name_classes, name_first_class
from zoo.families.expression import Expression, evaluate_tree, read_names
from zoo.families.layering import evaluate_layers
from zoo.families.tower_configs import TowerConfig, join_models, read_towers
from zoo.paths import conf_dir, list_conf, read_conf
from zoo.untrusted.printable import list_first, quote, shorten

HARMLESS = frozenset(name for group in read_conf("harmless") for name in group["fields"])
"""Fields of any config.json that change no forward pass, unless a family reads them by name; conf/harmless.yaml says
why."""


@dataclass(frozen=True)
class Family:
    """A family's YAML as data; its keys are explained at the top of this file."""

    name: str
    model_types: tuple[str, ...]
    architectures: Mapping[str, Mapping[str, Any]]
    model: Mapping[str, Any]
    stated: Mapping[str, Any]  # `model` with kinds of layer as the file has them, for families that are like this one
    keys: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, Any] = field(default_factory=dict)
    harmless: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    derive: Mapping[str, str] = field(default_factory=dict)
    export: Mapping[str, Any] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    present: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)
    unprefixed: Mapping[str, str] = field(default_factory=dict)
    bare: Mapping[str, Any] | None = field(default_factory=dict)
    tasks: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    towers: Mapping[str, TowerConfig] = field(default_factory=dict)
    crossed: Mapping[str, Any] = field(default_factory=dict)
    inherited: frozenset[str] = frozenset()

    def fields(self, config: Mapping[str, Any], where: str, architecture: str) -> dict[str, Any]:
        """Complete a config's fields by the family's defaults. Raises CheckpointError with a line for each field that
        this class does not support."""
        named = {self.aliases.get(name, name): value for name, value in config.items()}
        self._refuse_contradictions(config, where)
        of_class = self.architectures.get(architecture, {}).get("defaults") or {}
        full = {**self.defaults, **of_class, **named}  # a stated null is kept, as transformers does
        faults = [*self.unmet(full, architecture), *self._unknown_fields(full)]
        if faults:
            raise CheckpointError(*(f"{where}: {fault}" for fault in faults))
        for name, text in self.derive.items():
            if full.get(name) is None:
                full[name] = Expression(text[1:]).value({**full, name: None})
        return full

    def _refuse_contradictions(self, config: Mapping[str, Any], where: str) -> None:
        """Raise CheckpointError for a field that the config states under two names with different values."""
        for name, other in self.aliases.items():
            both = config.get(name), config.get(other)
            if None not in both and both[0] != both[1]:
                said = f"is {quote(both[0])}, and {other}, the same field, is {quote(both[1])} (one of them)"
                raise CheckpointError(f"{where}: {name}: {said}")

    def unmet(self, config: Mapping[str, Any], architecture: str) -> list[str]:
        """List a line for each field whose value is not among those that the family or this class requires. Missing and
        null fields pass."""
        full, faults = {**self.defaults, **config}, []
        of_class = self.architectures.get(architecture, {}).get("requires") or {}
        # Any config may have is_causal: if it is false, transformers lets a decoder's tokens see later ones.
        always = {} if self.model.get("kind") == "encoder" else {"is_causal": True}
        for name, wanted in {**always, **self.requires, **of_class}.items():
            options = wanted if isinstance(wanted, list) else [wanted]
            if name in full and full[name] is not None and full[name] not in options:
                would = f"{' or '.join(map(repr, options))} would do"
                faults.append(f"{name}: is {quote(full[name])}, which no model here implements ({would})")
        return faults

    def _unknown_fields(self, full: Mapping[str, Any]) -> list[str]:
        """List a line for each field that nothing reads. Fields that are false, 0, null or empty, or that begin with an
        underscore, are left out: they change no model."""
        unread = [
            name
            for name, value in full.items()
            if name not in self.known and value not in (None, False, 0, "", [], {}) and not name.startswith("_")
        ]

        def describe(name: str) -> str:
            said = f"a field that {self.name} does not have"
            return f"{shorten(name)}: is {quote(full[name])}, {said}{did_you_mean(name, self.known)}"

        return list_first(unread, describe, self.name)

    @functools.cached_property
    def reads(self) -> set[str]:
        """The names of all fields that the family reads."""
        rope = {
            "rope_parameters",
            "rope_scaling",
            "rope_theta",
            "partial_rotary_factor",
            "default_theta",
            "default_partial",
        }
        rope |= {"original_max_position_embeddings", "max_position_embeddings"}
        trees = [self.model, self.derive, self.architectures]
        inner = {each.field.partition(".")[0] for each in self.towers.values()}
        return set().union(*(read_names(tree) for tree in trees)) | rope | set(self.aliases) | inner

    @functools.cached_property
    def known(self) -> set[str]:
        """The names of all fields that the family reads, states or knows to be harmless."""
        return self.reads | set(self.harmless) | set(self.defaults) | set(self.requires) | HARMLESS

    @property
    def written(self) -> dict[str, Any]:
        """The defaults to write into a config.json. Null values, names that start with `default_`, and inherited fields
        that this family does not read are left out."""
        unread = self.inherited - self.reads - read_names(self.keys)
        stated = {name: value for name, value in self.defaults.items() if value is not None and name not in unread}
        return {name: value for name, value in stated.items() if not name.startswith("default_")}

    def is_helper(self, name: str) -> bool:
        """Tell whether a name in expressions is not a field of a config.json: `layer`, or a helper of `derive`."""
        return name == "layer" or (name.startswith("_") and name in self.derive)

    def template(self, architecture: str, where: str = "") -> Mapping[str, Any]:
        """Merge a class's changes into `model`, with expressions unevaluated. A null in the changes removes a key.
        Raises CheckpointError for a class of another family."""
        if architecture not in self.architectures:
            known = ", ".join(self.architectures)
            raise CheckpointError(f"{where}: architectures: {quote(architecture)} is not read (one of: {known})")
        patch = self.architectures[architecture]
        model, changes = take_encoder(self.model) if patch.get("alone") else self.model, patch.get("model") or {}
        changed = {key: lay_over(model.get(key), value) for key, value in changes.items()}
        return {key: value for key, value in {**model, **changed}.items() if changes.get(key, 0) is not None}

    def body(self, config: Mapping[str, Any], where: str, changes: Mapping[str, Any] | None = None) -> Body:
        """Translate a config.json to a model in Zoo's grammar. `changes` are merged into the model last. They come from
        the file's tensors: an untied head, for instance. Raises CheckpointError for a class of another family, and for
        fields or values that are not supported."""
        named = config.get("architectures") or [next(iter(self.architectures))]
        named = [self.architectures.get(named[0], {}).get("as", named[0])]
        template = lay_over(self.template(named[0], where), changes or {})
        try:
            fields = self.fields(config, where, named[0])
            if self.towers:
                towers = read_towers(self, fields, where, changes or {}, family_of_config)
                return self._join(self.template(named[0], where), fields, named[0], towers)
            return self._body(template, fields, named[0])
        except CheckpointError:
            raise
        except ConfigError as error:
            raise CheckpointError(*(f"{where}: {fault}" for fault in error.faults)) from error

    def _body(self, template: Mapping[str, Any], fields: Mapping[str, Any], architecture: str) -> Body:
        body = {key: value for key, value in template.items() if key not in ("layers", "pattern", "encoder", "decoder")}
        made = {**evaluate_tree(body, fields), **evaluate_layers(template, fields)}
        kinds = {"": made.pop("_kinds", [])}
        for tower in ("encoder", "decoder"):
            if tower in template:
                inner = {k: v for k, v in template[tower].items() if k not in ("layers", "pattern")}
                made[tower] = evaluate_tree(inner, fields) | evaluate_layers({**template, **template[tower]}, fields)
                kinds[tower] = made[tower].pop("_kinds", [])
        return Body(self, architecture, made, kinds, dict(fields))

    def _join(
        self, template: Mapping[str, Any], fields: Mapping[str, Any], architecture: str, towers: dict[str, Body]
    ) -> Body:
        """Join the models of two towers. Expressions read a tower's fields by its name, and its width as `d_model`."""
        env = {name: {**each.fields, "d_model": each.model["d_model"]} for name, each in towers.items()}
        model = join_models(evaluate_tree(template, {**fields, **env}), towers)
        return Body(self, architecture, model, {}, dict(fields), towers)


# ---------------------------------------------------------------- the catalogue


def family_folder() -> Path:
    return conf_dir() / "family"


@functools.cache
def read_family(name: str) -> Family:
    return parse_family(name, read_conf(f"family/{name}"))


@functools.cache
def _read_usual() -> Family:
    """Read the family `usual`, the base of every family whose YAML has neither `like` nor `towers`."""
    node = read_conf("usual")
    return Family(name="usual", model_types=(), stated=node["model"], **write_out_keys(node))


def parse_family(name: str, node: dict[str, Any]) -> Family:
    """Make the family that a YAML describes. Modifies the node."""
    base = read_family(node.pop("like")) if "like" in node else None if "towers" in node else _read_usual()
    unset = dict.fromkeys(node.pop("unset", ()))
    node["defaults"] = {**unset, **node.get("defaults", {})}
    if base and unset.keys() & base.requires.keys():
        base = replace(base, requires={key: value for key, value in base.requires.items() if key not in unset})
    node = write_out_keys(node, base.keys if base else {})
    node = _like(base, node) if base else node
    node["stated"] = node["model"]
    if "layers" in node["model"]:
        node["model"] = node["model"] | {"layers": combine_kinds(node["model"]["layers"])}
    types = node.pop("model_type", name)
    node |= {key: tuple(node.pop(key, ())) for key in LISTS}
    node["defaults"] = {**dict.fromkeys(node.get("derive", {})), **node.get("defaults", {})}
    node["towers"] = {tower: _parse_tower(name, tower, each) for tower, each in node.pop("towers", {}).items()}
    stated = node.get("architectures") or name_first_class(name, (base or _read_usual()).architectures)
    node["architectures"] = name_classes(name, stated, node.get("bare", {}), node.get("tasks", {}))
    return Family(name=name, model_types=tuple(types if isinstance(types, list) else [types]), **node)


def _parse_tower(name: str, tower: str, node: Mapping[str, Any]) -> TowerConfig:
    """Parse the place of a tower's config, and the tower's family if that is stated with it."""
    inner = copy.deepcopy(dict(node))  # a YAML alias shares one node, which parse_family modifies
    where = {"field": inner.pop("field", tower), **{key: tuple(inner.pop(key, ())) for key in ("shared", "beside")}}
    return TowerConfig(family=parse_family(name, inner) if inner else None, **where)


LISTS = ("harmless", "ignore", "optional")
MAPS = (
    *("defaults", "requires", "aliases", "derive", "export", "dropped", "same", "present", "unread", "unprefixed"),
    *("tasks", "keys"),
)


def _like(base: Family, node: dict[str, Any]) -> dict[str, Any]:
    """Complete a family that states only its differences from `base`. A key that it sets to null is removed, except in
    `defaults` and `requires`, where null is a value."""
    node["inherited"] = frozenset(base.defaults) - frozenset(node.get("defaults", {}))
    for name in LISTS:
        node[name] = [*getattr(base, name), *node.get(name, ())]
    for name in MAPS:
        both = (lay_rows if name == "keys" else operator.or_)(getattr(base, name), node.get(name, {}))
        is_value = name in ("defaults", "requires")
        node[name] = {key: value for key, value in both.items() if value is not None or is_value}
    node["crossed"] = lay_over(base.crossed, node.get("crossed", {})) or {}
    node.setdefault("bare", base.bare)
    patch = node.get("model", {})
    kind = {"kind": patch.pop("kind")} if "kind" in patch else {}  # a `kind` would replace all other keys
    laid = lay_over(base.stated, patch)
    model = {key: value for key, value in laid.items() if patch.get(key, 0) is not None} | kind
    if "layers" in model:
        model["layers"] = {name: each for name, each in model["layers"].items() if each is not None}
    return {**node, "model": model}


@functools.cache
def family_names() -> tuple[str, ...]:
    return tuple(list_conf("family"))


@functools.cache
def by_model_type() -> dict[str, str]:
    """Map each `model_type` to its family's name."""
    return {each: name for name in family_names() for each in read_family(name).model_types}


def find_name(model_type: object) -> str | None:
    """Find the name of the family of a `model_type`, or None. The files of all families are read only if no family of
    this name has this `model_type`."""
    if not isinstance(model_type, str):
        return None
    if model_type in family_names() and model_type in read_family(model_type).model_types:
        return model_type
    return by_model_type().get(model_type)


def family_of_config(config: Mapping[str, Any], where: str) -> Family:
    """Find the family of a config.json by its model_type. Raises CheckpointError if there is none."""
    kind = config.get("model_type")
    if kind is None:
        raise CheckpointError(f"{where}: has no model_type, so its family is not known (transformers writes one)")
    name = find_name(kind)
    if name is None:
        raise CheckpointError(f"{where}: model_type: {quote(kind)} is no family here{_describe_unknown(config)}")
    return read_family(name)


SENSES = ("image_size", "num_channels", "num_mel_bins", "feat_extract_norm", "sampling_rate", "audio_channels")
"""Fields of models that read images or sound."""


def _describe_unknown(config: Mapping[str, Any]) -> str:
    """Say why a config's model_type is not supported, if its fields show it; otherwise name the nearest model types."""
    own_code = ", and the code of the folder (auto_map) is not run" if config.get("auto_map") else ""
    if sense := next((key for key in SENSES if key in config), None):
        return f"{own_code} (text models only: {sense} is for images or sound)"
    near = did_you_mean(str(config["model_type"]), by_model_type(), n=3)
    return own_code + (near or f" (one of {len(by_model_type())}; `zoo family new` drafts another)")
