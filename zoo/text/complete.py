"""Text in, text out, streamed: tokenizer and engine, whole characters only, up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.generation.generate import stream as stream_tokens
from zoo.generation.sampling import Sampling
from zoo.generation.towers import find_writer
from zoo.lazy import torch
from zoo.run.builder import pick_device
from zoo.run.dtypes import settle_cpu
from zoo.text.detokenize import TextStream

if TYPE_CHECKING:
    from zoo.data.tokenizer import Tokenizer


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
    """Load a model and stream what it writes after `prompt`, as `complete` does.

    Options as of `load`. Raises ConfigError, at the call, for everything that will not do.
    """
    loaded = load(checkpoint, device=device, dtype=dtype, fp8=fp8, note=note)
    options = {"max_new_tokens": max_new_tokens, "sampling": sampling, "stop": stop, "kernel": kernel}
    return complete(loaded.model, loaded.tokenizer, prompt, ends=loaded.ends, note=note, **options)


@dataclass(frozen=True)
class Loaded:
    """A model that writes, its tokenizer, the token ids that end a text besides the tokenizer's own, and its folder."""

    model: Any
    tokenizer: Tokenizer
    ends: Sequence[int]
    folder: Path


def load(
    checkpoint: str | Path | None,
    *,
    device: str = "auto",
    dtype: Any = None,
    fp8: str | None = None,
    note: Callable[[str], object] | None = None,
) -> Loaded:
    """Load a model and its tokenizer for generating.

    `checkpoint` is a checkpoint or a run folder; None takes the last run started from here. `dtype` None is the file's,
    or float32 where a CPU computes that faster. `fp8` puts weights in float8 (`zoo.run.fp8.quantize`); the model is
    then bfloat16 unless `dtype` says otherwise. `note` is given a line each about what is allowed but doubtful, what is
    in float8, a dtype that is not the file's, and a number of threads that is not torch's own.
    """
    from zoo import runs
    from zoo.checkpoint import hf, store
    from zoo.data.tokenizer import Tokenizer
    from zoo.run.fp8 import WEIGHT_ONLY, quantize, require_fp8, summarize_products

    tell = note or (lambda line: None)
    if fp8:
        require_fp8(fp8, pick_device(device), f"fp8: {fp8}", WEIGHT_ONLY)
    folder = runs.find(runs.last_run() if checkpoint is None else checkpoint)
    tokenizer = Tokenizer.load(folder)
    model = store.load(folder, dtype or ("bf16" if fp8 else None), device)
    if fp8:
        tell(f"fp8 {fp8}: {summarize_products(quantize(model, fp8))}")
    settle_cpu(model, tell, dtype=None if dtype is None else f"dtype: {dtype}", keep=fp8 is not None)
    ends = [] if (folder / runs.ARCHITECTURE).is_file() else hf.read_end_ids(folder)
    return Loaded(model, tokenizer, ends, folder)


def complete(
    model: Any,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    ends: Sequence[int] = (),
    eos: bool = True,
    kernel: str | None = None,
    note: Callable[[str], object] | None = None,
) -> Iterator[str]:
    """Stream what the model writes after `prompt`, up to the end-of-text token (unless not `eos`), one of the tokens
    `ends`, or the first of the strings `stop`. None of these is part of the text.

    The prompt is encoded as the tokenizer's own file asks: a start token, special tokens where the text spells them. An
    empty prompt starts from the end-of-text token, which stands before every text in training.
    """
    ids = tokenizer.encode(prompt, special=True) or [tokenizer.eos_id]
    trained, whole = model.spec.max_seq_len, len(ids) + max_new_tokens
    last = {*ends, *([tokenizer.eos_id] if eos else [])}
    tokens = stream_tokens(model, torch.tensor([ids]), max_new_tokens, sampling, sorted(last), kernel=kernel)
    if note is not None and whole > trained:
        note(f"{whole} tokens may come, the model is made for {trained}: what lies beyond may make less sense")
    before = ids if find_writer(model.spec) is model.spec else []  # a decoder of its own begins a text of its own
    return _text(tokens, TextStream(tokenizer.backend, before, stop), last)


def _text(tokens: Any, text: TextStream, last: set[int]) -> Iterator[str]:
    with closing(tokens):  # a stop string ends the text first; the model must then be as it was at once
        for token in map(int, tokens):
            if token in last:
                break
            if piece := text.push(token):
                yield piece
            if text.stopped:
                return
    if rest := text.finish():
        yield rest
