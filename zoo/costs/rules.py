# L layers, d model width, V vocabulary, N parameters, D training tokens, S tokens of a sequence, B sequences
"""Compare the literature's rules of thumb with the exact figures: value, relative error, and when a rule holds.

A rule made for another kind of model has no value; its `reason` says why, and what the rule would give. A rule of the
right kind that is far off has a value and a large error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoo.costs import flops
from zoo.costs.rows import Priced
from zoo.costs.setup import DTYPES, Setup
from zoo.spec.parts import count_kinds

Rule = dict[str, Any]


@dataclass(frozen=True)
class RuleInputs:
    """A model, a set-up and its figures, as the rules of thumb need them."""

    spec: Priced
    setup: Setup
    figures: Mapping[str, Any]

    @property
    def layers(self) -> int:
        return sum(len(tower.pattern) for tower in self.spec.towers().values())

    @property
    def tokens(self) -> int:
        """Count the tokens of the whole batch."""
        return self.setup.tokens(self.spec) * self.setup.batch

    @property
    def cache_bytes(self) -> float:
        return DTYPES[self.setup.cache_dtype or self.setup.dtype]

    @property
    def total(self) -> int:
        return self.figures["params"]["total"]

    @property
    def active(self) -> int:
        return self.figures["params"]["active"]

    @property
    def flops(self) -> Mapping[str, Any]:
        """Count FLOPs by the exact convention, even if the set-up has another."""
        if self.setup.convention == "exact":
            return self.figures["flops"]
        return flops.count_flops(self.spec, self.setup.tokens(self.spec))

    def two_towers(self) -> str:
        """Say why a rule for one stack of layers does not apply; empty if it does."""
        return "an encoder and a decoder that reads it, where the rule means one stack" if self.paired else ""

    @property
    def paired(self) -> bool:
        return len(self.spec.towers()) > 1

    def recurrent(self, least: int = 1) -> str:
        """Say why a rule for attention does not apply if at least `least` layers keep a state; else empty."""
        (tower, *_) = self.spec.towers().values()
        found = sum(count_kinds(tower.pattern)[kind] for kind, block in tower.blocks.items() if block.attention.state())
        several = f"{found} of the {len(tower.pattern)} layers" if found < len(tower.pattern) else "its layers"
        return f"{several} keep a recurrent state, where the rule means attention" if found >= least else ""

    def shards(self) -> str:
        """Say why a rule for a whole model does not apply to the figures of one rank; empty for one GPU."""
        return f"the exact figure is one rank's of {self.setup.ranks}" if self.setup.ranks > 1 else ""


def rules_of_thumb(spec: Priced, setup: Setup, figures: Mapping[str, Any]) -> dict[str, Rule]:
    """Evaluate each rule, by name: `rule` as it is written, its `value`, the `exact` figure, the value's relative
    `error`, the `unit`, and the conditions under which it `holds`.

    A rule without a value has a `reason`. A rule without an exact figure is advice, or the figure is not priced.
    """
    case = RuleInputs(spec, setup, figures)
    return _parameters(case) | _flops(case) | _cache(case) | _training(case) | _memory(case)


def _entry(rule: str, value: float, exact: float | None, unit: str, holds: str, *against: str) -> Rule:
    """Make a rule's entry. The first non-empty text of `against` is the reason for having no value."""
    reason = next(filter(None, against), "")
    error = value / exact - 1 if exact and not reason else None
    entry = {
        "rule": rule,
        "value": None if reason else value,
        "exact": exact,
        "error": error,
        "unit": unit,
        "holds": holds,
    }
    given = f" (it would give {value:,.4g})" if value else ""
    return entry | ({"reason": reason + given} if reason else {})


