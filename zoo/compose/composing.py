"""Compose one config from a YAML mapping and overrides, and collect all faults of the overrides."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo import grammar
from zoo.compose.fault_lines import FAULTS, descend, describe_unknown_key, find_mapping, shorten_error
from zoo.compose.hydra_engine import (
    DefaultsList,
    HydraException,
    Listed,
    Override,
    OverrideType,
    apply_override,
    create_defaults_list,
    merge_defaults,
    name_primary,
    rename_primary,
    store_primary,
)
from zoo.compose.overrides import (
    Choices,
    describe_typed,
    format_override,
    note_repeated,
    parse_overrides,
    refuse_sweeps,
    rename_override,
    split_choice,
)
from zoo.compose.shorthand import LATE
from zoo.compose.sources import StatedFile
from zoo.errors import ConfigError
from zoo.grammar.interpolation import split_interpolation

TRAINING: Mapping[str, Any] = {"defaults": ["/config", "_self_"]}
"""A training config with only its defaults list."""


@dataclasses.dataclass
class Composed:
    """A composed config, with its faults, overrides, choices and notes."""

    cfg: DictConfig
    faults: list[str]
    overrides: list[str]
    """The overrides in Hydra's own form: `attention@model.attention=mqa` for `attention=mqa`."""
    touched: list[str]
    """The dotted keys, relative to the model, whose values the user set. Choices in the defaults list are not
    included."""
    choices: dict[str, str | None]
    typed: list[str]
    """The overrides as typed."""
    notes: list[str]
    """Remarks on legal but suspicious input, such as a key given twice."""
    left_out: list[str] = dataclasses.field(default_factory=list)
    """Lines about fields that were dropped because a newly chosen component lacks them; also among the notes."""
    inherited: tuple[str, ...] = ()
    """Keys of `about`, such as the title, that describe the base model but not this changed one."""
    sources: tuple[StatedFile, ...] = ()
    """The user's files behind the config, for file and line in messages."""

    def refuse_faults(self) -> None:
        if self.faults:
            raise ConfigError(*self.faults)


@dataclasses.dataclass(frozen=True)
class Base:
    """A config composed with the choices among the overrides, before other overrides set values."""

    cfg: DictConfig
    choices: dict[str, str | None]
    groups: list[Override]
    rest: frozenset[str]
    """Overrides that look like a choice (`key=word`) but set a value."""
    reads: set[str]
    faults: list[str]


MOST_SHARED = 96  # bases, and as many defaults lists, that the compositions of a process share

_packaged_bases: dict[tuple[object, ...], Base] = {}
_packaged_lists: dict[tuple[object, ...], tuple[DefaultsList, str]] = {}  # with the name of the primary config


