# B sequences, T tokens, S tokens of a sequence, t ranks of tensor parallelism
"""Bound the speed of generation and prefill on an accelerator (roofline), and estimate that of training.

A pass takes at least the time of its FLOPs at the peak rate or of its bytes at the peak bandwidth, whichever is longer
(Williams et al., 2009, Roofline). The same bound on each operator, summed, is closer. Kernel launches, activations and
waiting cost no time here, so real code generates and prefills more slowly (BOUND). Figures of training are no bounds:
they assume the set-up's utilisation `mfu`, which real code may exceed (`bound_training`, `bound_run`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from zoo.costs import flops
from zoo.costs.hardware import Hardware, hardware, list_gpus
from zoo.costs.operators import Chosen, Operator, mixtures, operators, span
from zoo.costs.rows import CostTable, Priced, absorbs, generates, tabulate
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.sums import Amount, Note, keep_value, take_larger
from zoo.errors import ConfigError
from zoo.spec.parts import count_kinds

BOUND = "upper bound: peak rate and bandwidth, nothing else taking time; real code is slower"

COMPUTE, BANDWIDTH = "compute", "bandwidth"

MOST = 2**40
"""The largest batch that is searched."""

DAY = 24 * 3600


def roofline(spec: Priced | CostTable, setup: Setup, figures: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Bound or estimate the speed of a set-up on its `gpu`, as plain data: seconds, FLOPs, bytes, tokens a second.

    `decode` is one step of `batch` sequences with `context` tokens each, on `tp` GPUs; `prefill` reads their prompts.
    Tokens a second are summed over all `rows` replicas. `train` runs at the set-up's `mfu` on all ranks. `figures` is
    the result of `zoo.costs.price`, whose memory decides what `fits`. Raises ConfigError for an unknown GPU, or one
    that cannot multiply the dtype.
    """
    if setup.gpu is None:
        raise ConfigError(f"gpu: is missing; a roofline needs it (one of: {', '.join(list_gpus())})")
    device = hardware(setup.gpu)
    peak = device.flops(setup.dtype)
    found: dict[str, Any] = {
        "gpu": device.name,
        "title": device.title,
        "bound": BOUND,
        "dtype": setup.dtype,
        "peak_flops_per_second": peak,
        "bandwidth_bytes_per_second": device.bandwidth,
        "ridge": peak / device.bandwidth,
    }
    table = tabulate(spec)
    if generates(table.spec):
        found["decode"] = _pass(table.served, setup, device, decode=True)
    found["prefill"] = _pass(table.served, setup, device, decode=False)
    found["train"] = _train(table, setup, peak)
    if fits := dict(_fits(device, (figures or {}).get("memory", {}))):
        found["fits"] = fits
    if unchecked := sorted({f"tflops.{setup.dtype}", "bandwidth_gb_s", "link"} & set(device.unchecked())):
        found["unchecked"] = unchecked
    if beside := [name for name in ("pp", "ep", "cp") if getattr(setup, name) > 1]:
        found["left_out"] = f"{', '.join(beside)}: decode and prefill are those of tp and dp alone"
    return found


# ---------------------------------------------------------------- generating


def _pass(table: CostTable, setup: Setup, device: Hardware, *, decode: bool) -> dict[str, Any]:
    context, batch = setup.tokens(table.spec), setup.batch
    parts = operators(table, setup, decode=decode)
    found = {"batch": batch, "context": context, **_bound(parts, batch, setup, device, 1 if decode else context)}
    if decode:
        found |= _describe_decoding(table, setup, device, parts)
    if setup.tp > 1:
        found["all_reduce"] = _all_reduce(table.spec, setup, device, decode=decode)
    return {**found, "operators": _each(parts, batch, device, device.flops(setup.dtype))}