def _parameters(case: RuleInputs) -> dict[str, Rule]:
    value = 12 * case.layers * case.spec.d_model**2  # q, k, v, o: 4d²; two matrices 4d wide: 8d²
    against = case.two_towers(), case.recurrent()
    holds = "GPT blocks: as many key heads as heads, n_heads·head_dim = d, d_ff = 4d, two matrices, no experts"
    inner = case.figures["params"]["non_embedding"]
    return {
        "parameters": _entry(
            "12·L·d²", value, case.total, "parameters", f"{holds}; and tables small beside it", *against
        ),
        "non_embedding": _entry("12·L·d²", value, inner, "parameters", holds, *against),
    }


def _flops(case: RuleInputs) -> dict[str, Rule]:
    forward, train = case.flops["forward"], case.flops["train"]
    dense = "no experts, a context short beside 12·d, and tables small or tied (Kaplan et al., 2020)"
    met = "a context short beside 12·d, and tables small or tied; experts are counted as met"
    return {
        "flops_forward": _entry("2·N", 2 * case.total, forward, "FLOP a token", dense),
        "flops_forward_active": _entry("2·N_active", 2 * case.active, forward, "FLOP a token", met),
        "flops_train": _entry("6·N", 6 * case.total, train, "FLOP a token", dense),
        "flops_train_active": _entry("6·N_active", 6 * case.active, train, "FLOP a token", met),
    }


def _cache(case: RuleInputs) -> dict[str, Rule]:
    exact = case.figures["kv_cache"]["bytes"]
    kept = case.tokens * case.cache_bytes
    none = "" if any(tower.causal for tower in case.spec.towers().values()) else "it writes nothing"
    against = none, case.two_towers(), case.recurrent(case.layers), case.shards()
    width = 2 * case.layers * case.spec.d_model
    heads, other = _heads(case)
    return {
        "kv_cache": _entry(
            "2·L·d·S·B·bytes",
            width * kept,
            exact,
            "bytes",
            "as many key heads as heads, n_heads·head_dim = d, no windows, no latent; bytes of a value, not bits",
            *against,
        ),
        "kv_cache_heads": _entry(
            "2·L·n_kv_heads·head_dim·S·B·bytes",
            2 * case.layers * heads * kept,
            exact,
            "bytes",
            "one kind of grouped-query attention in all layers, no windows (Ainslie et al., 2023)",
            *against[:2],
            other,
            against[3],
        ),
    }


def _heads(case: RuleInputs) -> tuple[int, str]:
    """Give n_kv_heads·head_dim of the layers (the largest), and the reason if they differ or have none."""
    blocks = [block for tower in case.spec.towers().values() for block in tower.blocks.values()]
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


def _training(case: RuleInputs) -> dict[str, Rule]:
    optimal = 20 * case.total
    tokens = case.setup.train_tokens or optimal
    return {
        "training_tokens": _entry(
            "20·N", optimal, None, "tokens", "loss for a given compute alone, dense models (Hoffmann et al., 2022)"
        ),
        "training_flops": _entry(
            "6·N·D" if case.setup.train_tokens else "6·N·D, D = 20·N",
            6 * case.total * tokens,
            case.flops["train"] * tokens,
            "FLOP",
            "as 6·N a token does (Kaplan et al., 2020)",
        ),
    }


def _memory(case: RuleInputs) -> dict[str, Rule]:
    held = case.figures["memory"]
    states = sum(held[name] for name in ("weights", "gradients", "optimizer"))
    stacks = case.two_towers(), case.recurrent(), case.shards()
    return {
        "adam_states": _entry(
            "16·N",
            16 * case.total,
            states,
            "bytes",
            "AdamW in mixed precision on one rank (Rajbhandari et al., 2020, ZeRO); no activations",
            case.shards(),
        ),
        "activations": _entry(
            "34·L·S·B·d",
            34 * case.layers * case.tokens * case.spec.d_model,
            held.get("activations"),
            "bytes",
            "GPT blocks in 16 bits with dropout, no scores stored, nothing recomputed (Korthikanti et al., 2022)",
            *stacks,
        ),
    }
