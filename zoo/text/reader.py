# N texts, T tokens
"""Load a model that reads texts (to fill masks, label or embed), find its maximum length, and pad its batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError
from zoo.lazy import Tensor, torch
from zoo.run.fastest_dtype import settle_cpu

if TYPE_CHECKING:
    from zoo.model.tower import Topology
    from zoo.run.layer import Model


@dataclass(frozen=True)
class TextReader:
    """A model that reads texts; its tokenizer, or the path of its tokenizer.json; and its folder, if it has one."""

    model: Any
    tokenizer: Any
    folder: Path | None


def load_reader(
    model: str | Path | Model, tokenizer: Any, device: str, note: Callable[[str], object] | None
) -> TextReader:
    """Load the model of a folder, or wrap a given model. Raises ConfigError for a given model without a tokenizer."""
    from zoo.checkpoint import hf, store
    from zoo.checkpoint.finding import find

    if not isinstance(model, str | Path):
        if tokenizer is None:
            raise ConfigError("tokenizer: a model alone does not read text (pass its tokenizer.json)")
        return TextReader(model, tokenizer, None)
    folder = find(model)
    loaded, tell = store.load(folder, device=device), note or (lambda line: None)
    if unread := hf.describe_unread(loaded):
        tell(unread)
    settle_cpu(loaded, tell)
    return TextReader(loaded, tokenizer or folder, folder)


def longest_text(spec: Topology) -> int:
    """Return the largest number of tokens that the model reads."""
    tower = next(iter(spec.towers().values()))
    limit = tower.position.limit
    return tower.max_seq_len if limit is None else min(limit, tower.max_seq_len)


def pad_rows(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad rows of token ids on the right. Returns ids and the attention mask, [N, T] each."""
    length = max(map(len, rows))
    ids = [[*row, *[pad] * (length - len(row))] for row in rows]
    there = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(there, device=device)


def find_weight(model: Model) -> Tensor:
    """Find a weight on the model's device. Packed weights leave a weight on the meta device, which does not count."""
    return next(each for each in model.parameters() if each.device.type != "meta")
