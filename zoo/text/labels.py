# N texts, T tokens, C classes or numbers
"""Predict the labels of texts with a model that has a head for a task: a class or numbers for each, or a tag for each
word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError
from zoo.lazy import torch
from zoo.text.reading import load_reader, longest_text, pad_rows

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.data.rowcode import Row

Texts = str | tuple[str, str] | list[str]
"""A text, a pair of texts, or the words of one that are tagged."""


def score(
    model: Any,
    texts: Sequence[Texts],
    *,
    tokenizer: Any = None,
    every: bool = False,
    batch_size: int = 32,
    device: str = "cpu",
    note: Callable[[str], object] | None = None,
) -> list[dict[str, Any]]:
    """Predict the label of each text. `model` is a folder, or a model with its `tokenizer` (a tokenizer.json or its
    folder); a text is a string or a pair of strings. A head that tags words reads lists of them, and of a string what
    white space parts.

    Gives for each text what is `predicted`: a class with its `probability`, and with `every` the `probabilities` of
    all; a number, or a list of them; or a list with the tag of each word, None for one that was cut off. `note` is told
    of texts longer than the model's positions. Raises ConfigError.
    """
    from zoo.checkpoint import store
    from zoo.data.rowcode import RowEncoder
    from zoo.data.tokenizer import Tokenizer

    head = find_task_head(store.load_spec(model) if isinstance(model, str | Path) else model.spec)
    reader = load_reader(model, tokenizer, device, note)
    texts = [text.split() if isinstance(text, str) and not head.reads_rows else text for text in texts]
    check_texts(texts, by_word=not head.reads_rows)
    backend = reader.tokenizer if isinstance(reader.tokenizer, Tokenizer) else Tokenizer.load(reader.tokenizer)
    limit = longest_text(reader.model.spec)
    encoder = RowEncoder(backend, limit, opens=getattr(head, "pooling", None) == "cls")
    rows = encode(encoder, texts)
    if (cut := sum(row.cut for row in rows)) and note is not None:
        note(f"{cut} of {len(rows)} texts are cut at {limit} tokens, which is what the model reads")
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))  # alike lengths together: less padding
    found: dict[int, dict[str, Any]] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        logits = compute_logits(reader.model, [rows[index] for index in batch])
        found |= {index: read_result(head, rows[index], own, every) for index, own in zip(batch, logits, strict=True)}
    return [found[index] for index in range(len(rows))]


def find_task_head(spec: Any) -> Any:
    """Find the head for a task of a model. Raises ConfigError where it has none."""
    heads = [tower.head for tower in spec.towers().values() if tower.head.n_logits]
    if not heads or heads[-1].predicts_tokens or spec.kind == "encoder_decoder":
        kind = heads[-1].kind if heads else "none"
        found = f"found head '{kind}' of an {spec.kind}" if spec.kind[0] == "e" else f"found head '{kind}'"
        raise ConfigError(f"score: needs a head for a task, {found} (zoo train objective=classify, tag or regress)")
    return heads[-1]


def check_texts(texts: Sequence[Texts], *, by_word: bool) -> None:
    """Raises ConfigError for texts that the head does not read."""
    for number, text in enumerate(texts, 1):
        if isinstance(text, list) is not by_word:
            wanted = (
                "lists of words, as each word gets a tag" if by_word else "strings or pairs, as a text gets one label"
            )
            raise ConfigError(f"texts: number {number} is a {type(text).__name__} ({wanted})")
        if not text or (isinstance(text, str) and text.isspace()):
            raise ConfigError(f"texts: number {number} is empty (one that is not)")


def encode(encoder: Any, texts: Sequence[Any]) -> list[Row]:
    """Encode texts as in training. Raises ConfigError for one that has no token."""
    if texts and isinstance(texts[0], list):
        rows = encoder.encode_words(texts)
    else:
        rows = encoder.encode([(text,) if isinstance(text, str) else text for text in texts])
    for number, row in enumerate(rows, 1):
        if not row.ids:
            raise ConfigError(f"texts: number {number} has no token (another text)")
    return rows


def compute_logits(model: Any, rows: Sequence[Row]) -> list[Tensor]:
    """Compute the logits of some rows, float32 on the CPU: [C] each, or [T, C] of a head that reads tokens."""
    device, embedding = next(model.parameters()).device, model.spec.embedding
    ids, mask = pad_rows([row.ids for row in rows], model.spec.position.padding_id or 0, device)
    types = pad_rows([row.types for row in rows], 0, device)[0] if getattr(embedding, "n_types", None) else None
    with torch.inference_mode():
        logits = model(ids, mask, token_type_ids=types).logits.float().cpu()
    return list(logits)


def read_result(head: Any, row: Row, logits: Tensor, every: bool) -> dict[str, Any]:
    """Read what is predicted off the logits of a row."""
    if not hasattr(head, "labels"):
        return {"predicted": logits.item() if head.n_logits == 1 else logits.tolist()}
    if not head.reads_rows:
        tags = logits.argmax(-1).tolist()
        return {"predicted": [None if place is None else head.labels[tags[place]] for place in row.places]}
    chances = logits.softmax(-1).tolist()
    best = max(range(len(chances)), key=chances.__getitem__)
    whole = {"probabilities": dict(zip(head.labels, chances, strict=True))} if every else {}
    return {"predicted": head.labels[best], "probability": chances[best], **whole}
