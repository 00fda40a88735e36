"""Read a model's YAML node into its Spec: resolve interpolations, expand kinds of layer, report all faults at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from zoo.errors import ConfigError
from zoo.grammar.dialect import expand
from zoo.grammar.hints import find_stated
from zoo.grammar.interpolation import Scope, call_resolvers, find_unresolvable
from zoo.grammar.keys import AXES, BASES, BOTH, DIMS, OWN, STRUCTURE
from zoo.grammar.places import locate_faults, look_up
from zoo.grammar.strangers import find_strangers, settle_faults
from zoo.grammar.towers import TowerNode, read_fields, split_towers
from zoo.model.tower import Topology


def to_spec(node: DictConfig | dict[Any, Any], touched: Iterable[str] = ()) -> Any:
    """Read the Spec that a model node describes. Raises ConfigError with every fault and its YAML path.

    `touched` are the keys that the user overrode. Those that no component reads are refused, because they would have no
    effect.
    """
    problems: list[str] = []
    root = to_root(node)
    asked = root.take_reads()  # names in any interpolation
    towers = split_towers(root, problems)
    asked |= set().union(*(tower.asked for tower in towers))
    read: set[str] = set()  # names that the components of the model's layers look up
    trees = {}
    for tower in towers:
        trees[tower.name], names = tower.read(problems, asked)
        read |= names
    problems += find_strangers(root, asked | read, towers)
    touched = tuple(touched)
    problems += [_describe_idle(key, root) for key in touched if _idle(key, asked, read)]
    problems += [_describe_overruled(key, towers) for key in touched if _is_overruled(key, root, towers, read)]
    try:
        spec = Topology.parse(_join(root, trees))
        if not problems:
            return spec
    except ValidationError as error:
        problems += locate_faults(error, {tower.name: tower for tower in towers})
    absent = [name for name in trees if name and name not in root.node]
    if absent and any("is missing" in each for each in problems):
        would = "what both towers have at the top level, what differs under encoder and decoder"
        problems.append(f"{' and '.join(absent)}: nothing is stated there beside the model's own keys ({would})")
    raise ConfigError(*settle_faults(problems, root))


def to_tree(node: DictConfig | dict[Any, Any]) -> dict[str, Any]:
    """Read the plain data from which `to_spec` makes a Spec, unchecked, its interpolations replaced by values."""
    root = to_root(node)
    return _join(root, {tower.name: tower.read([], set())[0] for tower in split_towers(root, [])})


def to_root(node: DictConfig | dict[Any, Any]) -> Scope:
    """Expand a copy of the node and make it a root Scope. Raises ConfigError if an interpolation cannot be resolved,
    unless its missing keys may be stated by the towers of an encoder-decoder."""
    raw: Any = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    root = Scope(expand(call_resolvers(raw)))
    faults = find_unresolvable(root)
    if faults and not _resolves_by_tower(root):  # perhaps because a key is misspelled, so unknown keys come first
        raise ConfigError(*settle_faults([*find_strangers(root, root.take_reads(), ()), *faults], root))
    return root


def _resolves_by_tower(root: Scope) -> bool:
    """Tell whether each tower of an encoder-decoder states the keys that the model's own keys lack."""
    try:
        return len(split_towers(root, [])) > 1
    except ConfigError:
        return False


def _join(root: Scope, trees: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Assemble the whole model's fields: those of its only tower, or both towers' plus the encoder-decoder's own."""
    return trees.get("") or {**read_fields(root, BOTH), **trees}


def _idle(key: str, asked: set[str], read: set[str]) -> bool:
    """Tell whether a key is a dimension that no component in the model's layers has read."""
    return key in DIMS | asked and key not in OWN | set(AXES) | set(STRUCTURE) | read


def _describe_idle(key: str, root: Scope) -> str:
    """Describe a key that no component reads, with the field that the model states in the key's place, if any."""
    stated = find_stated(key, root.node)
    why = f"{stated} is stated in its place (set that, or leave {key} out)" if stated else "leave it out"
    return f"{key}: nothing in this model reads it{f', as {why}' if stated else f' ({why})'}"


def _is_overruled(key: str, root: Scope, towers: Iterable[TowerNode], read: set[str]) -> bool:
    """Tell whether a key is a field of a choice that every kind of layer replaces by a choice of its own."""
    axis, *fields = key.split(".")
    if not fields or fields == ["kind"] or axis not in read & BASES.keys() - OWN:
        return False
    scopes = [scope for tower in towers for scope in tower.scopes.values()]
    return all(look_up(scope.node, key) != look_up(root.node, key) for scope in scopes)


def _describe_overruled(key: str, towers: Iterable[TowerNode]) -> str:
    """Describe a field of a choice that no layer has, with the kinds of layer whose own choice has such a field."""
    axis, name = key.split(".")[:2]
    places = [
        f"{tower.prefix}layers.{kind}.{key}"
        for tower in towers
        for kind, scope in tower.scopes.items()
        if (choice := BASES[axis].kinds.get(str(look_up(scope.node, f"{axis}.kind"))))
        and name in {field.name for field in choice.fields()}
    ]
    would = f"{', or '.join(places)}" if places else "leave it out"
    return f"{key}: no layer reads it, as each kind of layer states its own {axis} ({would})"
