"""Text in, text out, streamed: tokenizer and engine, whole characters only, up to a stop string."""

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
from zoo.run.linear.ready import check_weights, make_ready

if TYPE_CHECKING:
    import tokenizers

    from zoo.data.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # what a decoder gives for bytes that are no character, or not one yet


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
    weights: str | None = None,
    note: Callable[[str], object] | None = None,
) -> Iterator[str]:
    """Load a model and stream what it writes after `prompt`, as `complete` does.

    `checkpoint` is a checkpoint or a run folder; None takes the last run started from here. `dtype` None is the file's,
    or float32 where a CPU computes that faster. `fp8` puts weights in float8 (`zoo.run.fp8.quantize`); the model is
    then bfloat16 unless `dtype` says otherwise. On a CPU the model is made ready to serve (`zoo.run.linear.prepare`);
    `weights` names the bits that its products' weights are kept in. `note` is given a line each about what is allowed
    but doubtful, what is in float8 or in fewer bits, a dtype that is not the file's, and a number of threads that is
    not torch's own.

    Raises ConfigError, at the call, for everything that will not do.
    """
    from zoo import runs
    from zoo.checkpoint import hf, store
    from zoo.data.tokenizer import Tokenizer
    from zoo.run.fp8 import WEIGHT_ONLY, quantize, require_fp8, summarize_products

    tell = note or (lambda line: None)
    check_weights(weights, pick_device(device))
    if fp8 and weights:
        raise ConfigError(f"weights: {weights} was asked for beside fp8: {fp8} (one of the two)")
    if fp8:
        require_fp8(fp8, pick_device(device), f"fp8: {fp8}", WEIGHT_ONLY)
    folder = runs.find(runs.last_run() if checkpoint is None else checkpoint)
    tokenizer = Tokenizer.load(folder)
    model = store.load(folder, dtype or ("bf16" if fp8 else None), device)
    if fp8:
        tell(f"fp8 {fp8}: {summarize_products(quantize(model, fp8))}")
    settle_cpu(model, tell, dtype=None if dtype is None else f"dtype: {dtype}", keep=fp8 is not None)
    if not fp8:
        make_ready(model, weights, tell, rows=(1,))
    ends = [] if (folder / runs.ARCHITECTURE).is_file() else hf.read_end_ids(folder)
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
    """Stream what the model writes after `prompt`, up to the end-of-text token, one of the tokens `ends`, or the first
    of the strings `stop`. None of these is part of the text.

    The prompt is encoded as the tokenizer's own file asks: a start token, special tokens where the text spells them. An
    empty prompt starts from the end-of-text token, which stands before every text in training.
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
        yield from until(pieces(numbers, tokenizer.backend, prompt), stop)


def pieces(tokens: Iterable[int], backend: tokenizers.Tokenizer, before: Sequence[int] = ()) -> Iterator[str]:
    """Decode `tokens`, which follow the tokens `before`, to pieces of text that never end inside a character.

    For the tokens of "é" in a byte-level vocabulary, C3 and A9, the first gives nothing and the second "é".
    """
    from tokenizers.decoders import DecodeStream

    if backend.decode(list(before)).endswith(REPLACEMENT):
        before = ()  # DecodeStream takes that for half a character, and would repeat the whole prompt
    decoding = DecodeStream(ids=list(before), skip_special_tokens=True)
    held: list[int] = []  # tokens since the last piece
    for token in tokens:
        held.append(token)
        try:
            piece = decoding.step(backend, token)
        except Exception as error:
            if type(error) is not Exception:  # `tokenizers` raises the bare class, which cannot be named more closely
                raise
            # Byte fallback: the bytes held are no character, and spoil the one before them. Decoded alone.
            piece = backend.decode(held)
            decoding = DecodeStream(ids=held, skip_special_tokens=True)
        if piece:
            yield piece
            held = []
    if rest := backend.decode(held):
        yield rest


def until(texts: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield the texts up to the stop string that is complete first, even one that spans several texts. The end of a
    text that may become a stop string is held back."""
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
    """The length of the longest proper prefix of `word` that `text` ends in."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)
