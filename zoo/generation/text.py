"""Text in, text out as it comes: tokenizer and engine, whole characters only, up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError
from zoo.generation import engine
from zoo.generation.sample import Sampling
from zoo.lazy import torch
from zoo.run.builder import pick_device
from zoo.run.dtypes import settle_cpu

if TYPE_CHECKING:
    from zoo.data.tokenizer import Tokenizer

HALF = "\ufffd"  # what a decoder gives for bytes that are no character, or not one yet


def stream(
    checkpoint: str | Path | None,
    prompt: str,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    device: str = "auto",
    dtype: Any = None,
    kernel: str | None = None,
    fp8: str | None = None,
    note: Callable[[str], object] | None = None,
) -> Iterator[str]:
    """What `complete` gives, from a checkpoint or run folder, or the last run started from here.

    `dtype` is the file's unless given, or float32 where a CPU computes that faster. `fp8` puts weights in float8
    (`zoo.run.fp8.quantize`); the model is then bfloat16 unless `dtype` says otherwise. `note` gets a line for each of
    these: what is allowed but doubtful, what is in float8, a dtype that is not the file's, a number of threads that is
    not torch's own.

    Raises ConfigError, at the call, for everything that will not do.
    """
    from zoo import runs
    from zoo.checkpoint import hf, store
    from zoo.data import tokenizer as tokenizers
    from zoo.run.fp8 import WEIGHT_ONLY, quantize, require, summary

    tell = note or (lambda line: None)
    if fp8:
        require(fp8, pick_device(device), f"fp8: {fp8}", WEIGHT_ONLY)
    folder = runs.find(runs.last_run() if checkpoint is None else checkpoint)
    tokenizer = tokenizers.Tokenizer.load(folder)
    model = store.load(folder, dtype or ("bf16" if fp8 else None), device)
    if fp8:
        tell(f"fp8 {fp8}: {summary(quantize(model, fp8))}")
    settle_cpu(model, tell, dtype=None if dtype is None else f"dtype: {dtype}", keep=fp8 is not None)
    ends = [] if (folder / runs.ARCHITECTURE).is_file() else hf.end_ids(folder)
    options = {"ends": ends, "max_new_tokens": max_new_tokens, "sampling": sampling, "stop": stop, "kernel": kernel}
    return complete(model, tokenizer, prompt, note=note, **options)


def complete(
    model: Any,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    ends: Sequence[int] = (),
    kernel: str | None = None,
    note: Callable[[str], object] | None = None,
) -> Iterator[str]:
    """What the model writes after `prompt`, in pieces: up to the end-of-text token, one of `ends`, or the first stop
    string, none of them given.

    The prompt is encoded as the tokenizer's own file asks: a start token, special tokens where the text spells them. An
    empty one starts from the end-of-text token, which stands before every text in training.
    """
    if "" in stop:
        raise ConfigError("stop: an empty string would end every text at once (leave it out)")
    ids = tokenizer.encode(prompt, special=True) or [tokenizer.eos_id]
    trained, whole = model.spec.max_seq_len, len(ids) + max_new_tokens
    last = {tokenizer.eos_id, *ends}
    tokens = engine.stream(model, torch.tensor([ids]), max_new_tokens, sampling, sorted(last), kernel=kernel)
    if note is not None and whole > trained:
        note(f"{whole} tokens may come, the model is made for {trained}: what lies beyond may make less sense")
    before = ids if engine.writer(model.spec) is model.spec else []  # a decoder of its own begins a text of its own
    return _text(tokens, tokenizer, before, last, stop)


def _text(tokens: Any, tokenizer: Tokenizer, prompt: list[int], last: set[int], stop: Sequence[str]) -> Iterator[str]:
    with closing(tokens):  # a stop string ends the text first; the model must then be as it was at once
        numbers = takewhile(lambda number: number not in last, map(int, tokens))
        yield from until(pieces(numbers, tokenizer.decode, prompt), stop)


def pieces(tokens: Iterable[int], decode: Callable[[list[int]], str], before: Sequence[int] = ()) -> Iterator[str]:
    """The text of `tokens`, which follow the tokens `before`, in pieces that never end inside a character.

    Decoders look at neighbours (a space that opens a text is dropped, bytes join to characters), so each piece is what
    tokens add to the text of those of the piece before.
    """
    context, fresh = list(before), []
    known = decode(context)
    for token in tokens:
        fresh.append(token)
        text = decode(context + fresh)
        if text != known and not text.endswith(HALF):
            yield _beyond(known, text, fresh, decode)
            context, fresh = fresh, []
            known = decode(context)
    if fresh and (rest := _beyond(known, decode(context + fresh), fresh, decode)):
        yield rest


def _beyond(known: str, text: str, fresh: list[int], decode: Callable[[list[int]], str]) -> str:
    """What `text` adds to `known`. Bytes that spoil the character before them (byte fallback) are taken alone."""
    return text[len(known) :] if text.startswith(known) else decode(fresh)


def until(texts: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The texts up to the stop string that is complete first, astride or not; what may become one is held back."""
    held = ""
    for text in texts:
        held += text
        ends = [(place + len(word), place) for word in stop if (place := held.find(word)) >= 0]
        if ends:
            held = held[: min(ends)[1]]
            break
        sure = len(held) - max((_begun(held, word) for word in stop), default=0)
        if sure:
            yield held[:sure]
        held = held[sure:]
    if held:
        yield held


def _begun(text: str, word: str) -> int:
    """Characters of `word`, short of all, that `text` ends in: the most there can be."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)
