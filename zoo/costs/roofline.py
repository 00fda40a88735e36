# B sequences, T tokens, S tokens of a sequence, t ranks of tensor parallelism
"""The speed of light: how fast an accelerator could generate, read a prompt and train at most.

A pass takes as long as its FLOPs at the peak rate or its bytes at the peak bandwidth, whichever is longer (Williams et
al., 2009, Roofline). The same bound on each operator, summed, is closer. Kernel launches, activations and waiting cost
no time here, so real code is slower than every figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from zoo.costs import flops
from zoo.costs.hardware import Hardware, hardware, list_gpus, usable_bytes
from zoo.costs.operators import Chosen, Operator, Widths, mixtures, operators, reductions
from zoo.costs.rows import CostTable, Priced, RouterRow, absorbs, tabulate
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.sums import Amount, Note, keep_value, take_larger
from zoo.errors import ConfigError

BOUND = "upper bound: peak rate and bandwidth, nothing else taking time; real code is slower"

COMPUTE, BANDWIDTH = "compute", "bandwidth"

MOST = 2**40
"""The largest batch that is searched."""

DAY = 24 * 3600


def roofline(spec: Priced | CostTable, setup: Setup, figures: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Give the bounds for a set-up on its `gpu`, as plain data: seconds, FLOPs, bytes, tokens a second.

    `decode` is one step of `batch` sequences that are `context` long, on `tp` GPUs, `dp` times over; `prefill` reads
    their prompts; `train` is at the set-up's `mfu` on all ranks. `figures` are those of `zoo.costs.price`, of which the
    memory says what `fits`. Raises ConfigError for a GPU that is not known or cannot multiply the dtype.
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
    if any(tower.causal for tower in table.towers.values()):
        found["decode"] = _decode(table, setup, device)
    found["prefill"] = _prefill(table, setup, device)
    found["train"] = _train(table, setup, peak)
    if fits := dict(_fits(device, (figures or {}).get("memory", {}))):
        found["fits"] = fits
    if unchecked := sorted({f"tflops.{setup.dtype}", "bandwidth_gb_s", "link"} & set(device.unchecked())):
        found["unchecked"] = unchecked
    if beside := [name for name in ("pp", "ep", "cp") if getattr(setup, name) > 1]:
        found["left_out"] = f"{', '.join(beside)}: decode and prefill are those of tp and dp alone"
    return found


# ---------------------------------------------------------------- generating


def widths_of(setup: Setup, *, expanded: bool = False) -> Widths:
    return Widths(DTYPES[setup.dtype], DTYPES[setup.cache_dtype or setup.dtype], setup.tp, expanded)


def _decode(table: CostTable, setup: Setup, device: Hardware) -> dict[str, Any]:
    context, batch = setup.tokens(table.spec), setup.batch
    parts = operators(table, context, widths_of(setup), decode=True)
    found = {"batch": batch, "context": context, **_bound(parts, batch, setup, device)}
    found["turnover_batch"] = turnover(parts, device.flops(setup.dtype), device.bandwidth)
    if experts := {name: _met(row, batch) for name, row in mixtures(table)}:
        found["experts"] = experts
    if any(absorbs(row.attention) for row in table.attentions if row.tower.causal):
        other = operators(table, context, widths_of(setup, expanded=True), decode=True)
        found["expanded"] = _bound(other, batch, setup, device)
        for each, ways in ((found, parts), (found["expanded"], other)):
            each["core_flops"] = round(sum(op.flops for op in ways.values() if op.core) * batch)
    if setup.tp > 1:
        found["all_reduce"] = _all_reduce(table.spec, setup, device, decode=True)
    found["operators"] = _each(parts, batch, device, device.flops(setup.dtype))
    return found


def _prefill(table: CostTable, setup: Setup, device: Hardware) -> dict[str, Any]:
    context, batch = setup.tokens(table.spec), setup.batch
    parts = operators(table, context, widths_of(setup), decode=False)
    found = {"batch": batch, "context": context, **_bound(parts, batch, setup, device, context)}
    if setup.tp > 1:
        found["all_reduce"] = _all_reduce(table.spec, setup, device, decode=False)
    found["operators"] = _each(parts, batch, device, device.flops(setup.dtype))
    return found


def _bound(
    parts: Mapping[str, Operator], batch: int, setup: Setup, device: Hardware, tokens: int = 1
) -> dict[str, Any]:
    """Bound a pass over `tokens` of each of `batch` sequences on one rank; tokens per second are of all replicas."""
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
    """Count the bytes of the weights that it reads."""
    return sum(part.weight_bytes(batch) for part in parts.values())


def count_own(parts: Mapping[str, Operator], batch: Amount) -> Amount:
    """Count the bytes of caches and states that it moves."""
    return sum(part.own * batch for part in parts.values())


def bound_seconds(work: Amount, moved: Amount, peak: Amount, bandwidth: Amount) -> Amount:
    """Bound the seconds of `work` FLOPs and `moved` bytes: what takes longer, arithmetic or memory."""
    return take_larger(work / peak, moved / bandwidth)


def count_rates(tokens: Amount, batch: Amount, dp: Amount, seconds: Amount) -> dict[str, Amount]:
    """Count the tokens a second of all replicas, and of one sequence, in a pass over `tokens` of each."""
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
    """Find the smallest batch at which arithmetic takes as long as memory. None if there is none: reading the cache of
    one more sequence takes longer than computing its FLOPs.

    Compute grows in proportion to the batch; bytes grow less, because tokens share weights and experts. So memory
    binds below that batch, and arithmetic above it.
    """

    def computes(batch: int) -> bool:
        work = sum(part.flops for part in parts.values()) * batch
        return work / peak >= sum(part.bytes(batch) for part in parts.values()) / bandwidth

    high = 1
    while not computes(high):
        high *= 2
        if high > MOST:
            return None
    low = high // 2  # does not, or is 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if computes(middle) else (middle, high)
    return high


def _met(row: RouterRow, tokens: int) -> dict[str, Any]:
    return {"experts": row.experts, "read": Chosen(0, row.experts, row.expected).distinct(tokens)}


def _all_reduce(spec: Priced, setup: Setup, device: Hardware, *, decode: bool) -> dict[str, Any]:
    """Bytes that a GPU sends in a pass, 2·(t − 1)/t of each sum (a ring: Patarasuk and Yuan, 2009), and their time:
    apart, since it may hide behind arithmetic."""
    summed = reductions(spec, setup.tokens(spec), decode=decode) * setup.batch
    sent = 2 * (setup.tp - 1) / setup.tp * summed * spec.d_model * DTYPES[setup.dtype]
    found: dict[str, Any] = {"bytes": round(sent), "link": device.link_name}
    if device.link:
        found["seconds"] = sent / device.link
    return found


# ---------------------------------------------------------------- training, and what fits


def _train(table: CostTable, setup: Setup, peak: float) -> dict[str, Any]:
    """A step of every data-parallel rank's batch, at the share `mfu` of all ranks' peak; recomputation is not counted,
    as MFU has it (Chowdhery et al., 2022)."""
    context = setup.tokens(table.spec)
    each = flops.count_flops(table, context, documents=setup.documents(table.spec))["train"]
    found = bound_training(TrainingStep(context, setup.batch, setup.rows, each, setup.mfu, setup.ranks), peak)
    found = {"gpus": setup.ranks, "mfu": setup.mfu, **found}
    found["tokens_per_second_at_peak"] = found["tokens_per_second"] / setup.mfu
    if setup.train_tokens is not None:
        found |= {"train_tokens": setup.train_tokens, **bound_run(setup.train_tokens, found, setup.ranks)}
    return found


class TrainingStep(NamedTuple):
    """A step: tokens of a sequence, sequences of a rank, replicas, FLOPs a token, and the share of the peak of all
    GPUs."""

    context: Amount
    batch: Amount
    dp: Amount
    flops: Amount
    mfu: Amount
    gpus: Amount


def bound_training(step: TrainingStep, peak: Amount, note: Note = keep_value) -> dict[str, Amount]:
    """Bound a step: its tokens, FLOPs and seconds, and tokens a second."""
    tokens = note("tokens", step.context * step.batch * step.dp)
    work = note("flops", step.flops * tokens)
    seconds = note("seconds", work / (peak * step.mfu * step.gpus))
    speed = note("tokens_per_second", tokens / seconds)
    return {"tokens": tokens, "flops": work, "seconds": seconds, "tokens_per_second": speed}


def bound_run(
    train_tokens: Amount, step: Mapping[str, Amount], gpus: Amount, note: Note = keep_value
) -> dict[str, Amount]:
    """Bound the days and GPU-hours of training on so many tokens, by the `tokens_per_second` of a step."""
    days = note("days", train_tokens / step["tokens_per_second"] / DAY)
    return {"days": days, "gpu_hours": note("gpu_hours", days * 24 * gpus)}


def usable(device: Hardware) -> float:
    """Give the usable bytes of a GPU's memory."""
    return usable_bytes(device.memory)


def _fits(device: Hardware, memory: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in ("generate_peak", "train_peak"):
        if key in memory:
            free = usable(device) - memory[key]
            yield key, {"bytes": memory[key], "usable_bytes": round(usable(device)), "fits": free >= 0}
