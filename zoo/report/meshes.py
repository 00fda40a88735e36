"""Format the ranked meshes of `zoo solve mesh` as text that fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.distributed.mesh import WAYS
from zoo.report.wrapping import align_columns, wrap_text
from zoo.units import format_si, format_size

NOTE = (
    "Memory is exact for the set-up; times are predicted, so that meshes a few per cent apart are as good as equal "
    "(docs/scale.md has predictions beside published runs)."
)


def format_meshes(answer: Mapping[str, Any], title: str) -> str:
    """Format one row per mesh, the fastest first, and the settings of `zoo train` for the first.

    Compute, exposed communication and the pipeline's bubble are given in per cent of a step's time.
    """
    ways = [name for name in WAYS if any(each["mesh"][name] > 1 for each in answer["meshes"])]
    shown = ("batch", "recompute", "GB", "tok/s", "MFU %", "comp/comm/bub")
    cells = [(*ways, *shown)] + [
        (*(str(each["mesh"][name]) for name in ways), *_cells(each)) for each in answer["meshes"]
    ]
    first = answer["meshes"][0]
    mesh = ", ".join(f"{name}: {size}" for name, size in first["mesh"].items())
    head = (
        f"{title}: training on {answer['count']:,} × {answer['gpu']}, {answer['sequences']:,} sequences of "
        f"{answer['context']:,} tokens a step. {answer['candidates']:,} ways were priced, {answer['fitting']:,} fit in "
        f"{format_si(answer['room']['bytes'], 'B')}; a row is the fastest of its mesh. Of a GPU: batch (sequences × "
        "microbatches), GB, tok/s, and per cent of a step that go to compute, exposed communication and the pipeline's "
        "bubble."
    )
    lines = [
        f"The first takes {first['seconds']:.3g} s a step. In zoo train:",
        f"  parallel='{{{mesh}}}'",
        f"  batch_size={answer['sequences']} accumulate={first['microbatches']} recompute={first['recompute']}",
    ]
    table = align_columns(cells, right=[n for n in range(len(cells[0])) if n != len(ways) + 1])
    return "\n".join([wrap_text(head, 0), "", table, "", *lines, "", wrap_text(NOTE, 0)])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    parts = (row[name] / row["seconds"] for name in ("compute", "communication", "bubble"))
    return (
        f"{row['batch']}×{row['microbatches']}",
        row["recompute"],
        f"{row['memory'] / 1e9:.1f}",
        f"{row['tokens_per_second_per_gpu']:,.0f}",
        f"{100 * row['mfu']:.1f}",
        "/".join(f"{100 * part:.0f}" for part in parts),
    )


def format_no_mesh(answer: Mapping[str, Any]) -> str:
    """Describe the mesh that comes closest to fitting, and what to try."""
    near, room = answer["nearest"], answer["room"]["bytes"]
    mesh = " ".join(f"{name}={size}" for name, size in near["mesh"].items() if name in WAYS and size > 1) or "one GPU"
    return (
        f"fits on no mesh of {answer['count']:,} × {answer['gpu']}: {mesh} with recompute={near['recompute']} takes "
        f"least, {format_size(near['memory'])} of the {format_size(room)} usable of each (more GPUs, --chunked-loss or "
        "--optimizer adamw8bit may do)"
    )
