"""Parse overrides with Hydra's grammar, and find the key of each choice in the defaults list."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from zoo.compose.fault_lines import describe_missing_option, shorten_error
from zoo.compose.hydra_engine import (
    ChoiceSweep,
    DefaultsList,
    HydraException,
    IntervalSweep,
    Listed,
    Override,
    OverridesParser,
    OverrideType,
    format_value,
)
from zoo.errors import did_you_mean
from zoo.grammar import AXES
from zoo.grammar.dialect import is_choice
from zoo.grammar.hints import hint_keys
from zoo.paths import list_conf
from zoo.untrusted.printable import shorten

LONGEST = 16_384
"""Maximum number of characters of an override. Hydra's parser takes 1.5 s for this length, and far longer for more."""

STARTS = ("model", "base", "base_model", "like", "extends", "inherits", "from")
"""Keys that name the base model in other tools."""


def parse_overrides(texts: Iterable[str], faults: list[str], loader: Any = None) -> list[Override]:
    """Parse overrides with Hydra's grammar. Unreadable ones are added to `faults`. `glob(*)` needs a `loader`."""
    parser = OverridesParser.create(loader)
    parsed = []
    for text in texts:
        if len(text) > LONGEST:
            faults.append(f"{text[:60]}…: has {len(text):,} characters (at most {LONGEST:,}; a file holds more)")
            continue
        try:
            parsed += parser.parse_overrides([text])
        except ValueError:  # Python's limit on the digits of an int
            faults.append(f"{shorten(text, 60)}: holds a number of thousands of digits (fewer)")
        except HydraException as error:
            if "=" not in text and not text.startswith("~"):
                faults.append(f"{text}: not an override, there is no '=' (write key=value, or ~key to delete)")
            else:
                reason = shorten_error(error).removeprefix(f"Error parsing override '{text}'").strip()
                faults.append(f"{text}: bad override syntax, {reason} (quote a value that holds special characters)")
    return parsed


def refuse_sweeps(parsed: Iterable[Override], faults: list[str]) -> list[Override]:
    """Return the overrides with a single value. Sweeps, which need `-m`, are added to `faults`."""
    single = []
    for override in parsed:
        if override.is_sweep_override():
            key = override.key_or_group
            verbs = "train, stats and probe"
            faults.append(f"{override.input_line}: several values are a sweep, for {verbs} -m (a list is {key}=[a,b])")
        else:
            single.append(override)
    return single


def note_repeated(parsed: Sequence[Override]) -> list[str]:
    """List a note for each key that is overridden more than once."""
    lines: dict[str, list[str]] = {}
    for override in parsed:
        lines.setdefault(override.get_key_element(), []).append(format_override(override))
    return [f"{key} is given {len(given)} times, {given[-1]} counts" for key, given in lines.items() if len(given) > 1]


def format_override(override: Override) -> str:
    """Format the override as it was typed."""
    line = override.input_line or ""
    return override.get_key_element() + (line[line.index("=") :] if "=" in line else "")


def describe_typed(override: Override, model: Any, root: str) -> str | None:
    """Describe a key that belongs elsewhere in the model: under another name, or as a field of a choice. None for other
    keys."""
    place = f"{root}." if root and override.key_or_group.startswith(f"{root}.") else ""
    key = override.key_or_group.removeprefix(place)
    if "." in key or not isinstance(model, DictConfig):
        return None
    if key in STARTS and (name := override.value()) in list_conf("model"):
        return (
            f"{place}{key}: unknown key (a model is named first: `zoo stats {name}`; in a file: [/model/{name}@_here_])"
        )
    body: Any = OmegaConf.to_container(model, resolve=False)
    hint = hint_keys({key: override.value()}, body, place, typed=True).get(key)
    return f"{place}{key}: {hint.replace('no such key (', 'unknown key (')}" if hint else None


def list_alternatives(override: Override) -> list[str]:
    """List one override for each value of a sweep. An interval, which sampling sweepers use, is represented by its
    start."""
    if not override.is_sweep_override():
        return [format_override(override)]
    key = override.get_key_element()
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}"]
    return [f"{key}={item}" for item in override.sweep_string_iterator()]


def list_values(override: Override) -> list[str]:
    """List the values of an override or a sweep, without quotes."""
    value = override.value()
    chosen = value.list if isinstance(value, ChoiceSweep) else [value]
    return [getattr(item, "text", None) or str(item) for item in chosen]


def rename_override(override: Override, **changes: Any) -> Override:
    """Copy an override with another key or type, and adapt its `input_line`."""
    copy = dataclasses.replace(override, **changes)
    copy.input_line = copy.get_key_element() + format_override(override)[len(override.get_key_element()) :]
    return copy


def split_choice(override: Override, root: str) -> list[Override]:
    """Split a choice with fields, `attention={kind: mha, softcap: 50}`, into an override for the choice and one for
    each field. Merged as one mapping, it would keep fields of the previous choice. Other overrides are returned as they
    are."""
    value, key = override.value(), override.key_or_group
    axis = key.removeprefix(f"{root}.") if root else key
    if not isinstance(value, dict) or not isinstance(kind := value.get("kind"), str) or not is_choice(axis, kind):
        return [override]
    fields = {name: format_value(override, each) for name, each in value.items() if name != "kind"}
    lines = [f"{key}={kind}", *(f"{key}.{name}={text}" for name, text in fields.items())]
    return parse_overrides(lines, [])


