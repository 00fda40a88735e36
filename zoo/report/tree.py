"""List a built model's tree of modules."""

from __future__ import annotations

from itertools import groupby
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
    for _, alike in groupby(children, lambda child: child[1] if child[0].isdigit() else child[0]):
        (first, (head, *below)), *others = alike
        label = f"{first}-{others[-1][0]}" if others else first
        count = f"{len(others) + 1} × {head[3]}" if others else head[3]
        rows += [(head[0] + label, head[1], head[2], count), *below]
    return rows
