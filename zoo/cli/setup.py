"""Define the command-line options of the verbs that price, one for each field of a `Setup`."""

from __future__ import annotations

import inspect
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
    "batch": "Sequences per data-parallel rank and forward pass; in training, the microbatch size.",
    "document": "Document length in tokens, if training packs several documents into a sequence.",
    "dtype": "Dtype of the weights, and of the cache unless --cache-dtype is given.",
    "cache_dtype": "Dtype of the KV cache. [default: the dtype of the weights]",
    "convention": "How FLOPs are counted: exact (visible pairs only), palm (6N and all T² pairs), megatron "
    "(half the pairs if causal), kaplan (6N, no attention), hfu (exact plus recomputation).",
    "engine": "Engine whose KV-cache allocation is counted: ideal (keys and values that attention can still see), zoo "
    "(its pages), hf (transformers' DynamicCache), paged (as vLLM).",
    "page": "Tokens per page of the KV cache on a GPU, with --engine zoo: 16 or 256, as `zoo generate` prints. "
    "[default: 16, in the layout of a CPU]",
    "optimizer": "Optimizer (name in conf/optim). Sets optimizer-state size and step cost.",
    "decay": "Weight decay: uniform, cautious or hyperball. The last two copy weights in each step.",
    "fused_optimizer": "Fused AdamW: updates in place, without temporaries.",
    "precision": "Training precision, as in `zoo train precision=` (bf16 by default on a GPU), or mixed (16-bit "
    "weights, fp32 master copy), which zoo train lacks. Sets the copies kept per parameter.",
    "recompute": "Activation checkpointing: which activations are recomputed; every_2: every second layer's.",
    "accumulate": "Gradient accumulation: number of passes of `batch` sequences per update.",
    "offload": "Offloaded to host memory between updates: none, or states (optimizer states).",
    "chunked_loss": "Compute the loss in chunks, as `zoo train` does: the full logits are never in memory at once.",
    "dp": "Data-parallel ranks.",
    "tp": "Tensor-parallel ranks.",
    "pp": "Pipeline stages.",
    "schedule": "Pipeline schedule.",
    "chunks": "Model chunks per pipeline stage.",
    "ep": "Expert-parallel ranks.",
    "cp": "Context-parallel ranks.",
    "cp_comm": "KV exchange of context parallelism: all-gather before attention, or ring during it.",
    "zero": "ZeRO stage over the data-parallel ranks; 3 is FSDP.",
    "replicas": "HSDP replica groups: weights are sharded within each, gradients all-reduced across them.",
    "gpu": "GPU (file name in conf/hardware: h100, l4), for the fit check and roofline times.",
    "train_tokens": "Training tokens, for the time to train on --gpu: 1e12, 300B, 15T.",
    "mfu": "Assumed MFU in training: achieved fraction of the GPU's peak FLOP/s.",
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


def hide_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Leave options out of the help of a verb that read_options has wrapped, because it refuses them: it solves for
    their values."""

    def hide(verb: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(verb).parameters
        for name in names:
            parameters[name].annotation.__metadata__[0].hidden = True
        return verb

    return hide


def _beginning(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete
