"""Divide a tower's parts before and after its layers into pieces, in the order of its traced forward pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from zoo.costs.shadow.tape import TapeNode
from zoo.drawing.facts import name_component
from zoo.spec import LOGITS, TOKENS, Linear, Sized, Spec


class EndPiece(NamedTuple):
    """A piece of a tower outside its layers: a part and its `path` in the tower. Parts and fields in `apart` belong to
    other pieces. `said` is text from the trace. `name` is set if several pieces have one path. A piece outside the
    residual stream may read the result of a part before the layers: `reads` is that part's path ("" for none)."""

    path: str
    part: Any
    apart: Collection[str] = ()
    said: str = ""
    name: str = ""
    reads: str = ""


def list_end_pieces(tower: Any, traced: Mapping[str, Sequence[TapeNode]]) -> dict[str, list[EndPiece]]:
    """List the pieces before, beside and after a tower's layers, in the order of the traced operations
    (`ModelWires.ends`). An untraced part follows the part that the tower lists before it."""
    first = {side: _find_first(traced.get(side, ())) for side in ("before", "beside", "after")}
    found: dict[str, list[tuple[int, EndPiece]]] = {side: [] for side in first}
    side, last = "before", 0
    for name, part in tower.served.parts(tower.d_model).items():
        if name == "blocks":
            side, last = "after", 0
        elif name == "streams":
            widen, merge = _divide_streams(part, first["before"])
            found["before"].append((first["before"].get(name, last), widen))
            found["after"].append((0, merge))
        elif name == "position" and tower.position.inside and not tower.position.embeds:
            found["beside"] += [(0, EndPiece(name, part))] if has_weights(part) else []
        else:
            for key, piece in _divide(name, part, tower.d_model, traced.get("after", ())):
                here = next((each for each, paths in first.items() if key in paths), side)
                at = first[here].get(key, last)
                last = at if here == side else last
                reads = _find_read(piece.path, traced["beside"]) if here == "beside" else ""
                found[here].append((at, piece._replace(reads=reads)))
    return {side: [piece for _, piece in sorted(own, key=itemgetter(0))] for side, own in found.items()}


def has_weights(part: Any) -> bool:
    """Whether a component, or one that it holds, has weights."""
    spec, width = (part.spec, part.d_model) if isinstance(part, Sized) else (part, 1)
    return isinstance(spec, Spec) and bool(spec.parts(width))


def _find_first(nodes: Sequence[TapeNode]) -> dict[str, int]:
    """Map each part, and each part of a part, to the index of its first operation."""
    found: dict[str, int] = {}
    for node in nodes:
        names = ".".join(node.path).split(".")
        for end in (1, 2):
            found.setdefault(".".join(names[:end]), node.index)
    return found


def _find_read(path: str, nodes: Sequence[TapeNode]) -> str:
    """Return the path of the part whose result the part at `path` reads; "" if none. `nodes` are traced operations."""
    own = {node.index: ".".join(node.path) for node in nodes}
    made = (
        own.get(each.node.index, "")
        for node in nodes
        for each in node.sources
        if each.node and own[node.index].startswith(path)
    )
    return next((each for each in made if each and not each.startswith(path)), "")


def _divide_streams(part: Sized, before: Collection[str]) -> tuple[EndPiece, EndPiece]:
    """Divide the component of several residual streams into two pieces, widening and merge. `before` are the paths that
    run before the layers. The component's fields go to the merge."""
    spec: Any = part.spec
    parts, fields = set(spec.parts(part.d_model)), {each.name for each in spec.fields()}
    made = {each for each in parts if f"streams.{each}" in before}
    widen = EndPiece("streams", part, fields | (parts - made), f"1 → {spec.count} streams")
    return widen, EndPiece("streams", part, made | {"count"}, f"{spec.count} streams → 1", "merge")


def _name_activation(spec: Any, path: tuple[str, ...], nodes: Sequence[TapeNode]) -> str:
    """Return the name of the activation after a component's matrix product at `path`; "" if none follows. An activation
    follows if the component's next operation saves a tensor for the backward pass."""
    ends = [at for at, node in enumerate(nodes) if node.path[:2] == path]
    after = nodes[ends[-1] + 1] if ends and ends[-1] + 1 < len(nodes) else None
    follows = after is not None and after.path == path[:1] and bool(after.saves)
    return name_component(spec.activation) if follows and getattr(spec, "activation", None) is not None else ""


def _divide(name: str, part: Any, d_model: int, nodes: Sequence[TapeNode]) -> Iterator[tuple[str, EndPiece]]:
    """Divide an embedding or a head into its table or its product over the vocabulary, and its norms, projections and
    components. Any other part is one piece. Yield each piece after its path in the forward pass."""
    spec, width = (part.spec, part.d_model) if isinstance(part, Sized) else (part, d_model)
    inner = spec.parts(width) if isinstance(spec, Spec) and spec.axis in ("embedding", "head") else {}
    wide = next((each for each, held in inner.items() if getattr(held, "role", "") in (TOKENS, LOGITS)), None)
    if wide is None:
        yield name, EndPiece(name, part)
        return
    apart = {
        each: held
        for each, held in inner.items()
        if isinstance(held, Spec | Sized) or (isinstance(held, Linear) and held.role != LOGITS)
    }
    activated = {each: _name_activation(spec, (name, each), nodes) for each in apart}
    said_there = {*apart, "tied", *(["activation"] if any(activated.values()) else [])}
    yield f"{name}.{wide}", EndPiece(name, part, said_there)
    for each, held in apart.items():
        path = f"{name}.{each}"
        yield (
            path,
            EndPiece(path, held if isinstance(held, Linear | Sized) else Sized(held, width), (), activated[each]),
        )
