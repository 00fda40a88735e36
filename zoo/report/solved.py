"""Format the answers of `zoo solve` as text that fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.distributed.mesh import WAYS
from zoo.report.glance import PARTS
from zoo.report.wrapping import align_columns, wrap_text
from zoo.units import format_share, format_si, format_size

FIGURES = {
    "params": "params",
    "active_params": "active",
    "flops_per_token": "FLOPs/token",
    "kv_bytes_per_token": "KV/token",
    "memory": "memory",
}
"""Column headings of the budgeted figures."""

NOTE = (
    "Memory is exact for the set-up; times are predicted, so that meshes a few per cent apart are as good as equal "
    "(docs/scale.md has predictions beside published runs)."
)


def format_most(answer: Mapping[str, Any], name: str, title: str) -> str:
    """Format the largest batch or context, its memory by part, and the memory that one more would add."""
    room, now, more = answer["room"], answer["needed"], answer.get("one_more")
    other = f"{answer['context']:,} tokens" if name == "batch" else f"a batch of {answer['batch']:,}"
    doing = "training" if answer["mode"] == "train" else "generating"
    parts = [part for part in now if part != "total" and now[part]]
    adds = [format_size(more[part] - now[part]) if more else "" for part in ("total", *parts)]
    rows = [
        (f"{title}: {doing}, {other}, on {room['gpu'] or format_size(room['memory'])}", "", ""),
        ("", "", ""),
        (f"  largest {name}", f"{answer[name]:,}", "one more adds" if more else ""),
        ("  memory" + (" of each GPU" if answer["gpus"] > 1 else ""), "", ""),
        *(
            (f"  {'+ ' if part in answer['at_peak'] else '  '}{PARTS[part]}", format_size(now[part]), grown)
            for part, grown in zip(parts, adds[1:], strict=True)
        ),
        ("  = peak", format_size(now["total"]), adds[0]),
        *([("  with one more", format_size(more["total"]), "")] if more else []),
        (
            f"  usable ({room['usable']:g} × {format_si(room['memory'], 'B')} − {format_si(room['runtime'], 'B')})",
            format_size(room["bytes"]),
            "",
        ),
        ("  what grows most", PARTS[answer["binds"]], ""),
    ]
    phases = _phases(answer.get("phases", {}), name)
    notes = phases + [wrap_text(f"note: {note}", 2, 4) for note in answer["notes"]]
    return "\n".join([align_columns(rows, right=(1, 2)), *notes])


def _phases(found: Mapping[str, int], name: str) -> list[str]:
    """Describe which phase of generating sets the limit, and the largest value of each phase."""
    if "prefill" not in found:
        return []
    read, decode = found["prefill"], found["decode"]
    if read == decode:
        told = f"limited by weights and cache; prefill of all prompts at once lowers the largest {name} no further"
    else:
        told = (
            f"limited by prefill of all prompts at once, which has room for {name} {read:,}. Decoding has room for "
            f"{decode:,}: chunked prefill allows it (--cache-only)"
        )
    return [wrap_text(told, 2, 4, hyphens=False)]


def format_shortage(answer: Mapping[str, Any]) -> str:
    """Describe how much memory is missing, which part takes most, and what to try."""
    needed, room = answer["needed"], answer["room"]
    most = max((part for part in needed if part not in ("rest", "total")), key=lambda part: needed[part])
    return (
        f"{format_size(answer['short'])} short: it takes {format_size(needed['total'])}, most of it {PARTS[most]}, "
        f"and {format_size(room['bytes'])} is usable of {room['gpu'] or 'the memory given'} (`zoo solve gpu` shows "
        "what would do)"
    )


def format_gpus(rows: Sequence[Mapping[str, Any]], title: str, train: bool) -> str:
    """Format one row per GPU, in the order given."""
    how = "ZeRO stage" if train else "tensor parallel"
    cells = [(title, "", "", "", "", ""), ("GPU", "GPUs", how, "memory, total", "needed per GPU", "of usable")]
    for row in rows:
        room, needed = row["room"], row["needed"]["total"]
        count = f"{row['gpus']:,}" if row["fits"] else f"not on {row['gpus']:,}"
        split = "" if row["gpus"] <= 1 else str(row.get("zero", "")) if train else str(row["tp"])
        sizes = format_si(row["memory_total"], "B"), format_si(needed, "B"), format_share(needed, room["bytes"])
        cells.append((room["gpu"], count, split, *sizes))
    return align_columns(cells, right=(1, 2, 3, 4, 5))


def format_caches(found: Sequence[Mapping[str, Any]], target: str, most: float) -> str:
    """Format the size of a model's KV cache, unchanged and with each change that brings the cache under the budget."""
    rows = [("KV cache", f"at most {format_size(most)}", "")]
    for each in found:
        changed = " ".join([target, *each["overrides"]])
        rows.append((format_size(each["bytes"]), changed, "" if each["fits"] else "too large"))
    return align_columns(rows)


def format_shapes(found: Sequence[Mapping[str, Any]], model: str) -> str:
    """Format one row per shape, and the command that prices the first."""
    dims = [name for name in ("d_model", "n_layers", "d_ff") if name in found[0]]
    figures = list(found[0]["figures"])
    kv = "n_kv_heads" in found[0]
    rows = [(*dims, "heads (kv)" if kv else "heads", "aspect", *(FIGURES[name] for name in figures), "of budget")]
    for each in found:
        heads = " ".join(filter(None, (str(each.get("n_heads", "")), f"({each['n_kv_heads']})" if kv else "")))
        priced = (format_si(v, "B") if "bytes" in k or k == "memory" else f"{v:,}" for k, v in each["figures"].items())
        stated = (str(each[name]) for name in dims)
        rows.append((*stated, heads, f"{each['aspect']:.0f}", *priced, f"{100 * each['share']:.2f} %"))
    make = " ".join(["zoo stats", model, *found[0]["overrides"]])
    return f"{align_columns(rows, right=range(len(rows[0])))}\n\nThe first is made by:\n{make}"


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
        f"{answer['context']:,} tokens per step. {answer['candidates']:,} ways were priced, {answer['fitting']:,} fit "
        f"in {format_si(answer['room']['bytes'], 'B')}; each row is the fastest setting of its mesh. Per GPU: batch "
        "(sequences × microbatches), GB, tok/s, and per cent of step time spent on compute, exposed communication and "
        "pipeline bubble."
    )
    lines = [
        f"The first takes {first['seconds']:.3g} s per step. In zoo train:",
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
