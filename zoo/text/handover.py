"""Choose the texts on which an export is compared with its model: padded and truncated texts, special tokens, the chat
template, and transformers' pipeline. They are encoded as the model's own folder encodes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.checkpoint.model_card import find_task
from zoo.checkpoint.verify_folder import Agreement, Reading, verify_folder
from zoo.data.chat import template as chat
from zoo.data.tokenizer import Tokenizer
from zoo.errors import CheckpointError, ConfigError, ZooError, short
from zoo.families.described import CONFIG, read_config, read_json

TEXTS = ("Hello!", "A longer text, of naïve words, 42 numbers and 東京.", "x")
LONG = "A text that is longer than what the model reads, and so loses its end. "
ROOM, SHORT = 64, 16
"""Maximum tokens of short texts (ROOM), and of the long text that must be truncated (SHORT)."""
MOST = 1024
"""Largest model_max_length, in tokens, that the pipeline's text is made to exceed."""

ADDS_TOKENS = ("XLNetLMHeadModel", "XLMWithLMHeadModel", "FlaubertWithLMHeadModel")
"""Classes whose text-generation pipeline gives the model more than the text: a passage before it, or tokens to fill."""


def verify_draft(
    model: Any, own: Path, draft: Path, out: Path, compare: Callable[..., Agreement] = verify_folder
) -> Agreement:
    """Compare a model with the draft of its export before it appears as `out`. Texts are read as the folder `own` reads
    them. Raises CheckpointError, which names `out`, if they differ."""
    try:
        return compare(model, draft, *choose_readings(own, draft, model.spec.max_seq_len))
    except CheckpointError as error:
        raise CheckpointError(*(fault.replace(str(draft), str(out)) for fault in error.faults)) from error


def choose_readings(folder: Path, out: Path, limit: int) -> tuple[list[Reading], str]:
    """Choose the texts that transformers is asked to read with the export `out` of a model whose texts have at most
    `limit` tokens. Their expected ids come from the model's own `folder`. Also returns the reason if there are no
    texts, else ""."""
    if not (folder / "tokenizer.json").is_file():
        return [], "it has no tokenizer.json"
    try:
        tokenizer = Tokenizer.load(folder)
    except ZooError as error:
        return [], f"its tokenizer cannot be read: {short(error)}"
    config = folder / "tokenizer_config.json"
    stated = read_json(config) if config.is_file() else {}
    side = stated.get("truncation_side", "right")
    special = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values() if token.special]
    texts = [*TEXTS, " and ".join(["special tokens", *special[:3]])]
    readings = [make_texts(f"{len(texts)} texts with special tokens", tokenizer, texts, min(limit, ROOM), side)]
    few = min(limit, SHORT)
    readings += [make_texts(f"a text truncated to {few} tokens", tokenizer, [LONG * 2], few, side)]
    readings += read_template(folder, tokenizer, limit)
    architecture = read_config(out / CONFIG)["architectures"][0]
    task = "feature-extraction" if architecture in ADDS_TOKENS else find_task(architecture)
    if task not in (None, "text2text-generation"):  # for which transformers 5 has no pipeline
        readings += ask_pipeline(task, tokenizer, stated, limit, side)
    return readings, ""


def make_texts(what: str, tokenizer: Tokenizer, texts: list[str], limit: int, side: str) -> Reading:
    """Make a Reading of texts in one batch."""
    return Reading(what, {"texts": texts, "limit": limit}, [encode(tokenizer, text, limit, side) for text in texts])


def read_template(folder: Path, tokenizer: Tokenizer, limit: int) -> Iterator[Reading]:
    """Yield a Reading of a message by the folder's chat template, if it has one that accepts the message."""
    messages = [{"role": "user", "content": TEXTS[1]}]
    try:
        ids = chat.load(folder).encode(tokenizer, messages)
    except ConfigError:  # there is none, or it wants other messages
        return
    if len(ids) <= limit:
        yield Reading("a message by the chat template", {"messages": messages}, [ids])


def ask_pipeline(
    task: str, tokenizer: Tokenizer, stated: Mapping[str, Any], limit: int, side: str
) -> Iterator[Reading]:
    """Yield a Reading by the pipeline of a task; none for fill-mask without a mask token. The text exceeds
    model_max_length if this is stated, and is at most MOST and `limit`."""
    stated_most = stated.get("model_max_length")
    most = int(min(stated_most, limit)) if isinstance(stated_most, int | float) else limit
    cut = isinstance(stated_most, int) and stated_most == most <= MOST
    text = LONG * (most // 8) if cut else TEXTS[1]
    if task == "fill-mask":
        mask = stated.get("mask_token")
        mask = mask.get("content") if isinstance(mask, Mapping) else mask
        if mask is None:
            return
        text = f"{mask} {text}"
    ids = encode(tokenizer, text, most, side)
    what = f"the pipeline {task}{f' truncated to {most} tokens' if cut else ''}"
    yield Reading(what, {"task": task, "text": text}, [ids])


def encode(tokenizer: Tokenizer, text: str, limit: int, side: str) -> list[int]:
    """Encode a text as for generation, to at most `limit` tokens."""
    backend = tokenizer.backend
    backend.encode_special_tokens = tokenizer.split
    backend.enable_truncation(limit, direction=side)
    try:
        return backend.encode(text).ids
    finally:
        backend.no_truncation()