@dataclasses.dataclass
class Composition:
    """A YAML mapping with its defaults list, composed with overrides once or many times.

    Composed bases and defaults lists are cached by the choices among the overrides, parsed overrides by their text.
    Bases and lists from packaged files alone are shared by the whole process, because these files do not change.
    """

    repo: Listed
    body: Mapping[str, Any]
    label: str
    """Name of `body` in messages."""
    root: str = ""
    """Key of the model in `body`; "" if `body` is a model."""
    with_hydra: bool = False
    trusted: bool = False
    """Whether `body` skips the check for code (`zoo.compose.gate`)."""
    name: str = dataclasses.field(default_factory=name_primary)
    bases: dict[tuple[object, ...], Base] = dataclasses.field(default_factory=dict)
    lists: dict[tuple[object, ...], DefaultsList] = dataclasses.field(default_factory=dict)
    read: dict[str, tuple[list[Override], list[str]]] = dataclasses.field(default_factory=dict)

    def compose(self, overrides: Sequence[str], varied: Collection[str] | None = None) -> Composed:
        """Compose `body` with Hydra overrides. Faulty overrides are left out and listed in `faults`. `varied` are the
        model's keys that a sweep varies; any other override is dropped from a point of the sweep whose choices do not
        read it. Raises ConfigError for a faulty `body`."""
        faults: list[str] = []
        parsed = [part for each in self._parse(overrides, faults) for part in split_choice(each, self.root)]
        # those that may choose an option of a group: the value is a text, or the key is a group's name
        choosing = [o for o in parsed if isinstance(o.value(), str) or self.repo.group_exists(o.key_or_group)]
        base = self._find_base(choosing)
        values = [each for each in parsed if each not in choosing or format_override(each) in base.rest]
        cfg = copy.deepcopy(base.cfg)
        faults += base.faults
        applied = _apply(cfg, values, self.root, _stateable(self.root, base.reads), faults)
        notes = [*note_repeated(parsed), *_note_router(self.find_model(cfg))]
        cfg, left_out = self._drop_leftovers(cfg, base.groups, applied, varied)
        return Composed(
            cfg=cfg,
            faults=faults,
            overrides=[format_override(o) for o in [*base.groups, *applied]],
            touched=_inside(applied, self.root),
            choices=base.choices,
            typed=list(overrides),
            notes=[*notes, *left_out],
            left_out=left_out,
        )

    def find_model(self, cfg: DictConfig) -> dict[Any, Any] | None:
        """Return the model in a config as plain data; None if it is no mapping. Raises ConfigError for an interpolation
        that cannot be resolved."""
        try:
            model = cfg.get(self.root) if self.root else cfg
        except FAULTS as error:
            raise ConfigError(f"{self.label}: {self.root}: {shorten_error(error, {})}") from error
        found: Any = OmegaConf.to_container(model, resolve=False) if isinstance(model, DictConfig) else None
        return found if isinstance(found, dict) else None

    def _parse(self, overrides: Sequence[str], faults: list[str]) -> list[Override]:
        """Parse overrides. Sweeps, and overrides that Hydra's grammar cannot read, are added to `faults`."""
        parsed = []
        for typed in overrides:
            if typed not in self.read:
                found: list[str] = []
                self.read[typed] = refuse_sweeps(parse_overrides([typed], found), found), found
            parsed += self.read[typed][0]
            faults += self.read[typed][1]
        return parsed

    def _find_base(self, choosing: Sequence[Override]) -> Base:
        """Return the base for these choices, from the cache or newly made."""
        key = self._key(choosing)
        shared = _packaged_bases if self.repo.is_packaged() else {}
        if (found := self.bases.get(key) or shared.get(key)) is not None:
            return found
        base = self.bases[key] = self._make_base(choosing)
        if self.repo.is_packaged() and not base.faults:
            _share(_packaged_bases, key, base)
        return base

    def _key(self, choices: Sequence[Override]) -> tuple[object, ...]:
        return repr(self.body), self.root, self.with_hydra, self.trusted, *map(format_override, choices)

    def _list_defaults(self, choices: Sequence[Override]) -> DefaultsList:
        """Return the defaults list for these choices, from the cache or newly made."""
        if (key := self._key(choices)) in self.lists:
            return self.lists[key]
        if key in _packaged_lists and self.repo.is_packaged():
            return rename_primary(*_packaged_lists[key], self.name)
        made = create_defaults_list(self.repo, self.name, [*choices], self.with_hydra, skip_missing=False)
        self.lists[key] = made
        if self.repo.is_packaged():
            _share(_packaged_lists, key, (made, self.name))
        return made

    def _make_base(self, choosing: Sequence[Override]) -> Base:
        """Compose `body` with only the choices. Raises ConfigError if `body` cannot be composed."""
        faults: list[str] = []
        with store_primary(self.body, self.name, trusted=self.trusted) as name:
            try:
                choices = Choices(self.repo, self.root, faults, self._list_defaults)
                found, groups, values = choices.settle(choosing)
                cfg = merge_defaults(found, self.repo, self.label)
            except FAULTS as error:
                raise ConfigError(f"{self.label}: {shorten_error(error, {name: self.label})}") from error
        self.find_model(cfg)  # raises if there is none
        for node in (cfg, cfg.get(self.root) if self.root else None):
            late = node.pop(LATE, None) if isinstance(node, DictConfig) else None
            for key, value in (late or {}).items():
                OmegaConf.update(node, str(key), value, merge=False)  # type: ignore[arg-type]
        OmegaConf.set_struct(cfg, True)
        reads = grammar.find_names(grammar.expand(self.find_model(cfg) or {}))
        faults += _unread(groups, self.root, reads)
        rest = frozenset(format_override(override) for override in values)
        return Base(cfg, found.overrides.known_choices, groups, rest, reads, faults)

    def _drop_leftovers(
        self, cfg: DictConfig, groups: Sequence[Override], values: Sequence[Override], varied: Collection[str] | None
    ) -> tuple[DictConfig, list[str]]:
        """Drop the fields that no component reads any more after the user swapped a choice. Return the config, and a
        line about the dropped fields."""
        places = [each.package or each.key_or_group for each in groups if not each.is_delete()]
        chosen, inner = {each.removeprefix(f"{self.root}.") for each in places}, _inside(values, self.root)
        deeper = {each.removesuffix(".kind") for each in inner}
        chosen |= {each for each in deeper if "." in each and each.split(".")[-1] in grammar.AXES}
        words = dict(zip(places, (each.value() for each in groups if not each.is_delete()), strict=True))
        swapped = {
            axis: words.get(f"{self.root}.{axis}" if self.root else axis)
            for axis in grammar.AXES
            if any(each.split(".")[-1] == axis for each in chosen)
        }
        body = self.find_model(cfg) if swapped else None
        if body is None:
            return cfg, []
        touched = {*inner} | chosen
        body, gone = grammar.drop_leftovers(body, swapped, touched if varied is None else touched.intersection(varied))
        if self.root:
            OmegaConf.update(cfg, self.root, body, merge=False)
        else:
            cfg = DictConfig(body)
            OmegaConf.set_struct(cfg, True)
        own = [each for each in values if each.key_or_group.removesuffix(".kind").split(".")[-1] in swapped]
        choices = ", ".join(
            f"{(each.package or each.key_or_group).removesuffix('.kind')}={format_override(each).partition('=')[2]}"
            for each in [*groups, *own]
        )
        whose = "the model set" if varied is None else "is set for all points"
        line = f"{choices}: leaves out {', '.join(gone)}, which {whose}"
        if all("position (" in key for key in gone):
            line = f"{choices}: reads no positions, so {', '.join(gone)} is left out"
        return cfg, [line] if gone else []


