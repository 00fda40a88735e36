"""Format the roofline of `zoo stats`: whether compute or bandwidth bounds each use of a model on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from zoo.report.wrapping import TextRow, wrap_text
from zoo.units import format_figure, format_si

PEAKS = {"generate_peak": "memory to generate", "train_peak": "memory to train"}
SIDES = {"compute": "compute-bound", "bandwidth": "memory-bound"}


def list_speed_rows(found: Mapping[str, Any], width: int) -> list[TextRow]:
    """List rows for peak and bandwidth; for decoding and prefill (minimum seconds of a step, limiting resource, maximum
    tokens per second); for training, estimated from MFU; and for whether memory fits. Notes of at most `width` columns
    follow."""
    peak, bandwidth = (
        format_si(found["peak_flops_per_second"], "FLOP/s"),
        format_si(found["bandwidth_bytes_per_second"], "B/s"),
    )
    rows: list[TextRow] = [("peak and memory bandwidth", peak, bandwidth)]
    for use, title in (("decode", "decoding a token"), ("prefill", "prefill")):
        if use in found:
            rows += _use(title, found[use])
    rows += _training(found["train"])
    for name, held in found.get("fits", {}).items():
        taken = f"{format_si(held['bytes'], 'B')} of {format_si(held['usable_bytes'], 'B')}"
        rows.append((PEAKS[name], "fits" if held["fits"] else "does not fit", taken))
    bounded = "decoding and prefill" if "decode" in found else "prefill"
    notes = [
        f"Times of {bounded} are the least possible, their rates an {found['bound']}.",
        f"The training row assumes {100 * found['train']['mfu']:.3g} % MFU (--mfu) and is no bound; `zoo solve mesh` "
        "predicts the speed.",
        *(f"not checked: {each}" for each in found.get("unchecked", ())),
        *([f"left out: {found['left_out']}"] if "left_out" in found else []),
    ]
    return rows + [(line, "", "") for note in notes for line in wrap_text(note, 0, 4, width).splitlines()]


def _use(title: str, use: Mapping[str, Any]) -> Iterator[TextRow]:
    label = f"{title}, batch {use['batch']:,}"
    yield (
        label,
        f"{format_figure(use['seconds'], 's')}, {SIDES[use['side']]}",
        format_si(use["tokens_per_second"], "tok/s"),
    )
    if use.get("turnover_batch"):
        yield "  compute-bound from", "", f"batch {use['turnover_batch']:,}"
    for name, experts in use.get("experts", {}).items():
        read = f"{format_figure(float(experts['read']), '')} of {experts['experts']:,}"
        yield f"  experts read in a '{name.rpartition('.')[0]}' layer", "", read
    if "expanded" in use:
        inner = use["expanded"]
        told = f"{format_figure(inner['seconds'], 's')}, {SIDES[inner['side']]}"
        yield "  with MLA's latents expanded", told, format_si(inner["tokens_per_second"], "tok/s")
    if "all_reduce" in use and use["all_reduce"].get("seconds") is not None:
        yield "  all-reduce, on top", format_figure(use["all_reduce"]["seconds"], "s"), ""


def _training(train: Mapping[str, Any]) -> Iterator[TextRow]:
    gpus = f"{train['gpus']:,} GPUs" if train["gpus"] != 1 else "1 GPU"
    label = f"training, {100 * train['mfu']:.3g} % MFU, {gpus}"
    yield label, f"{format_figure(train['seconds'], 's')}/step", format_si(train["tokens_per_second"], "tok/s")
    if "days" in train:
        told = f"{format_figure(86400 * train['days'], 's')}", f"{format_si(train['gpu_hours'])} GPU hours"
        yield f"  {format_si(train['train_tokens']).replace('G', 'B')} tokens", *told
