"""The walkers of a Spec: what is read from `parts()` is read by one of these."""

from __future__ import annotations

from collections.abc import Iterator

from zoo.spec.parts import Group, Part, Sized, Stack
from zoo.spec.spec import Spec


def walk(
    spec: Spec, d_model: int, path: str = "", copies: int = 1, *, used: bool = False
) -> Iterator[tuple[str, Spec, Part, int]]:
    """Every part below `spec`: its path (a layer goes by its kind), the component that owns it, and how often it is
    stored (or `used` in one pass)."""
    for name, child, times in spec.children(d_model, used):
        inner = f"{path}.{name}" if path else name
        if isinstance(child, Sized):
            yield from walk(child.spec, child.d_model, inner, copies * times, used=used)
        else:
            yield inner, spec, child, copies * times


def components(spec: Spec, d_model: int, path: str = "", copies: int = 1) -> Iterator[tuple[str, Spec, int]]:
    """Every component from `spec` down, with its path and how often one pass goes through it."""
    yield path, spec, copies
    for name, child, times in spec.children(d_model, used=True):
        if isinstance(child, Sized):
            inner = f"{path}.{name}" if path else name
            yield from components(child.spec, child.d_model, inner, copies * times)


def tensors(spec: Spec, d_model: int, prefix: str = "") -> Iterator[tuple[str, Part, str]]:
    """Every tensor, layer by layer: its name as in a built model's `state_dict`, its part, and its name within the
    part."""
    for name, part in spec.parts(d_model).items():
        path = prefix + name
        if isinstance(part, Stack):
            for index, kind in enumerate(part.stored()):
                yield from tensors(part.kinds[kind], d_model, f"{path}.{index}.")
        elif isinstance(part, Group):
            for inner, leaf in part.parts.items():
                yield from _leaves(leaf, f"{path}.{inner}")
        elif isinstance(part, Part):
            yield from _leaves(part, path)
        else:
            sub = part if isinstance(part, Sized) else Sized(part, d_model)
            yield from tensors(sub.spec, sub.d_model, f"{path}.")


def _leaves(part: Part, path: str) -> Iterator[tuple[str, Part, str]]:
    for leaf in part.shapes():
        yield (f"{path}.{leaf}" if leaf else path), part, leaf


def table(spec: Spec, d_model: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, exactly as a built model's `state_dict` has them."""
    return {name: part.shapes()[leaf] for name, part, leaf in tensors(spec, d_model)}
