"""Define the command-line options of the verbs that price, one for each field of a `Setup`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import Field
from typing import Annotated, Any

import typer

from zoo.costs.setup import CHOICES, MOST_AMOUNT, Setup
from zoo.errors import ConfigError
from zoo.untrusted.printable import quote

HELP = {
    "context": "Sequence length in tokens. [default: the model's max_seq_len]",
    "batch": "Sequences per data-parallel rank and forward pass; in training, the micro-batch size.",
    "document": "Document length in tokens, if training packs several documents into a sequence.",
    "dtype": "Dtype of the weights, and of the cache unless --cache-dtype is given.",
    "cache_dtype": "Dtype of the KV cache. [default: the dtype of the weights]",
    "convention": "How FLOPs are counted: exact (visible pairs only), palm (6N and all T² pairs), megatron "
    "(half of them if causal), kaplan (6N, no attention), hfu (exact plus recomputation).",
    "engine": "Engine whose KV-cache allocation is counted: ideal (keys and values that attention can still see), zoo "
    "(its pages), hf (transformers' DynamicCache), paged (as vLLM).",
    "page": "With --engine zoo: page size in tokens of the KV cache on a GPU, 16 or 256 (`zoo generate` prints it). "
    "[default: 16, as on a CPU]",
    "optimizer": "The optimizer, by its name in conf/optim. It decides the size of its states, and the cost of a step.",
    "decay": "Weight decay: uniform, cautious or hyperball. The last two copy weights in each step.",
    "fused_optimizer": "Fused AdamW: updates in place, without temporaries.",
    "precision": "Training precision: a value of `zoo train precision=` (its default on a GPU is bf16), or mixed "
    "(16-bit weights, master copy in fp32), which it lacks. It decides the copies of each parameter.",
    "recompute": "Activation checkpointing: which activations are recomputed; every_2: every second layer's.",
    "accumulate": "Gradient accumulation: number of passes of `batch` sequences per update.",
    "offload": "State offloaded to host memory between updates: none, or states (the optimizer's).",
    "chunked_loss": "Compute the loss in chunks, as `zoo train` does, so that never all logits exist at once.",
    "dp": "Data-parallel ranks.",
    "tp": "Tensor-parallel ranks.",
    "pp": "Pipeline stages.",
    "schedule": "Pipeline schedule.",
    "chunks": "Model chunks per pipeline stage.",
    "ep": "Expert-parallel ranks.",
    "cp": "Context-parallel ranks.",
    "cp_comm": "KV exchange of context parallelism: all-gather before attention, or ring during it.",
    "zero": "ZeRO stage over the data-parallel ranks; 3 is FSDP.",
    "replicas": "Groups of ranks (HSDP): each shards all weights among its ranks; gradients are summed over groups.",
    "gpu": "A GPU, by its file name in conf/hardware: h100, l4. For what fits, and for the times of the roofline.",
    "train_tokens": "Training tokens, for the time to train on --gpu: 1e12, 300B, 15T.",
    "mfu": "Assumed MFU in training: the fraction of the GPU's peak that it reaches.",
}
"""The help of each option."""

SPELLED = {"train_tokens": "--tokens"}
"""Options that are not named after their fields."""

SHORT = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def read_amount(text: str | float, setting: str = "tokens", example: str = "1e12, 300B or 15T") -> float:
    """Read `15T` or `1e12` as a number of 1 or more. Raises ConfigError for other texts."""
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([KMBGT]?)", str(text).strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{setting}: cannot read {quote(str(text))} as a number ({example})")
    return check_amount(float(match[1]) * SHORT.get(match[2].upper(), 1), text, setting, example)


def check_amount(amount: float, text: str | float, setting: str, example: str) -> float:
    """Return an amount. Raises ConfigError unless it is from 1 to MOST_AMOUNT."""
    if not 1 <= amount <= MOST_AMOUNT:
        raise ConfigError(f"{setting}: must be from 1 to {MOST_AMOUNT:g}, found {quote(str(text))} ({example})")
    return amount


def describe_field(field: Field[Any], hint: Any) -> Any:
    """Make the Typer option for a field of a Setup."""
    name = field.name
    flag = SPELLED.get(name, "--" + name.replace("_", "-"))
    settings: dict[str, Any] = {"help": HELP.get(name, "")}
    if name in CHOICES:  # Setup itself refuses others, with the nearest choice
        settings |= {"metavar": "|".join(CHOICES[name]), "autocompletion": _beginning(CHOICES[name])}
    elif name == "train_tokens":
        settings |= {"parser": read_amount, "metavar": "NUMBER"}
    elif name == "zero":
        settings |= {"min": 0, "max": 3}
    elif int in (hint, *getattr(hint, "__args__", ())):
        settings["min"] = 1
    return typer.Option(flag, show_default=field.default is not None and field.default is not False, **settings)


SetupOptions = Annotated[Setup, describe_field]
"""The type of a verb's parameter for a Setup: read_options makes an option for each field."""


def _beginning(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete
