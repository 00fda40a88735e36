"""Format a model's summary: the first few lines of `zoo stats`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo.costs.advice import CHUNKED
from zoo.costs.flops import MEASURED
from zoo.report.wrapping import wrap_text
from zoo.units import format_count, format_si

if TYPE_CHECKING:
    from zoo.costs.rows import Priced
    from zoo.costs.setup import Setup

PARTS = {
    "weights": "weights",
    "kv_cache": "KV cache",
    "prefill": "prefill activations",
    "generate_activations": "prefill activations",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations",
    "loss_head": "logits and their gradients",
    "step": "temporaries of the optimizer's step",
    "rest": "gradients, temporaries, the rest",
}
"""Maps the parts of memory to their names in sentences."""

PRECISIONS = {
    "mixed": "mixed precision",
    "bf16": "autocast",
    "bf16_master": "master weights in fp32",
    "bf16_pure": "pure bf16",
}
"""Names of training precisions in sentences; `fp32` is used as it is."""

USES = {"generate": ("to generate", "generating"), "run": ("to run", "running"), "train": ("to train", "training")}
LABEL = 12


def list_first_figures(spec: Priced, setup: Setup, figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List labels and sentences for a model's `figures`: parameters, cache, memory to train and to generate, FLOPs, the
    GPUs on which the model fits, and the assumptions."""
    from zoo.analysis.holding import find_holders

    found = [("parameters", _parameters(figures["params"]))]
    if trained := figures.get("trained"):
        found.append(("trained", _trained(trained)))
    if cached := _cache(figures["kv_cache"]):
        found.append(cached)
    found.append(("training", _training(figures["memory"])))
    if "kv_cache" in figures["memory"]:
        found.append(("generating", _generating(figures["memory"])))
    found.append(("FLOPs", _flops(figures["flops"], partly=bool(trained))))
    if holders := find_holders(spec, setup, figures):
        found.append(("fits on", _held(holders)))
    return [*found, ("assumed", _assumed(figures["kv_cache"], setup))]


def format_first_figures(lines: Sequence[tuple[str, str]]) -> str:
    """Format labels and sentences as text of 80 columns."""
    return "\n".join(wrap_text(f"{label:<{LABEL}}{told}", 2, 2 + LABEL) for label, told in lines)


def _parameters(counted: Mapping[str, Any]) -> str:
    if counted["active"] == counted["total"]:
        return f"{format_count(counted['total'])}, all of them active per token"
    return f"{format_count(counted['total'])}, {format_count(counted['active'])} of them active per token"


def _trained(counted: Mapping[str, Any]) -> str:
    size = format_si(counted["checkpoint"], "B")
    return f"{format_count(counted['parameters'])}, {counted['share']:.2%} of all; {size} per checkpoint".replace(
        "%", " %"
    )


def _cache(cache: Mapping[str, Any]) -> tuple[str, str] | None:
    """Describe the KV cache and recurrent states; None for a model that does not generate."""
    if not cache["bytes"]:
        return None
    size, states = format_si(cache["bytes"], "B"), cache["state_bytes"]
    if states == cache["bytes"]:
        return "state", f"{size}, the same for any number of tokens (no KV cache)"
    whole = cache["bytes_per_token"] * cache.get("tokens", 0) * cache.get("batch", 1)  # if every layer kept all tokens
    until = " until windows are full" if cache["bytes"] - states - cache["cross_bytes"] < 0.99 * whole else ""
    told = f"{size} at {format_sequences(cache)} ({format_si(cache['bytes_per_token'], 'B')} per token{until})"
    if cache["cross_bytes"]:
        told += f", {format_si(cache['cross_bytes'], 'B')} of it cross-attention's"
    return "KV cache", told + (f", {format_si(states, 'B')} of it states" if states else "")


def format_sequences(cache: Mapping[str, Any]) -> str:
    """Format a cache's batch and tokens: `4 × 8,192 tokens`."""
    tokens = f"{cache.get('tokens', 0):,} tokens"
    return f"{cache['batch']:,} × {tokens}" if cache.get("batch", 1) != 1 else tokens


def _training(memory: Mapping[str, Any]) -> str:
    if "train_peak" not in memory:
        return f"not known: {memory['activations_unknown']}"
    told = _peak(memory, "train_peak", memory["bottleneck"], memory[memory["bottleneck"]])
    chunked = (each["train_peak"] for each in memory["change_first"] if each["change"] == CHUNKED)
    return "; ".join([told, *(f"{format_si(peak, 'B')} with the loss in chunks, as in zoo train" for peak in chunked)])


def _generating(memory: Mapping[str, Any]) -> str:
    if "generate_peak" not in memory:
        return f"not known: {memory['activations_unknown']}"
    parts = {name: memory[name] for name in ("kv_cache", "generate_activations")}
    parts["weights"] = memory["generate_peak"] - sum(parts.values())
    most = max(parts, key=lambda name: parts[name])
    return _peak(memory, "generate_peak", most, parts[most])


def _peak(memory: Mapping[str, Any], name: str, part: str, size: int) -> str:
    """Format a peak, and its largest part with its share: `162 GB, 60 % of it optimizer states`."""
    where = f" on {memory['on']}" if "on" in memory else ""
    return f"{format_si(memory[name], 'B')}{where}, {size / memory[name]:.0%} of it {PARTS[part]}".replace("%", " %")


def _flops(flops: Mapping[str, Any], *, partly: bool) -> str:
    forward, train = (format_si(flops[name], "FLOP") for name in ("forward", "train"))
    found = f"{forward} per token forward, {train} with backward"
    convention = str(flops["convention"]).partition(":")[0]
    if partly:
        found += " of the trained part" if convention in MEASURED else " of all weights"
    elif flops["train"] < 2.95 * flops["forward"]:
        found += " (products without a gradient, such as an indexer's, have no backward pass)"
    return found if convention == "exact" else f"{found} ({convention})"


def _assumed(cache: Mapping[str, Any], setup: Setup) -> str:
    precision = PRECISIONS.get(setup.precision, setup.precision)
    kept = f", cache in {cache['dtype']}" if cache["bytes"] and cache["dtype"] != setup.dtype else ""
    batch = f"batch {cache['batch']:,} of {cache['tokens']:,} tokens"
    return f"{batch}, {setup.dtype}{kept}; training: {setup.optimizer}, {precision}"


def _held(holders: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe the GPUs for each use, `1 × L4 (24 GB) to generate, 1 × B200 (180 GB) to train`, then each use that fits
    nowhere, with the largest GPUs tried."""
    uses: dict[str, list[str]] = {}
    for use, holder in holders.items():
        if holder["fits"]:
            uses.setdefault(_gpus(holder), []).append(USES[use][0])
    large = [f"{USES[use][1]} does not fit on {_gpus(each)}" for use, each in holders.items() if not each["fits"]]
    return "; ".join(
        [*filter(None, [", ".join(f"{gpus} {' and '.join(each)}" for gpus, each in uses.items())]), *large]
    )


def _gpus(holder: Mapping[str, Any]) -> str:
    size = ", ".join(filter(None, (f"{holder['memory'] / 1e9:.0f} GB", holder["options"])))
    return f"{holder['gpus']:,} × {holder['gpu'].upper()} ({size})"