@dataclasses.dataclass
class Choices:
    """The choices in a defaults list: the groups that may be swapped, their keys and their options.

    `root` is the model's key in the config: "" for a model alone, "model" in a training config.
    """

    repo: Listed
    root: str
    faults: list[str]
    list_defaults: Callable[[Sequence[Override]], DefaultsList]
    """Function that returns the defaults list for these choices."""
    known: dict[str, str | None] = dataclasses.field(default_factory=dict)

    def settle(self, overrides: Sequence[Override]) -> tuple[DefaultsList, list[Override], list[Override]]:
        """Split overrides into choices and values. Return the defaults list, the choices under their keys in that list,
        and the other overrides, each in the user's order.

        A choice may add groups to the list (`model=mixtral-tiny` adds a router), so the search is repeated until no
        more choices are found. An axis that is still not in the list is added.
        """
        groups: dict[int, Override] = {}
        pending = dict(enumerate(overrides))
        self._read(groups)
        while hits := {i: hit for i, override in pending.items() if (hit := self._find(override))}:
            outer = {i: hit for i, hit in hits.items() if hit.package is None}  # another model has other axes
            hits = outer or hits
            pending = {i: override for i, override in pending.items() if i not in hits}
            groups |= {i: hit for i, hit in hits.items() if self._has_option(hit)}
            self._read(groups)
        values = [override for override in pending.values() if not self._is_group(override)]
        for i, override in pending.items():
            if self._is_group(override) and (added := self._added(override)) and self._has_option(added):
                groups[i] = added
        return self._read(groups), [groups[i] for i in sorted(groups)], values

    def _read(self, groups: dict[int, Override]) -> DefaultsList:
        found = self.list_defaults([groups[i] for i in sorted(groups)])
        known = found.overrides.known_choices
        self.known = {k: v for k, v in known.items() if self.root or k.split("@")[0] != "model"}
        return found

    def _is_group(self, override: Override) -> bool:
        return self.repo.offers(override.key_or_group) and not isinstance(override.value(), dict)

    def _find(self, override: Override) -> Override | None:
        """Return the override under its key in the defaults list. None if it is no choice there."""
        if isinstance(override.value(), dict) or override.type is OverrideType.ADD:
            return None
        key, package = override.key_or_group, override.package
        if self._is_group(override):
            if (f"{key}@{package}" if package else key) in self.known:
                return override
            places = [k for k in self.known if k.split("@")[0] == key]
            own = f"{key}@{self.root}.{key}"
            if package is None and (own in places or len(places) == 1):
                return rename_override(override, package=(own if own in places else places[0]).partition("@")[2])
            return None
        if package is None and isinstance(override.value(), str):  # model.attention=mqa
            for place in self.known:
                group, _, inside = place.partition("@")
                if inside == key and not override.is_force_add():
                    return rename_override(override, key_or_group=group, package=inside)
        return None

    def _has_option(self, override: Override) -> bool:
        if override.is_delete():
            return True
        group, value = override.key_or_group, override.value()
        names = value if isinstance(value, list) else [value]
        wanted = [name for name in names if isinstance(name, str)]
        if not wanted or len(wanted) < len(names):
            options = ", ".join(self.repo.get_group_options(group))
            self.faults.append(f"{group}: is chosen by name, found {override.value()!r} (one of: {options})")
            return False
        missing = [v for v in wanted if not self.repo.config_exists(f"{group}/{v}")]
        self.faults += [describe_missing_option(group, v, self.repo.get_group_options(group)) for v in missing]
        return not missing

    def _added(self, override: Override) -> Override | None:
        """Return the override that adds a group to the defaults list: always for an axis of the model, only with an
        explicit `+` for any other group. Otherwise add a fault and return None."""
        group, package = override.key_or_group, override.package
        place = f"{group}@{package}" if package else group
        if group not in AXES and not self.root:
            reason = (
                "the model is the first argument" if group == "model" else f"a model has the axes {', '.join(AXES)}"
            )
            self.faults.append(f"{format_override(override)}: '{group}' is no part of a model ({reason})")
        elif override.is_delete() or override.is_force_add():
            self.faults.append(f"{format_override(override)}: there is no '{place}' in the defaults list to change")
        elif override.is_add() and place in self.known:
            self.faults.append(f"{format_override(override)}: '{place}' is already chosen (leave out the +)")
        elif override.is_add() or (group in AXES and package is None):
            inside = f"{self.root}.{group}" if self.root and group in AXES and package is None else package
            return rename_override(override, type=OverrideType.ADD, package=inside)
        else:
            hint = did_you_mean(place, self.known) or f" (add with +{format_override(override)})"
            self.faults.append(f"{place}: nothing in the defaults list goes by that{hint}")
        return None
