"""Rank the families by similarity to a reference: shared names of tensors and of config fields."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from zoo.families.expression import is_expression
from zoo.families.family import HARMLESS, Family, family_folder, family_names, read_family
from zoo.porting.draft import find_aliases
from zoo.porting.reference_model import Maker, Reference


def rank_families(maker: Maker, reference: Reference) -> list[str]:
    """Rank the families of the reference's topology, nearest first, without the type's own and its descendants. The
    similarity is the Jaccard index of names of tensors plus that of fields."""
    names = {name_pattern(name, reference.prefix) for name in reference.tensors}
    fields = {name for name, value in reference.config.items() if name not in HARMLESS and value is not None}
    found = []
    for name in list_others(maker.model_type):
        family = read_family(name)
        if family.model.get("kind", "decoder") != reference.topology:
            continue
        theirs = set(_list_rows(family))
        aliases = {**family.aliases, **find_aliases(family, maker, reference.config)}
        read = (family.reads | set(family.defaults)) - HARMLESS
        own = {aliases.get(field, field) for field in fields}
        found.append((-_jaccard(names, theirs) - _jaccard(own, read & {*own, *family.defaults}), name))
    return [name for _, name in sorted(found)]


@functools.cache
def list_others(model_type: str) -> tuple[str, ...]:
    """List the families that a draft may copy from: not the type's own, nor any that inherits from it (`like`)."""
    return tuple(name for name in family_names() if not _comes_from(name, model_type))


def _comes_from(name: str | None, model_type: str) -> bool:
    """Whether a family is the type's own, or inherits from it."""
    while name is not None:
        if model_type in read_family(name).model_types:
            return True
        name = read_base(name)
    return False


def read_base(name: str) -> str | None:
    """Read the base of a family (`like` in its YAML); None if there is none."""
    text = (family_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    match = re.search(r"^like: *(\S+)", text, re.MULTILINE)
    return match[1] if match else None


def name_pattern(name: str, prefix: str) -> str:
    """Replace a layer's index by #, an expert's by @ and the prefix by ~: `model.layers.3.mlp.experts.0.w1.weight` →
    `~layers.#.mlp.experts.@.w1`."""
    text = re.sub(r"\.(weight|bias)$", "", name)
    text = f"~{text.removeprefix(prefix)}" if prefix and text.startswith(prefix) else text
    text = re.sub(r"\.\d+(?=\.|$)", ".#", text, count=1)
    return re.sub(r"\.\d+(?=\.|$)", ".@", text)


def _list_rows(family: Family) -> Iterator[str]:
    for row in family.keys.values():
        texts = re.findall(r"\"([^\"]+)\"", row) if is_expression(row) else [str(row)]
        for text in texts:
            for each in text.partition("|")[0].split("+"):
                yield re.sub(r"\.(weight|bias)$", "", each.strip())


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))