def _describe_decoding(
    table: CostTable, setup: Setup, device: Hardware, parts: Mapping[str, Operator]
) -> dict[str, Any]:
    """Give the figures that only decoding has: the batch from which arithmetic is the bound (`turnover`), the number of
    experts that are read, and for MLA the bound with expanded keys. With MLA both bounds get `core_flops` too."""
    found: dict[str, Any] = {"turnover_batch": turnover(parts, device.flops(setup.dtype), device.bandwidth)}
    experts = {
        name: {"experts": row.experts, "read": Chosen(0, row.experts, row.expected).distinct(setup.batch)}
        for name, row in mixtures(table)
    }
    found |= {"experts": experts} if experts else {}
    if any(absorbs(row.attention) for row in table.attentions if row.tower.causal):
        other = operators(table, setup, decode=True, expanded=True)
        found["expanded"] = _bound(other, setup.batch, setup, device)
        for each, ways in ((found, parts), (found["expanded"], other)):
            each["core_flops"] = round(sum(op.flops for op in ways.values() if op.core) * setup.batch)
    return found


def _bound(
    parts: Mapping[str, Operator], batch: int, setup: Setup, device: Hardware, tokens: int = 1
) -> dict[str, Any]:
    """Bound a pass over `tokens` tokens of each of `batch` sequences on one rank; tokens per second count all
    replicas."""
    peak, bandwidth = device.flops(setup.dtype), device.bandwidth
    work, weights, own = count_work(parts, batch), count_weights(parts, batch), count_own(parts, batch)
    seconds = bound_seconds(work, weights + own, peak, bandwidth)
    closer = sum(bound_seconds(part.flops * batch, part.bytes(batch), peak, bandwidth) for part in parts.values())
    return {
        "seconds": seconds,
        **count_rates(tokens, batch, setup.rows, seconds),
        "side": _side(work / peak, (weights + own) / bandwidth),
        "flops": round(work),
        "weight_bytes": round(weights),
        "cache_bytes": round(own),
        "bytes": round(weights) + round(own),
        "intensity": work / (weights + own),
        "sum_of_operators": {"seconds": closer, **count_rates(tokens, batch, setup.rows, closer)},
    }


def count_work(parts: Mapping[str, Operator], batch: Amount) -> Amount:
    """Count the FLOPs of a pass over `batch` sequences."""
    return sum(part.flops for part in parts.values()) * batch


def count_weights(parts: Mapping[str, Operator], batch: Amount) -> Amount:
    """Count the bytes of weights that a pass over `batch` sequences reads."""
    return sum(part.weight_bytes(batch) for part in parts.values())


def count_own(parts: Mapping[str, Operator], batch: Amount) -> Amount:
    """Count the bytes of caches and states that a pass over `batch` sequences moves."""
    return sum(part.own * batch for part in parts.values())


def bound_seconds(work: Amount, moved: Amount, peak: Amount, bandwidth: Amount) -> Amount:
    """Bound the seconds of `work` FLOPs and `moved` bytes: the longer of arithmetic and memory."""
    return take_larger(work / peak, moved / bandwidth)


def count_rates(tokens: Amount, batch: Amount, dp: Amount, seconds: Amount) -> dict[str, Amount]:
    """Count tokens a second, of all `dp` replicas and of one sequence. A replica's pass is over `tokens` tokens of each
    of `batch` sequences, and takes `seconds`."""
    return {"tokens_per_second": tokens * batch * dp / seconds, "tokens_per_second_each": tokens / seconds}


def _side(compute: float, bandwidth: float) -> str:
    return COMPUTE if compute >= bandwidth else BANDWIDTH


def _each(parts: Mapping[str, Operator], batch: int, device: Hardware, peak: float) -> dict[str, dict[str, Any]]:
    """Bound each operator by itself, over all layers of its kind."""
    rows = {}
    for name, part in parts.items():
        compute, bandwidth = part.flops * batch / peak, part.bytes(batch) / device.bandwidth
        if compute or bandwidth:
            rows[name] = {
                "seconds": bound_seconds(part.flops * batch, part.bytes(batch), peak, device.bandwidth),
                "side": _side(compute, bandwidth),
                "flops": round(part.flops * batch),
                "bytes": round(part.bytes(batch)),
            }
    return rows


