"""Start a run from the weights of a folder, ours or Hugging Face's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.checkpoint import store
from zoo.checkpoint.gguf import find
from zoo.lazy import torch
from zoo.spec import table
from zoo.training.start.transfer import transfer


def check_weights(folder: str | Path, spec: Any, added: str) -> None:
    """Tell whether a folder's weights can start this model, from its architecture alone. Raises ConfigError and
    CheckpointError."""
    source = store.load_spec(folder)
    shapes = table(source, source.d_model)
    transfer(source, spec, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, added)


def load_weights(model: Any, folder: str | Path, added: str, seed: int) -> list[str]:
    """Fill a built model with a folder's weights, in place. Returns lines that say what was read and what was made
    of it."""
    source = store.load(folder, "fp32", "cpu")
    held = source.state_dict()
    made = transfer(source.spec, model.whole, held, added, seed)
    own, take = model.state_dict(), model.shares.take_part  # the rest of it is other processes'
    names = {name: take(name, each, own[name]) for name, each in made.held.items() if name in own.keys() - made.fresh}
    found = model.load_state_dict(names, strict=False)
    assert set(found.missing_keys) == made.fresh & own.keys() and not found.unexpected_keys, found
    notes = describe_dropout(getattr(getattr(source, "source", None), "config", {}))
    count = sum(tensor.numel() for tensor in held.values())
    return [f"weights: {len(held)} tensors, {count:,} values, of {find(folder)}", *made.lines, *notes]


def describe_dropout(config: Mapping[str, Any]) -> list[str]:
    """Say which rates of a config.json are not taken over: a run's `dropout` is its own setting."""
    stated = {key: each for key, each in config.items() if "drop" in key and isinstance(each, float) and each > 0}
    fields = ", ".join(f"{key}={each}" for key, each in stated.items())
    return [f"dropout: as the run's settings say, not as config.json ({fields})"] if stated else []
