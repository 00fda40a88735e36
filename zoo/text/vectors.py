# N texts, T tokens, D model width
"""Embed texts: a model's hidden states, pooled over each text's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError, did_you_mean
from zoo.families.described import read_json
from zoo.lazy import F, torch
from zoo.model.task_head import pool
from zoo.text.reading import load_reader, longest_text, pad_rows

if TYPE_CHECKING:
    from torch import Tensor

POOLINGS = ("mean", "cls", "last")


def embed(
    model: Any,
    texts: Sequence[str],
    *,
    tokenizer: Any = None,
    pooling: str | None = None,
    normalize: bool = True,
    batch_size: int = 32,
    device: str = "cpu",
    note: Callable[[str], object] | None = None,
) -> Tensor:
    """Embed texts: the vector of each [N, D], float32 on the CPU. `model` is a folder, or a model with its `tokenizer`
    (a tokenizer.json or its folder).

    `pooling` takes the mean of a text's tokens (Reimers and Gurevych, 2019), its first (cls) or its last; unless given,
    what the folder's 1_Pooling/config.json says, else the mean. `normalize` makes every vector of length 1. A text
    longer than the model's positions is cut there, and `note` is told. Raises ConfigError.
    """
    reader = load_reader(model, tokenizer, device, note)
    pooling = pooling or (read_pooling(reader.folder) if reader.folder else None) or "mean"
    if pooling not in POOLINGS:
        raise ConfigError(
            f"pooling: {pooling!r} is none{did_you_mean(pooling, POOLINGS)} (one of: {', '.join(POOLINGS)})"
        )
    rows = _encode(reader.tokenizer, texts, longest_text(reader.model.spec), note)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))  # alike lengths together: less padding
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        with torch.inference_mode():
            vectors = _pool(reader.model, [rows[index] for index in batch], pooling)
        found |= dict(zip(batch, F.normalize(vectors, dim=-1) if normalize else vectors, strict=True))
    width = reader.model.spec.d_model
    return torch.stack([found[index] for index in range(len(rows))]) if rows else torch.empty(0, width)


def read_pooling(folder: Path) -> str | None:
    """Read the pooling that sentence-transformers wrote beside a model, if it did."""
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return None
    node = read_json(file)
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
    chosen = [ours for theirs, ours in names.items() if node.get(theirs)]
    if len(chosen) != 1:
        raise ConfigError(f"{file}: asks for a pooling that is none of ours (--pooling {', '.join(POOLINGS)})")
    return chosen[0]


def _encode(tokenizer: Any, texts: Sequence[str], limit: int, note: Callable[[str], object] | None) -> list[list[int]]:
    """Token ids of each text, with the special tokens that the tokenizer's file asks for."""
    from zoo.data.tokenizer import find_tokenizer_file, read_backend

    if isinstance(tokenizer, str | Path):
        tokenizer = read_backend(find_tokenizer_file(tokenizer, "tokenizer"), "tokenizer")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    long = sum(len(each.ids) > limit for each in tokenizer.encode_batch(list(texts)))
    if long and note is not None:
        note(f"{long} of {len(texts)} texts are cut at {limit} tokens, which is what the model reads")
    tokenizer.enable_truncation(limit)
    rows = [each.ids for each in tokenizer.encode_batch(list(texts))]
    empty = [index for index, row in enumerate(rows) if not row]
    if empty:
        raise ConfigError(f"texts: number {empty[0]} has no token (a text that is not empty)")
    return rows


def _pool(model: Any, rows: list[list[int]], pooling: Any) -> Tensor:
    """The vectors of some texts [N, D], padded to one length."""
    pad = model.spec.position.padding_id if hasattr(model.spec, "position") else None
    ids, mask = pad_rows(rows, pad or 0, next(model.parameters()).device)
    reader = model.get_submodule("encoder") if "encoder" in model.spec.towers() else model
    hidden = reader(ids, mask, logits_to_keep=0).hidden.float().cpu()  # N T D
    return pool(hidden, mask.cpu().bool(), pooling)


def cosines(vectors: Tensor) -> Tensor:
    """Cosine similarities of all pairs of vectors [N, N]."""
    unit = F.normalize(vectors, dim=-1)
    return unit @ unit.T
