"""Make the fields of a `Setup` options of every verb that prices."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from zoo.costs.setup import CHOICES, MOST_AMOUNT, Setup
from zoo.errors import ConfigError
from zoo.untrusted.text import quote

HELP = {
    "context": "Tokens of a sequence. [default: the model's max_seq_len]",
    "batch": "Sequences at once, on each data-parallel rank.",
    "document": "Tokens of each document that training packs into a sequence.",
    "dtype": "The dtype of weights, and of the cache unless --cache-dtype is given.",
    "cache_dtype": "The dtype of the KV cache. [default: that of the weights]",
    "convention": "How FLOPs are counted.",
    "engine": "The engine whose KV cache is counted: what it keeps of earlier tokens.",
    "page": "Tokens of a page where Zoo's engine reads by page table: 16 or 256, as `zoo generate` says on a GPU.",
    "optimizer": "The optimizer, by its name in conf/optim: its states, and what its step costs.",
    "fused_optimizer": "AdamW updates in place, without temporaries.",
    "precision": "The precision of training: what it keeps of a parameter.",
    "recompute": "The activations that training recomputes instead of keeping; every_2: of every second layer.",
    "accumulate": "Passes of `batch` sequences whose gradients are summed up for an update.",
    "offload": "What is kept in the host's memory between updates: states, those of the optimizer.",
    "chunked_loss": "Compute the loss on chunks of logits, which are never all in memory.",
    "dp": "Data-parallel ranks.",
    "tp": "Tensor-parallel ranks.",
    "pp": "Pipeline stages.",
    "schedule": "The order in which pipeline stages compute.",
    "chunks": "Chunks of layers that each pipeline stage has.",
    "ep": "Expert-parallel ranks.",
    "cp": "Context-parallel ranks.",
    "cp_comm": "How the keys of context-parallel ranks meet: gathered before attention, or round a ring during it.",
    "zero": "Stage of ZeRO over the data-parallel ranks; 3 is FSDP.",
    "replicas": "Groups of ranks that share weights so, and sum up gradients (HSDP).",
    "gpu": "A GPU by its file name in conf/hardware, for the roofline.",
    "train_tokens": "Tokens to train on: 1e12, 300B, 15T.",
    "mfu": "The share of the GPU's peak that training reaches.",
}
"""What each option is for."""

SPELLED = {"train_tokens": "--tokens"}
"""Options that are not called as their field is."""

SHORT = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def read_amount(text: str | float, setting: str = "tokens", example: str = "1e12, 300B or 15T") -> float:
    """Read `15T` or `1e12` as a number of 1 or more. Raises ConfigError."""
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([KMBGT]?)", str(text).strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{setting}: cannot read {quote(str(text))} as a number ({example})")
    return check_amount(float(match[1]) * SHORT.get(match[2].upper(), 1), text, setting, example)


def check_amount(amount: float, text: str | float, setting: str, example: str) -> float:
    """Check that an amount is one that figures can be computed of. Raises ConfigError."""
    if not 1 <= amount <= MOST_AMOUNT:
        raise ConfigError(f"{setting}: must be from 1 to {MOST_AMOUNT:g}, found {quote(str(text))} ({example})")
    return amount


def setup_options(run: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb an option for every field of Setup, and call it with the resulting `setup`.

    Raises ConfigError for a set-up at fault when the verb is called.
    """
    hints = get_type_hints(Setup)
    options = [_option(field, hints[field.name]) for field in fields(Setup)]
    names = [option.name for option in options]

    @wraps(run)
    def called(**given: Any) -> Any:
        return run(setup=Setup(**{name: given.pop(name) for name in names}), **given)

    signature = inspect.signature(run, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "setup"]
    called.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    del called.__wrapped__  # type: ignore[attr-defined]  # Typer would look for annotations there
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
    return called


def _option(field: Any, hint: Any) -> inspect.Parameter:
    """Make a Typer option of one field."""
    name = field.name
    flag = SPELLED.get(name, "--" + name.replace("_", "-"))
    settings: dict[str, Any] = {"help": HELP.get(name, "")}
    if name in CHOICES:  # Setup itself refuses others, with the nearest one
        settings |= {"metavar": "|".join(CHOICES[name]), "autocompletion": _beginning(CHOICES[name])}
    elif name == "train_tokens":
        settings |= {"parser": _tokens, "metavar": "NUMBER"}
    elif name == "zero":
        settings |= {"min": 0, "max": 3}
    elif int in (hint, *getattr(hint, "__args__", ())):
        settings["min"] = 1
    annotation = Annotated[hint, typer.Option(flag, show_default=field.default not in (None, False), **settings)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)


def _tokens(text: str) -> float:
    return read_amount(text)


def _beginning(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete
