"""List a built model's tree of modules."""

from __future__ import annotations

from typing import Any

from zoo.report.wrapping import TextRow


def list_module_rows(name: str, module: Any, depth: int = 0) -> list[TextRow]:
    """List a module tree as rows of name, kind, shapes and parameters. Equal adjacent layers share a row: `0-31`."""
    shapes = [list(p.shape) for _, p in module.named_parameters(recurse=False)]
    held = sum(p.numel() for p in module.parameters())
    kind = module.spec.kind if hasattr(module, "spec") else type(module).__name__.removesuffix("Module")
    shape = " + ".join("×".join(map(str, s)) for s in shapes)
    rows = [
        ("  " * depth + name, "" if kind in ("ModuleList", "ModuleDict") else kind, shape, f"{held:,}" if held else "")
    ]
    children = [(key, list_module_rows("", child, depth + 1)) for key, child in module.named_children()]
    for alike in _runs(children):
        first, below = alike[0][0], alike[0][1]
        head = below[0]
        label = first if len(alike) == 1 else f"{first}-{alike[-1][0]}"
        count = head[3] if len(alike) == 1 else f"{len(alike)} × {head[3]}"
        rows += [(head[0] + label, head[1], head[2], count), *below[1:]]
    return rows


def _runs(children: list[tuple[str, list[TextRow]]]) -> list[list[tuple[str, list[TextRow]]]]:
    """Group equal adjacent children with numbers for names; every other child is its own group."""
    runs: list[list[tuple[str, list[TextRow]]]] = []
    for child in children:
        if runs and child[0].isdigit() and runs[-1][-1][1] == child[1]:
            runs[-1].append(child)
        else:
            runs.append([child])
    return runs
