"""Find the unknown keys of a model, such as other libraries' names for ours."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from zoo.errors import did_you_mean
from zoo.grammar.dialect import find_owner
from zoo.grammar.interpolation import Scope
from zoo.grammar.keys import BOTH, KNOWN, TOWERS
from zoo.grammar.towers import TowerNode
from zoo.model.encoder_decoder import EncoderDecoder
from zoo.model.tower import Topology
from zoo.spec.foreign import FOREIGN, translate_name

_MISSPELT = re.compile(r"\w+: no such key \(did you mean '(\w+)'\?\)")


def find_strangers(root: Scope, reads: set[str], towers: Iterable[TowerNode]) -> list[str]:
    """List the keys that are neither a field nor an axis, and that no interpolation names."""
    known = KNOWN | reads
    whole = known | BOTH | set(TOWERS) if root.get("kind") == EncoderDecoder.kind else known
    strange = [str(key) for key in root.node if key not in whole]
    if not _has_topology(root):  # whether the model has towers is unknown, and its kind has a fault already
        strange = [key for key in strange if key not in BOTH | set(TOWERS)]
    faults = [f"{key}: {find_owner(key, root.node) or describe_stranger(key, root.node, whole)}" for key in strange]
    for tower in towers:
        strange = [str(key) for key in tower.patch if key not in known]
        faults += [f"{tower.prefix}{key}: {describe_stranger(key, tower.patch, known)}" for key in strange]
    return faults


def describe_stranger(key: str, node: Mapping[object, object], known: Collection[str]) -> str:
    """Describe an unknown key, with our name if it is another library's, else with the closest spelling."""
    if key in TOWERS:
        return f"no such key of a model with one tower (kind: {EncoderDecoder.kind})"
    value = node.get(key)
    ours = translate_name(key, None if isinstance(value, Mapping | list) or "${" in str(value) else value)
    return f"no such key{f' ({ours})' if ours else did_you_mean(key, known)}"


def _has_topology(root: Scope) -> bool:
    kind = root.get("kind")
    return kind is None or (isinstance(kind, str) and kind in Topology.kinds)


def drop_consequences(faults: Iterable[str], root: Scope) -> list[str]:
    """Leave out "KEY: is missing" where the key is stated under another library's name, or misspelt: that has a fault
    already."""
    faults = list(faults)
    there = {FOREIGN[str(key)] for key in root.node if key not in KNOWN and str(key) in FOREIGN}
    there |= {found[1] for fault in faults if (found := _MISSPELT.fullmatch(fault))}
    return [fault for fault in faults if not any(fault.startswith(f"{key}: is missing") for key in there)]
