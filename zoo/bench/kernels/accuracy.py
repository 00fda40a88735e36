"""Check the outputs and gradients of attention kernels against eager attention in float64. The allowed error is
relative to that of eager attention in the kernel's dtype."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from zoo.bench.kernels.cases import AttentionCase, CaseInputs, list_cases, make_ask, make_inputs
from zoo.bench.kernels.processes import Measurement, ReportRow, Settings
from zoo.kernels import KERNELS, machine_of
from zoo.lazy import Tensor, torch

RULE = (
    "error of a tensor: largest difference over largest value, and norm of the difference over norm, from eager in "
    "float64 on the same rounded inputs; it passes with at most 2 × that of eager in its own dtype + slack"
)

FACTOR = 2
SLACK = {"float32": 2e-6, "bfloat16": 1e-3, "float16": 1.25e-4}
"""Error that is always allowed, even if eager is exact: 16 × epsilon of float32, 1/8 × epsilon of a 16-bit dtype."""

COMPILED = ("flex", "flash4")
"""Kernels that compile for seconds for each new attention case. They are checked in bfloat16 only."""

TRACED = ("flex",)
"""Kernels that compile again for a pass without gradients. If a case has gradients, its forward result is taken from
the pass with gradients."""

QUICK = ("window",)
"""Names of the cases in which a quick run checks the TRACED kernels."""


def list_jobs(settings: Settings, *, kernel: str, first: int = 0, every: int = 1) -> list[Measurement]:
    """List one job per case and dtype, or every `every`-th of them starting at `first`."""
    found = [
        Measurement(f"{kernel}: {case.name}, {dtype}", partial(check_case, kernel, case, dtype, settings))
        for dtype in list_dtypes(kernel, settings)
        for case in list_cases(large=not settings.quick)
    ]
    return found[first::every]


def list_dtypes(kernel: str, settings: Settings) -> tuple[str, ...]:
    """List the dtypes in which a kernel is checked."""
    if kernel in COMPILED:
        return ("bfloat16",)
    return ("bfloat16", "float32") if settings.quick else ("bfloat16", "float16", "float32")


def check_case(kernel: str, case: AttentionCase, dtype: str, settings: Settings) -> ReportRow:
    """Check a kernel on one case, forward and backward. If the kernel refuses the case, the row has the reason."""
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
    """Map each pass, `forward` and (if the case trains) `backward`, to the kernel's reason to refuse it, or to None."""
    machine, kind = machine_of(torch.device(device)), getattr(torch, dtype)
    ways = {"forward": False, **({"backward": True} if case.trains else {})}
    return {way: KERNELS[kernel].refuses(make_ask(case, kind, grad=grad), machine) for way, grad in ways.items()}


def run_kernel(inputs: CaseInputs, kernel: str, way: str) -> dict[str, Tensor]:
    """Compute attention by a kernel. With the `way` "backward" the gradients are returned too."""
    return inputs.backward(kernel) if way == "backward" else {"y": inputs.forward(kernel)}


def compare_errors(
    got: dict[str, Tensor], exact: dict[str, Tensor], eager: dict[str, Tensor], dtype: str
) -> dict[str, Any]:
    """Compute each tensor's errors, eager's, and `excess`: the largest ratio of an error to its limit by RULE."""
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
    """Measure the largest difference ÷ the largest value, and the norm of the difference ÷ the norm. NaN if a value is
    NaN."""
    gap, wanted = got.double() - wanted.double(), wanted.double()
    least = torch.finfo(torch.float64).tiny  # the expected tensor may be all zeros
    return {
        "largest": float(gap.abs().max() / wanted.abs().max().clamp(min=least)),
        "norm": float(gap.norm() / wanted.norm().clamp(min=least)),
    }
