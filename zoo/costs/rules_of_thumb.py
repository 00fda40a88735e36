# L layers, d model width, V vocabulary, N parameters, D training tokens, S tokens of a sequence, B sequences
"""Compare the literature's rules of thumb with the exact figures: value, relative error, and when a rule holds.

A rule made for another kind of model has no value; its `reason` says why, and what the rule would give. A rule of the
right kind that is far off has a value and a large error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.costs import flops
from zoo.costs.layer_cut import count_layers
from zoo.costs.rows import Priced, generates, list_blocks
from zoo.costs.setup import DTYPES, Setup
from zoo.spec.parts import count_kinds

Rule = dict[str, Any]

GPT = "GPT blocks: as many key heads as heads, n_heads·head_dim = d, d_ff = 4d, two matrices, no experts"
DENSE = "no experts, a context short beside 12·d, and tables small or tied (Kaplan et al., 2020)"
MET = "a context short beside 12·d, and tables small or tied; experts are counted as met"
HEADS = "as many key heads as heads, n_heads·head_dim = d, no windows, no latent; bytes of a value, not bits"
GROUPED = "one kind of grouped-query attention in all layers, no windows (Ainslie et al., 2023)"
OPTIMAL = "loss for a given compute alone, dense models (Hoffmann et al., 2022)"
STATES = "AdamW in mixed precision on one rank (Rajbhandari et al., 2020, ZeRO); no activations"
STORED = "GPT blocks in 16 bits with dropout, no scores stored, nothing recomputed (Korthikanti et al., 2022)"

RULES = {
    "parameters": ("12·L·d²", "parameters", f"{GPT}; and tables small beside it"),
    "non_embedding": ("12·L·d²", "parameters", GPT),
    "flops_forward": ("2·N", "FLOP a token", DENSE),
    "flops_forward_active": ("2·N_active", "FLOP a token", MET),
    "flops_train": ("6·N", "FLOP a token", DENSE),
    "flops_train_active": ("6·N_active", "FLOP a token", MET),
    "kv_cache": ("2·L·d·S·B·bytes", "bytes", HEADS),
    "kv_cache_heads": ("2·L·n_kv_heads·head_dim·S·B·bytes", "bytes", GROUPED),
    "training_tokens": ("20·N", "tokens", OPTIMAL),
    "training_flops": ("6·N·D", "FLOP", "as 6·N a token does (Kaplan et al., 2020)"),
    "adam_states": ("16·N", "bytes", STATES),
    "activations": ("34·L·S·B·d", "bytes", STORED),
}
"""Each rule as it is written, its unit, and the conditions under which it holds."""


def rules_of_thumb(spec: Priced, setup: Setup, figures: Mapping[str, Any]) -> dict[str, Rule]:
    """Evaluate each rule, by name: `rule` as it is written, its `value`, the `exact` figure, the value's relative
    `error`, the `unit`, and the conditions under which it `holds`.

    A rule without a value has a `reason`. `exact` is None for a rule that is advice, and if the figure is not priced.
    """
    found = {name: _describe(*RULES[name], *given) for name, given in _evaluate(spec, setup, figures).items()}
    if setup.train_tokens is None:
        found["training_flops"]["rule"] += ", D = 20·N"
    return found


def _describe(rule: str, unit: str, holds: str, value: float, exact: float | None, *against: str) -> Rule:
    """Describe a rule and its value. The first non-empty text of `against` is the reason for having no value."""
    reason = next(filter(None, against), "")
    error = value / exact - 1 if exact and not reason else None
    found = {"rule": rule, "value": None if reason else value, "exact": exact, "error": error}
    found |= {"unit": unit, "holds": holds}
    given = f" (it would give {value:,.4g})" if value else ""
    return found | ({"reason": reason + given} if reason else {})


def _evaluate(spec: Priced, setup: Setup, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Give for each rule its value, the exact figure, and reasons against the rule (a reason that does not apply is
    empty)."""
    params, memory, context = figures["params"], figures["memory"], setup.tokens(spec)
    counted = figures["flops"] if setup.convention == "exact" else flops.count_flops(spec, context)
    total, active, forward, train = params["total"], params["active"], counted["forward"], counted["train"]
    layers, d, tokens = count_layers(spec), spec.d_model, context * setup.batch
    cache, kept = figures["kv_cache"]["bytes"], 2 * layers * tokens * DTYPES[setup.cached]
    trained = setup.train_tokens or 20 * total
    states = sum(memory[name] for name in ("weights", "gradients", "optimizer"))
    two = "an encoder and a decoder that reads it, where the rule means one stack" if len(spec.towers()) > 1 else ""
    shards = f"the exact figure is one rank's of {setup.ranks}" if setup.ranks > 1 else ""
    recurrent, (heads, other) = _describe_recurrent(spec), _find_heads(spec)
    none = "" if generates(spec) else "it writes nothing"
    return {
        "parameters": (12 * layers * d**2, total, two, recurrent),  # q, k, v, o: 4d²; two matrices 4d wide: 8d²
        "non_embedding": (12 * layers * d**2, params["non_embedding"], two, recurrent),
        "flops_forward": (2 * total, forward),
        "flops_forward_active": (2 * active, forward),
        "flops_train": (6 * total, train),
        "flops_train_active": (6 * active, train),
        "kv_cache": (kept * d, cache, none, two, _describe_recurrent(spec, layers), shards),
        "kv_cache_heads": (kept * heads, cache, none, two, other, shards),
        "training_tokens": (20 * total, None),
        "training_flops": (6 * total * trained, train * trained),
        "adam_states": (16 * total, states, shards),
        "activations": (34 * layers * tokens * d, memory.get("activations"), two, recurrent, shards),
    }


def _describe_recurrent(spec: Priced, least: int = 1) -> str:
    """Say why rules for attention do not apply: at least `least` layers keep a recurrent state. Empty if fewer do."""
    (tower, *_) = spec.towers().values()
    found = sum(count_kinds(tower.pattern)[kind] for kind, block in tower.blocks.items() if block.attention.state())
    several = f"{found} of the {len(tower.pattern)} layers" if found < len(tower.pattern) else "its layers"
    return f"{several} keep a recurrent state, where the rule means attention" if found >= least else ""


def _find_heads(spec: Priced) -> tuple[int, str]:
    """Give the layers' n_kv_heads·head_dim (the largest), and a reason against the rule if layers differ or have no
    such heads."""
    blocks = list_blocks(spec)
    found = {_kept(block.attention) for block in blocks}
    if len(found) == 1 and None not in found:
        return next(iter(found)) or 0, ""
    kinds = ", ".join(dict.fromkeys(block.attention.kind for block in blocks))
    most = max((width for width in found if width), default=0)
    return most, f"its layers ({kinds}) do not all keep the same keys and values by head"


def _kept(attention: Any) -> int | None:
    cache = attention.cache()
    if attention.kind != "gqa" or set(cache) != {"k", "v"} or len(set(attention.head_widths)) > 1:
        return None
    return attention.n_kv_heads * attention.head_dim
