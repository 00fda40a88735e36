"""Walk a Spec. These functions are the only readers of `parts()`; docs/design.md says which to use for what.

`rows`, `walk` and `components` visit the layers of a kind once, however many there are. `tensors`, `placed_tensors` and
`table` go layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from zoo.spec.parts import Experts, Group, Linear, Part, Sized, Stack
from zoo.spec.spec import Spec


class SpecRow(NamedTuple):
    """A component, or one `part` of it: dotted `path` (a layer is named by its kind), `roles` of the slots above it,
    the `kind` of its layer, copies `stored` and `used` in one pass, and whether it `learns`."""

    path: str
    component: Spec
    part: Part | None
    d_model: int
    roles: tuple[str, ...] = ()
    kind: str | None = None
    stored: int = 1
    used: int = 1
    learns: bool = True


def rows(spec: Spec, d_model: int, path: str = "") -> list[SpecRow]:
    """List every component from `spec` down, and every part below it."""
    found: list[SpecRow] = []
    _descend(SpecRow(path, spec, None, d_model), found)
    return found


def _descend(at: SpecRow, found: list[SpecRow]) -> None:
    found.append(at)
    prefix = f"{at.path}." if at.path else ""
    for name, child, slot in at.component.children(at.d_model):
        roles, kind = at.roles + slot.roles, at.kind if slot.kind is None else slot.kind
        if roles[:1] == ("",):  # a weight directly in a layer or a tower: its name is its role
            roles = (name.partition(".")[0], *roles[1:])
        stored, used = (min(at.stored, 1) if slot.common else at.stored * slot.stored), at.used * slot.used
        how = (roles, kind, stored, used, at.learns and slot.learns)
        if isinstance(child, Sized):
            _descend(SpecRow(prefix + name, child.spec, None, child.d_model, *how), found)
        else:
            found.append(SpecRow(prefix + name, at.component, child, at.d_model, *how))


def walk(spec: Spec, d_model: int) -> Iterator[tuple[SpecRow, Part]]:
    """Yield every part below `spec`, with its row."""
    for row in rows(spec, d_model):
        if row.part is not None:
            yield row, row.part


def components(spec: Spec, d_model: int) -> Iterator[tuple[str, Spec, int]]:
    """Yield every component from `spec` down, with its path and how often one pass goes through it."""
    for row in rows(spec, d_model):
        if row.part is None:
            yield row.path, row.component, row.used


def shares_part(block: Spec, d_model: int) -> bool:
    """Whether the layers of a kind share a part (`common`)."""
    return any(isinstance(part, Sized) and part.common for part in block.parts(d_model).values())


def owner_of(path: str, ties: Mapping[str, str | None]) -> str:
    """Find the path of the weight that the part at `path` finally reads. `ties` maps the path of every part to its
    `Tied.to`, or to None if it has a weight of its own.

    A tie refers to the nearest enclosing model that has the path. Example: `decoder.head.out`, tied to
    `embedding.tokens`, reads `decoder.embedding.tokens`; that is tied to `encoder.embedding.tokens`, which owns it.
    """
    to = ties[path]
    if to is None:
        return path
    steps = path.split(".")
    for depth in range(len(steps) - 1, -1, -1):
        found = ".".join([*steps[:depth], to])
        if found != path and found in ties:
            return owner_of(found, ties)
    raise AssertionError(f"{path} is tied to {to}, which no model around it has")


def tensors(spec: Spec, d_model: int, prefix: str = "") -> Iterator[tuple[str, Part, str]]:
    """Yield every tensor, layer by layer: its name as in a built model's `state_dict`, its part, and its name within
    the part."""
    for name, _, part, leaf in _leaves_below(spec, d_model, prefix, prefix):
        yield name, part, leaf


def placed_tensors(spec: Spec, d_model: int, path: str = "") -> Iterator[tuple[str, SpecRow, str]]:
    """Yield every tensor, layer by layer: its name in `state_dict`, the row of its part, and its name within the part.
    `path` is where `spec` stands in the whole model."""
    found = {row.path: row for row in rows(spec, d_model, path) if row.part is not None}
    prefix = f"{path}." if path else ""
    for name, at, _, leaf in _leaves_below(spec, d_model, prefix, prefix):
        yield name, found[at], leaf


def is_hidden_matrix(kind: str | None, part: Part, leaf: str) -> bool:
    """Whether Muon orthogonalises a tensor: the matrix of a Linear inside a layer (`kind` is given), or a stack of such
    matrices (experts). A matrix of one row or column counts as a vector."""
    linear = part.of if isinstance(part, Experts) else part
    if kind is None or leaf != "weight" or not isinstance(linear, Linear):
        return False
    return min(linear.d_in, linear.d_out) > 1


def _leaves_below(
    spec: Spec, d_model: int, prefix: str, at: str, first: bool = True
) -> Iterator[tuple[str, str, Part, str]]:
    """Yield, for every tensor: name, the path of its part in `rows` (a layer is named by its kind), part and leaf. A
    layer that is not the `first` of its kind skips the kind's common parts."""
    for name, part in spec.parts(d_model).items():
        path, row = prefix + name, at + name
        if isinstance(part, Stack):
            seen: set[str] = set()
            for index, kind in part.numbered():
                yield from _leaves_below(
                    part.kinds[kind], d_model, f"{path}.{index}.", f"{row}.{kind}.", kind not in seen
                )
                seen.add(kind)
        elif isinstance(part, Group):
            for inner, leaf in part.parts.items():
                yield from _leaves(leaf, f"{path}.{inner}", f"{row}.{inner}")
        elif isinstance(part, Part):
            yield from _leaves(part, path, row)
        else:
            sub = part if isinstance(part, Sized) else Sized(part, d_model)
            if sub.common and not first:
                continue
            yield from _leaves_below(sub.spec, sub.d_model, f"{path}.", f"{row}.")


def _leaves(part: Part, path: str, row: str) -> Iterator[tuple[str, str, Part, str]]:
    for leaf in part.shapes():
        yield (f"{path}.{leaf}" if leaf else path), row, part, leaf


def table(spec: Spec, d_model: int) -> dict[str, tuple[int, ...]]:
    """List name and shape of every tensor, exactly as a built model's `state_dict` has them."""
    return {name: part.shapes()[leaf] for name, part, leaf in tensors(spec, d_model)}
