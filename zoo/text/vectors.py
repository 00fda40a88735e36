# N texts, T tokens, D model width
"""Embed texts: a model's hidden states, pooled over each text's tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.finding import find
from zoo.data.tokenizer import open_backend
from zoo.errors import ConfigError, ZooError
from zoo.lazy import F, Tensor, torch
from zoo.text.reader import load_reader, longest_text, pad_rows
from zoo.text.sentence import read_pipeline
from zoo.untrusted.printable import check_text

if TYPE_CHECKING:
    from zoo.data.tokenizer import TokenizerSource
    from zoo.run.layer import Model


def embed(
    model: str | Path | Model,
    texts: Sequence[str],
    *,
    tokenizer: TokenizerSource | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    dim: int | None = None,
    prompt: str | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    note: Callable[[str], object] | None = None,
) -> Tensor:
    """Embed texts as vectors [N, D], float32 on the CPU. `model` is a folder, or a model with its `tokenizer` (a
    tokenizer.json or its folder).

    A sentence-transformers folder states in modules.json its pooling, dense layers, maximum number of tokens, and
    whether vectors are scaled to length 1. The default is the mean over a text's tokens, scaled (Reimers and Gurevych,
    2019). `pooling` (mean, cls, last, max, mean_sqrt_len, weighted) and `normalize` override pooling and scaling. `dim`
    keeps the first numbers of each vector, which are scaled again (Matryoshka; Kusupati et al., 2022). `prompt` names
    one of the folder's prompts, which is put before every text. Longer texts are truncated, and `note` gets a line with
    their number. Raises ConfigError for invalid options and texts without tokens, ZooError for a vector that is not
    finite.
    """
    pipeline = read_pipeline(find(model) if isinstance(model, str | Path) else None).choose(pooling, normalize)
    before = pipeline.find_prompt(prompt)
    reader = load_reader(model if pipeline.model is None else pipeline.model, tokenizer, device, note)
    limit = min(longest_text(reader.model.spec), pipeline.limit or sys.maxsize)
    texts = [check_text(text, f"texts: number {number}") for number, text in enumerate(texts, 1)]
    given = [before + (text.lower() if pipeline.lower else text) for text in texts]
    rows = _encode(reader.tokenizer, given, limit, note)
    n_prompt = _count_prompt(reader.tokenizer, before)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))  # sorted by length: less padding
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        with torch.inference_mode():
            hidden, real = _run(reader.model, [rows[index] for index in batch])
            found |= dict(zip(batch, pipeline.apply(hidden, real, n_prompt, dim), strict=True))
    if broken := [number for number in range(len(rows)) if not found[number].isfinite().all()]:
        raise ZooError(f"texts: the vector of number {broken[0] + 1} is not finite (weights that are whole)")
    return (
        torch.stack([found[index] for index in range(len(rows))]) if rows else torch.empty(0, reader.model.spec.d_model)
    )


def _count_prompt(tokenizer: TokenizerSource, prompt: str) -> int:
    """Count a prompt's tokens at the beginning of a text, without a special token at its end."""
    if not prompt:
        return 0
    found = open_backend(tokenizer, "tokenizer").encode(prompt)
    return len(found.ids) - found.special_tokens_mask[-1]


def _encode(tokenizer: Any, texts: Sequence[str], limit: int, note: Callable[[str], object] | None) -> list[list[int]]:
    """Encode each text to token ids, with the special tokens of the tokenizer's file."""
    tokenizer = open_backend(tokenizer, "tokenizer")
    long = sum(len(each.ids) > limit for each in tokenizer.encode_batch(list(texts)))
    if long and note is not None:
        note(f"{long} of {len(texts)} texts are cut at {limit} tokens, which is what the model reads")
    tokenizer.enable_truncation(limit)
    rows = [each.ids for each in tokenizer.encode_batch(list(texts))]
    empty = [index for index, row in enumerate(rows) if not row]
    if empty:
        raise ConfigError(f"texts: number {empty[0] + 1} has no token (a text that is not empty)")
    return rows


def _run(model: Any, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Run the model on texts padded to one length. Returns hidden states [N, T, D], float32 on the CPU, and the mask of
    real tokens [N, T]."""
    pad = model.spec.position.skip_id if hasattr(model.spec, "position") else None
    ids, mask = pad_rows(rows, pad or 0, next(model.parameters()).device)
    reader = model.get_submodule("encoder") if "encoder" in model.spec.towers() else model
    return reader(ids, mask, logits_to_keep=0).hidden.float().cpu(), mask.cpu().bool()


def cosines(vectors: Tensor) -> Tensor:
    """Compute the cosine similarities of all pairs of vectors [N, N]."""
    unit = F.normalize(vectors, dim=-1)
    return unit @ unit.T