def _share(shared: dict[tuple[object, ...], Any], key: tuple[object, ...], made: Any) -> None:
    if len(shared) >= MOST_SHARED:
        del shared[next(iter(shared))]  # the oldest
    shared[key] = made


def _note_router(body: dict[Any, Any] | None) -> list[str]:
    """List notes on a mixture of experts whose router or numbers of experts are defaults."""
    whole = grammar.expand(body or {})
    router = whole.get("router")
    if body is None or not isinstance(router, Mapping) or "${up:router}" not in str(whole):  # no mixture reads it
        return []
    notes = [f"router: is not stated, so {router['kind']} chooses the experts (router=… takes another)"]
    usual = {name: split_interpolation(router.get(name))[1] for name in ("n_experts", "top_k") if name not in body}
    told = [f"{name} is {number}" for name, number in usual.items() if number is not None]
    also = [f"router: {' and '.join(told)}, as neither the model nor its router states it"] if told else []
    return [*([] if "router" in body else notes), *also]


def _apply(
    cfg: DictConfig, overrides: Sequence[Override], root: str, extra: Sequence[str], faults: list[str]
) -> list[Override]:
    """Set the overrides' values in the config. Overrides that cannot be applied are added to `faults`. Return the
    applied overrides in Hydra's own form."""
    applied = []
    for typed in overrides:
        override = typed
        key = override.key_or_group
        if override.package is not None:
            faults.append(f"{format_override(override)}: there is no group '{key}' in the configuration tree")
            continue
        if shared := _shared(cfg, key, root):
            faults.append(shared)
            continue
        takes, inner = _takes(cfg, key, root, extra), f"{root}.{key}"
        bare = override.type is OverrideType.CHANGE and not key.startswith(f"{root}.") and not _states(cfg, key)
        if root and bare and (_states(cfg, inner) or _takes(cfg, inner, root, extra)):
            override, takes = rename_override(override, key_or_group=inner), True
        if not override.is_delete():
            override = _place_choice(cfg, override, root)
            takes = takes or _takes(cfg, override.key_or_group, root, extra)
        key = override.key_or_group
        missing = not _states(cfg, key)
        if override.type is OverrideType.CHANGE and missing and not takes:
            model = OmegaConf.select(cfg, root) if root else cfg
            faults.append(describe_typed(override, model, root) or describe_unknown_key(cfg, key, extra))
            continue
        if override.type is OverrideType.CHANGE and takes and (missing or isinstance(override.value(), dict)):
            override = rename_override(override, type=OverrideType.FORCE_ADD)
        try:
            apply_override(override, cfg)
        except (HydraException, OmegaConfBaseException) as error:
            faults.append(f"{format_override(override)}: {shorten_error(error)}")
            continue
        applied.append(override)
    return applied


