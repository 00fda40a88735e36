"""Find the unknown keys of a model, such as other libraries' names for Zoo's keys."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from zoo.errors import did_you_mean
from zoo.grammar.hints import hint_keys, settle_line
from zoo.grammar.interpolation import Scope
from zoo.grammar.keys import BOTH, KNOWN, TOWERS
from zoo.grammar.towers import TowerNode
from zoo.model.encoder_decoder import EncoderDecoder
from zoo.model.tower import Topology
from zoo.spec.foreign import FOREIGN

_MISSPELT = re.compile(r"\w+: no such key \(did you mean '(\w+)'\?\)")


def find_strangers(root: Scope, reads: set[str], towers: Iterable[TowerNode]) -> list[str]:
    """Write a fault for each key that is not in the grammar (KNOWN) and that no interpolation looks up."""
    known = KNOWN | reads
    whole = known | BOTH | set(TOWERS) if root.get("kind") == EncoderDecoder.kind else known
    strange = {str(key): value for key, value in root.node.items() if key not in whole}
    if root.get("kind") is not None and root.get("kind") not in Topology.kinds:  # its kind has a fault already
        strange = {key: value for key, value in strange.items() if key not in BOTH | set(TOWERS)}
    faults = _describe_strangers("", strange, root.node, whole)
    for tower in towers:
        faults += _describe_strangers(tower.prefix, tower.patch, tower.root.node, known)
    return faults


def _describe_strangers(
    prefix: str, node: Mapping[Any, Any], root: Mapping[Any, Any], known: Collection[str]
) -> list[str]:
    """Describe the unknown keys of a node: how Zoo writes them, else the closest spelling."""
    strange = {str(key): value for key, value in node.items() if key not in known}
    hints = dict.fromkeys(TOWERS, f"no such key of a model with one tower (kind: {EncoderDecoder.kind})")
    hints |= hint_keys(strange, root, prefix)
    return [f"{prefix}{key}: {hints.get(key) or f'no such key{did_you_mean(key, known)}'}" for key in strange]


def settle_faults(faults: Iterable[str], root: Scope) -> list[str]:
    """Leave out "KEY: is missing" if the key is misspelt or stated under another library's name, because the stated key
    has a fault already. Write the other faults in the words of the file (`settle_line`)."""
    faults = list(dict.fromkeys(faults))
    there = {FOREIGN[str(key)] for key in root.node if key not in KNOWN and str(key) in FOREIGN}
    there |= {found[1] for fault in faults if (found := _MISSPELT.fullmatch(fault))}
    kept = [fault for fault in faults if not any(fault.startswith(f"{key}: is missing") for key in there)]
    return [settle_line(fault, root.node) for fault in kept]
