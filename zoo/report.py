"""Figures for people: tables that fit 80 columns, units spelled out. `--json` gives the same figures exactly."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = tuple[str, ...]

_FLOPS = {
    "forward": "forward, a token",
    "train": "forward and backward, a token",
    "prefill": "prefill of the context",
    "decode": "decoding a token after the context",
}
_MEMORY = {
    "weights": "weights",
    "gradients": "gradients (fp32)",
    "optimizer": "AdamW states (fp32)",
    "activations": "activations, training",
    "loss_head": "logits, training, unless chunked",
    "train_peak": "training, at its peak",
    "generate_peak": "generating, at its peak",
}


def as_json(figures: Any) -> str:
    """Plain data as indented JSON."""
    return json.dumps(figures, indent=2)


def si(value: float, unit: str = "") -> str:
    """1234567 as `1.23 M`, in powers of 1000."""
    for prefix in ("", "K", "M", "G", "T", "P", "E", "Z"):
        if abs(value) < 999.5 or prefix == "Z":
            return f"{_digits(value) if prefix else f'{value:.4g}'} {prefix}{unit}".rstrip()
        value /= 1000
    raise AssertionError(value)


def _digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def params(count: float) -> str:
    """8030261248 as `8.03 B`: the letters of the literature, M, B and T."""
    return si(count).replace("G", "B")


def size(count: float) -> str:
    """Bytes, in powers of 1000 and of 1024: `16.1 GB (15.0 GiB)`."""
    binary = count
    for prefix in ("", "Ki", "Mi", "Gi", "Ti", "Pi"):
        if binary < 1023.5 or prefix == "Pi":
            return f"{si(count, 'B')} ({_digits(binary)} {prefix}B)" if prefix else f"{count:.0f} B"
        binary /= 1024
    raise AssertionError(count)


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def cost_rows(figures: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    """The sections of `zoo stats`: a title, and rows of a name, an exact figure and a readable one."""
    counted, flops, cache, memory = (figures[key] for key in ("params", "flops", "kv_cache", "memory"))
    total = counted["total"]
    held = [("total", f"{total:,}", params(total))]
    if counted["active"] != total:
        held.append(("active, a token", f"{counted['active']:,}", params(counted["active"])))
    held += [(f"  {name}", f"{n:,}", share(n, total)) for name, n in counted["by_component"].items()]
    tokens = f"{cache['tokens']:,} tokens"
    sequences = f"{cache['batch']:,} × {tokens}" if cache.get("batch", 1) != 1 else tokens
    kept = [
        ("a token", f"{cache['bytes_per_token']:,} B", size(cache["bytes_per_token"])),
        (sequences, f"{cache['bytes']:,} B", size(cache["bytes"])),
    ]
    return [
        ("Parameters", held),
        (
            f"FLOPs (context {tokens})",
            [(label, "", si(flops[key], "FLOP")) for key, label in _FLOPS.items() if key in flops],
        ),
        *([(f"KV cache ({cache['dtype']})", kept)] if "decode" in flops else []),
        (
            f"Memory ({cache['dtype']}, {sequences})",
            [(label, "", size(memory[key])) for key, label in _MEMORY.items() if key in memory],
        ),
    ]


def cost_table(figures: Mapping[str, Any], title: str) -> str:
    """The figures of `zoo.costs.price` as text, in sections."""
    rows: list[Row] = [(title, "", "")]
    for name, lines in cost_rows(figures):
        rows += [("", "", ""), (name, "", ""), *((f"  {label}", exact, readable) for label, exact, readable in lines)]
    lines = columns(rows, right=(1, 2)).splitlines()
    return "\n".join(line if line.startswith(" ") or not line else bold(line) for line in lines)


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows in aligned columns; on a terminal a line ends where the screen does.

    A row of which only the first cell holds anything is a heading, and takes no part in the widths. Not rich's work:
    importing that is a tenth of what `zoo stats` takes.
    """
    full = [row for row in rows if any(row[1:])]
    widths = [max((len(row[i]) for row in full), default=0) for i in range(len(rows[0]) if rows else 0)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  ".join(cells) if any(row[1:]) else row[0]).rstrip())
    if sys.stdout.isatty():
        width = shutil.get_terminal_size((80, 24)).columns
        lines = [line if len(line) <= width else line[: width - 1] + "…" for line in lines]
    return "\n".join(lines)


def bold(text: str) -> str:
    """Bold on a terminal, plain in a pipe or where NO_COLOR is set."""
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def rich_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> Any:
    """A rich table; `right` are the columns to align right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        made.add_column(name, justify="right" if index in right else "left")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def show(*things: Any) -> None:
    """Prints rich things to stdout: at the terminal's width, or 80 columns into a pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    for thing in things:
        console.print(thing)


def module_rows(name: str, module: Any, depth: int = 0) -> list[Row]:
    """A module tree as rows of name, kind, shapes and parameters. Neighbours that are alike share a line: `0-31`."""
    shapes = [list(p.shape) for _, p in module.named_parameters(recurse=False)]
    held = sum(p.numel() for p in module.parameters())
    kind = module.spec.kind if hasattr(module, "spec") else type(module).__name__
    shape = " + ".join("×".join(map(str, s)) for s in shapes)
    rows = [
        ("  " * depth + name, "" if kind in ("ModuleList", "ModuleDict") else kind, shape, f"{held:,}" if held else "")
    ]
    children = [(key, module_rows("", child, depth + 1)) for key, child in module.named_children()]
    for alike in _runs(children):
        first, below = alike[0][0], alike[0][1]
        head = below[0]
        label = first if len(alike) == 1 else f"{first}-{alike[-1][0]}"
        count = head[3] if len(alike) == 1 else f"{len(alike)} × {head[3]}"
        rows += [(head[0] + label, head[1], head[2], count), *below[1:]]
    return rows


def _runs(children: list[tuple[str, list[Row]]]) -> list[list[tuple[str, list[Row]]]]:
    """Numbered children in runs of equal ones; every other child by itself."""
    runs: list[list[tuple[str, list[Row]]]] = []
    for child in children:
        if runs and child[0].isdigit() and runs[-1][-1][1] == child[1]:
            runs[-1].append(child)
        else:
            runs.append([child])
    return runs