def turnover(parts: Mapping[str, Operator], peak: float, bandwidth: float) -> int | None:
    """Find the smallest batch at which arithmetic takes as long as memory. None if there is no such batch: reading the
    cache of one more sequence then takes longer than computing its FLOPs.

    FLOPs grow in proportion to the batch; bytes grow less, because sequences share weights and experts. So memory is
    the bound below that batch, arithmetic above it.
    """

    def computes(batch: int) -> bool:
        work = sum(part.flops for part in parts.values()) * batch
        return work / peak >= sum(part.bytes(batch) for part in parts.values()) / bandwidth

    found = bisect_left(range(1, MOST + 1), True, key=computes) + 1
    return found if found <= MOST else None


def _all_reduce(spec: Priced, setup: Setup, device: Hardware, *, decode: bool) -> dict[str, Any]:
    """Count the bytes that a GPU sends in a pass, 2·(t − 1)/t of each all-reduced vector (a ring: Patarasuk and Yuan,
    2009), and the seconds of sending them. No other figure includes these seconds, because sending may overlap with
    arithmetic."""
    summed = 0  # vectors of a sequence
    for tower in spec.towers().values():
        if (what := span(tower, spec, setup.tokens(spec), decode)) is not None:
            layers = sum(block.reductions * count_kinds(tower.pattern)[kind] for kind, block in tower.blocks.items())
            summed += layers * what.new
    sent = 2 * (setup.tp - 1) / setup.tp * (summed * setup.batch) * spec.d_model * DTYPES[setup.dtype]
    found: dict[str, Any] = {"bytes": round(sent), "link": device.link_name}
    if device.link:
        found["seconds"] = sent / device.link
    return found


# ---------------------------------------------------------------- training, and what fits


def _train(table: CostTable, setup: Setup, peak: float) -> dict[str, Any]:
    """Estimate a training step over the batches of all data-parallel ranks at a utilisation of `mfu`. MFU does not
    count recomputation, by definition (Chowdhery et al., 2022)."""
    context = setup.tokens(table.spec)
    each = flops.count_flops(table, context, documents=setup.documents(table.spec))["train"]
    found = bound_training(TrainingStep(context, setup.batch, setup.rows, each, setup.mfu, setup.ranks), peak)
    found = {"gpus": setup.ranks, "mfu": setup.mfu, **found}
    found["tokens_per_second_at_peak"] = found["tokens_per_second"] / setup.mfu
    if setup.train_tokens is not None:
        found |= {"train_tokens": setup.train_tokens, **bound_run(setup.train_tokens, found, setup.ranks)}
    return found


class TrainingStep(NamedTuple):
    """A training step: tokens of a sequence (`context`), sequences of a rank (`batch`), replicas (`dp`), FLOPs a token,
    and the share `mfu` of the peak of all `gpus`."""

    context: Amount
    batch: Amount
    dp: Amount
    flops: Amount
    mfu: Amount
    gpus: Amount


def bound_training(step: TrainingStep, peak: Amount, note: Note = keep_value) -> dict[str, Amount]:
    """Estimate a training step at its `mfu`: its tokens, FLOPs, seconds, and tokens a second. `peak` is one GPU's
    FLOP/s."""
    tokens = note("tokens", step.context * step.batch * step.dp)
    work = note("flops", step.flops * tokens)
    seconds = note("seconds", work / (peak * step.mfu * step.gpus))
    speed = note("tokens_per_second", tokens / seconds)
    return {"tokens": tokens, "flops": work, "seconds": seconds, "tokens_per_second": speed}


def bound_run(
    train_tokens: Amount, step: Mapping[str, Amount], gpus: Amount, note: Note = keep_value
) -> dict[str, Amount]:
    """Estimate the days and GPU-hours of training on `train_tokens`, at the `tokens_per_second` of a step."""
    days = note("days", train_tokens / step["tokens_per_second"] / DAY)
    return {"days": days, "gpu_hours": note("gpu_hours", days * 24 * gpus)}


def _fits(device: Hardware, memory: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in ("generate_peak", "train_peak"):
        if key in memory:
            fits = memory[key] <= device.usable
            yield key, {"bytes": memory[key], "usable_bytes": round(device.usable), "fits": fits}
