# N texts, T tokens, V vocabulary
"""Fill masked tokens with the predictions of an encoder that has a head for masked language modelling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data.tokenizer import MASKS, find_tokenizer_file, open_backend, read_special_token
from zoo.errors import ConfigError, refuse
from zoo.lazy import torch
from zoo.model.head import describe_lack
from zoo.text.reader import load_reader, longest_text, pad_rows
from zoo.untrusted.printable import check_text

if TYPE_CHECKING:
    from zoo.data.tokenizer import TokenizerSource
    from zoo.run.layer import Model


def fill(
    model: str | Path | Model,
    texts: Sequence[str],
    *,
    tokenizer: TokenizerSource | None = None,
    top_k: int = 5,
    batch_size: int = 32,
    device: str = "cpu",
    note: Callable[[str], object] | None = None,
) -> list[list[list[dict[str, Any]]]]:
    """Predict the `top_k` most likely tokens for each mask of each text, as `id`, `token` and `probability`. `model` is
    a folder, or a model with its `tokenizer` (a tokenizer.json or its folder).

    Each mask is predicted with all other masks in place. Raises ConfigError for a model without a head for masked
    language modelling, a tokenizer without a mask token, and a text that has no mask or is too long.
    """
    if top_k < 1:
        raise ConfigError(f"top_k: is {top_k}, not 1 or more")
    reader = load_reader(model, tokenizer, device, note)
    _check_model(reader.model.spec)
    backend, mask = _read_tokenizer(reader.tokenizer)
    rows = _encode(backend, mask, texts, longest_text(reader.model.spec))
    found: list[list[list[dict[str, Any]]]] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        found += [[_name(backend, *guess) for guess in guesses] for guesses in _guess(reader.model, batch, mask, top_k)]
    return found


def _check_model(spec: Any) -> None:
    if spec.kind != "encoder":
        raise ConfigError(f"fill: the model is a {spec.kind}, which fills no masks (an encoder does; or zoo generate)")
    if not spec.head.predicts_tokens:
        raise ConfigError(f"fill: {describe_lack(spec.head)}, so it predicts no tokens (head: mlm)")


def _read_tokenizer(given: TokenizerSource) -> tuple[Any, int]:
    """Read the tokenizer and the id of its mask token. Raises ConfigError if it has none."""
    backend, stated = open_backend(given, "tokenizer"), None
    if isinstance(given, str | Path):
        stated = read_special_token(find_tokenizer_file(given, "tokenizer"), "mask_token", "tokenizer")
    for word in (stated, *MASKS):
        mask = None if word is None else backend.token_to_id(word)
        if mask is not None:
            backend.encode_special_tokens = False
            return backend, mask
    raise ConfigError(f"tokenizer: has no mask token (mask_token in tokenizer_config.json, or {' or '.join(MASKS)})")


def _encode(backend: Any, mask: int, texts: Sequence[str], limit: int) -> list[list[int]]:
    """Encode each text to token ids. Raises ConfigError with a line for each text that has no mask, or is too long."""
    given = [check_text(text, f"texts: number {number}") for number, text in enumerate(texts, 1)]
    rows = [each.ids for each in backend.encode_batch(given)]
    word = backend.id_to_token(mask)
    none = [f"texts: number {index + 1} has no {word}" for index, row in enumerate(rows) if mask not in row]
    long = {index + 1: len(row) for index, row in enumerate(rows) if len(row) > limit}
    faults = [f"{fault} (the model's word for what is to be filled)" for fault in none]
    faults += [f"texts: number {n} has {count} tokens, the model reads {limit} (less)" for n, count in long.items()]
    refuse(faults)
    return rows


def _guess(model: Any, rows: list[list[int]], mask: int, top_k: int) -> list[list[tuple[list[int], list[float]]]]:
    """Predict the most likely tokens and their probabilities, for each mask of each row."""
    ids, there = pad_rows(rows, model.spec.position.skip_id or 0, next(model.parameters()).device)
    with torch.inference_mode():
        logits = model(ids, there).logits  # N T V
    found = []
    for row, scores in zip(rows, logits, strict=True):
        places = [place for place, token in enumerate(row) if token == mask]
        top = scores[places].float().softmax(-1).topk(min(top_k, scores.shape[-1]))
        found.append(list(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
    return found


def _name(backend: Any, ids: list[int], probabilities: list[float]) -> list[dict[str, Any]]:
    return [
        {"id": token, "token": backend.decode([token], skip_special_tokens=False), "probability": probability}
        for token, probability in zip(ids, probabilities, strict=True)
    ]