def _place_choice(cfg: DictConfig, override: Override, root: str) -> Override:
    """Prepare the config for an override of a choice or of its fields. Return the override to apply.

    A choice that is a word becomes a mapping when one of its fields is set. A list is cleared when a mapping replaces
    it, and vice versa. A word over a mapping changes only the `kind`: the other fields stay, or are dropped with a line
    (`grammar.drop_leftovers`) if the new choice does not have them.
    """
    key, value = override.key_or_group, override.value()
    if root and not key.startswith(f"{root}."):
        return override
    parts = key.split(".")
    for depth in (each for each in range(1, len(parts)) if grammar.is_slot(parts[each - 1])):
        word = _read_raw(cfg, place := ".".join(parts[:depth]))
        if isinstance(word, str) and "${" not in word and _states(cfg, place):
            OmegaConf.update(cfg, place, {"kind": word}, force_add=True)
    old = _read_raw(cfg, key)
    if {type(value), type(old)} == {dict, list}:
        OmegaConf.update(cfg, key, None, force_add=True)
    if isinstance(value, str) and isinstance(old, dict) and grammar.is_slot(parts[-1]) and "${" not in value:
        return rename_override(override, key_or_group=f"{key}.kind", type=OverrideType.FORCE_ADD)
    return override


def _takes(cfg: DictConfig, key: str, root: str, extra: Sequence[str]) -> bool:
    """Whether the model may have a key that its YAML omits: a dimension, or a component's field.

    Any field of a component is allowed here, because YAML leaves out fields with defaults. The Spec refuses unknown
    fields.
    """
    if key in extra or any(key.startswith(f"{name}.") and name not in cfg for name in extra):
        return True
    node, missing = descend(cfg, key)
    depth = root.count(".") + 1 if root else 0
    return node is not None and (not root or key.startswith(f"{root}.")) and len(key.split(".")) - len(missing) > depth


def _stateable(root: str, reads: set[str]) -> list[str]:
    """List the keys that a model may set: the grammar's own, and those that its components read."""
    names = reads | grammar.OWN | grammar.BOTH | grammar.DIMS | {*grammar.AXES, *grammar.STRUCTURE, *grammar.TOWERS}
    return [f"{root}.{name}" if root else name for name in sorted(names)]


def _unread(groups: Sequence[Override], root: str, reads: set[str]) -> list[str]:
    """List a fault for each axis that the user chose but no component reads, such as a router in a model without
    experts."""
    used = reads | grammar.OWN | {"block"}
    places = {f"{root}.{axis}" if root else axis: axis for axis in grammar.AXES if axis not in used}
    chosen = [o for o in groups if (o.package or o.key_or_group) in places and not o.is_delete()]
    return [
        f"{format_override(o)}: nothing in this model reads '{places[o.package or o.key_or_group]}' (leave it out)"
        for o in chosen
    ]


def _shared(cfg: DictConfig, key: str, root: str) -> str | None:
    """Describe the fault of setting a field below an interpolation: the value would be lost, or would change every
    other reader. None if there is no such fault. Then an `${or:…}` whose names are not set is replaced by an empty
    mapping."""
    parts = key.split(".")
    node: DictConfig | None = cfg
    for depth, part in enumerate(parts[:-1], 1):
        if node is None or descend(node, part)[1]:
            return None
        if OmegaConf.is_interpolation(node, part):
            text = OmegaConf.to_container(node, resolve=False)[part]  # type: ignore[index,call-overload]
            names, literal = split_interpolation(text)
            if literal is not None and not any(_states(cfg, f"{root}.{name}" if root else name) for name in names):
                OmegaConf.update(cfg, ".".join(parts[:depth]), {}, force_add=True)
                return None
            source = ".".join([names[0], *parts[depth:]]) if names else "the original"
            place = ".".join(parts[:depth])
            return f"{key}: '{place}' is what the rest of the model has too (set {source} instead)"
        node = find_mapping(node, part)
    return None


def _states(cfg: DictConfig, key: str) -> bool:
    return not descend(cfg, key)[1]


def _read_raw(cfg: DictConfig, key: str) -> Any:
    """Read the value at a dotted key as plain data, an interpolation as its text. If some parents of the key are
    missing, look its last name up in the deepest existing mapping, whose value a patch would change."""
    above, _, name = key.rpartition(".")
    node = descend(cfg, above)[0] if above else cfg
    raw: Any = {} if node is None else OmegaConf.to_container(node, resolve=False)
    return raw.get(name)


def _inside(overrides: Sequence[Override], root: str) -> list[str]:
    keys = [o.key_or_group for o in overrides if not o.is_delete()]
    return [k.removeprefix(f"{root}.") for k in keys if not root or k.startswith(f"{root}.")]
