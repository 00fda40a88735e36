"""How far a kernel's answers and gradients are from the reference's, beside how far eager's own are in that dtype."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from zoo.bench.kernels.cases import AttentionCase, Inputs, list_cases, make_ask, make_inputs
from zoo.bench.kernels.parts import Job, ReportRow, Settings
from zoo.kernels import KERNELS, machine_of
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

RULE = (
    "error of a tensor: largest difference over largest value, and norm of the difference over norm, from eager in "
    "float64 on the same rounded inputs; it passes with at most 2 × that of eager in its own dtype + slack"
)

FACTOR = 2
SLACK = {"float32": 2e-6, "bfloat16": 1e-3, "float16": 1.25e-4}
"""What passes where eager happens to err by nothing: sixteen roundings of float32, an eighth of one of the others."""

COMPILED = ("flex", "flash4")
"""Kernels that take seconds for each new kind of attention, so that they are checked in bfloat16 alone."""

TRACED = ("flex",)
"""Those that take as long again for the pass without gradients: where there are gradients it is left to them."""

QUICK = ("window",)
"""The cases of TRACED kernels when quick."""


def list_jobs(settings: Settings, *, kernel: str, first: int = 0, every: int = 1) -> list[Job]:
    """One for every case and dtype, or each `every`-th of them from the `first` on."""
    found = [
        Job(f"{kernel}: {case.name}, {dtype}", partial(check_case, kernel, case, dtype, settings))
        for dtype in list_dtypes(kernel, settings)
        for case in list_cases(large=not settings.quick)
    ]
    return found[first::every]


def list_dtypes(kernel: str, settings: Settings) -> tuple[str, ...]:
    """Those that a kernel is checked in."""
    if kernel in COMPILED:
        return ("bfloat16",)
    return ("bfloat16", "float32") if settings.quick else ("bfloat16", "float16", "float32")


def check_case(kernel: str, case: AttentionCase, dtype: str, settings: Settings) -> ReportRow:
    """Whether a kernel is right in one case, forward and backward, or why it refuses it."""
    row: ReportRow = {"kernel": kernel, "case": case.name, "dtype": dtype}
    reasons = list_refusals(kernel, case, dtype, settings.device)
    if None not in reasons.values():
        return {**row, "refused": reasons["forward"]}
    if settings.quick and kernel in TRACED and case.name not in QUICK:
        return {**row, "left_out": "quick: it takes seconds to compile"}
    inputs = make_inputs(case, settings.device, getattr(torch, dtype), settings.seed)
    exact = inputs.to(torch.float64)
    traced = kernel in TRACED and reasons.get("backward", "") is None
    for way, reason in reasons.items():
        if reason is not None:
            row[way] = {"refused": reason}
        elif not (traced and way == "forward"):
            wanted, eager = (run_kernel(each, "eager", way) for each in (exact, inputs))
            row[way] = compare_errors(run_kernel(inputs, kernel, way), wanted, eager, dtype)
    if traced:
        row["forward"] = row["backward"]
    return {**row, "passed": all(row[way].get("passed", True) for way in reasons)}


def list_refusals(kernel: str, case: AttentionCase, dtype: str, device: str) -> dict[str, str | None]:
    """Why a kernel refuses each of the ways that a case is for, or None."""
    machine, kind = machine_of(torch.device(device)), getattr(torch, dtype)
    ways = {"forward": False, **({"backward": True} if case.trains else {})}
    return {way: KERNELS[kernel].refuses(make_ask(case, kind, grad=grad), machine) for way, grad in ways.items()}


def run_kernel(inputs: Inputs, kernel: str, way: str) -> dict[str, Tensor]:
    """What a kernel gives: attention without gradients, or with them."""
    return inputs.backward(kernel) if way == "backward" else {"y": inputs.forward(kernel)}


def compare_errors(
    got: dict[str, Tensor], exact: dict[str, Tensor], eager: dict[str, Tensor], dtype: str
) -> dict[str, Any]:
    """The errors of each tensor, those of eager, and `excess`: the worst of them over what the rule allows."""
    tensors = {}
    for name, wanted in exact.items():
        ours, theirs = measure_errors(got[name], wanted), measure_errors(eager[name], wanted)
        pairs = {key: error / (FACTOR * theirs[key] + SLACK[dtype]) for key, error in ours.items()}
        excess = math.inf if any(map(math.isnan, pairs.values())) else max(pairs.values())
        tensors[name] = {**ours, "eager": theirs, "excess": excess}
    worst = max(tensors, key=lambda name: tensors[name]["excess"])
    excess = tensors[worst]["excess"]
    return {"passed": excess <= 1, "excess": excess, "worst": worst, "tensors": tensors}


def measure_errors(got: Tensor, wanted: Tensor) -> dict[str, float]:
    """Relative errors: by the largest value, and by the norm; NaN where a value is none."""
    gap, wanted = got.double() - wanted.double(), wanted.double()
    least = torch.finfo(torch.float64).tiny  # where nothing was to come
    return {
        "largest": float(gap.abs().max() / wanted.abs().max().clamp(min=least)),
        "norm": float(gap.norm() / wanted.norm().clamp(min=least)),
    }
