# B rows, T tokens of a window, N tokens scored
"""Score texts: the negative log-likelihood of their tokens under a model that reads them in sliding windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.data.tokens import Batch, to_next_tokens
from zoo.errors import ConfigError, ZooError
from zoo.generation.prompt_towers import find_limit
from zoo.lazy import torch
from zoo.model.head import describe_lack
from zoo.run.likelihood import IGNORED, sum_negative_log_likelihood
from zoo.text.reader import longest_text
from zoo.untrusted.printable import check_text

if TYPE_CHECKING:
    import numpy as np

    from zoo.data.shards import Joined
    from zoo.data.tokenizer import Tokenizer
    from zoo.run.layer import Model

CHUNK = 64 << 20
"""Maximum bytes of logits held at once."""

TOGETHER = {"cpu": 2048}
"""Number of tokens in a batch of windows, by type of device: enough for fast matrix products."""

MANY_TOGETHER = 32768  # on any other device


@dataclass(frozen=True)
class Stream:
    """Token ids to score, except the first `given`, which are context only; and the bytes of their text in UTF-8.

    With `documents`, an `eos_id` opens a document, whose tokens do not see the document before, as in training.
    """

    ids: np.ndarray | Joined
    n_bytes: int
    eos_id: int
    given: int = 1
    documents: bool = False

    @property
    def n_scored(self) -> int:
        return len(self.ids) - self.given


class TextWindow(NamedTuple):
    """A window of a stream: the model reads `length` tokens from `start`; the last `scored` predictions count."""

    start: int
    length: int
    scored: int


@dataclass(frozen=True)
class TextScore:
    """The total negative log-likelihood in nats, the number of tokens scored, and the bytes of their text (None if only
    a part of a text's tokens was scored). For labelled data `nll` is the objective's loss, and `measures` has its
    metrics."""

    nll: float
    tokens: int
    n_bytes: int | None
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """The mean negative log-likelihood, in nats a token."""
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinite beyond the range of floats."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        return None if self.n_bytes is None else self.nll / math.log(2) / self.n_bytes


def add_scores(scores: Sequence[TextScore]) -> TextScore:
    """Sum the scores of several streams."""
    sizes = [each.n_bytes for each in scores if each.n_bytes is not None]
    n_bytes = sum(sizes) if len(sizes) == len(scores) else None
    measures = scores[0].measures if len(scores) == 1 else {}
    return TextScore(sum(each.nll for each in scores), sum(each.tokens for each in scores), n_bytes, measures)


# ---------------------------------------------------------------- windows


def list_windows(tokens: int, context: int, stride: int, given: int = 1) -> Iterator[TextWindow]:
    """List the windows of a stream of `tokens` tokens. Each reads `context` tokens, starts `stride` tokens after the
    previous one, and scores the tokens not scored yet (Radford et al., 2019).

    Example: for 10 tokens, context 4 and stride 2 the windows start at 0, 2, 4 and 6. The first scores tokens 1 to 4,
    the others tokens 5 and 6, 7 and 8, and 9, which the last predicts from 6 to 8.
    """
    start, done = 0, given - 1
    while done < tokens - 1:
        end = min(start + context, tokens - 1)
        if end > done:
            yield TextWindow(start, end - start, end - done)
        start, done = start + stride, max(end, done)


def settle_windows(
    spec: Any, context: int | None, stride: int | None, note: Callable[[str], object]
) -> tuple[int, int]:
    """Choose the context (default: the model's length) and the stride (default: half the context, so that each token
    has at least half a window before it). Raises ConfigError for invalid values."""
    limit: int | None = find_limit(spec)
    if context is None:
        context = longest_text(spec)
    if context < 1 or (limit is not None and context > limit):
        most = "" if limit is None else f" to {limit}, where the model's positions end"
        raise ConfigError(f"context: is {context}, not a whole number from 1{most}")
    if context > spec.max_seq_len:
        note(f"windows have {context} tokens, the model is made for {spec.max_seq_len}: it may predict worse there")
    stride = (context + 1) // 2 if stride is None else stride
    if not 1 <= stride <= context:
        raise ConfigError(f"stride: is {stride}, not a whole number from 1 to context={context}")
    return context, stride


# ---------------------------------------------------------------- from a text to a stream


def encode(text: str, tokenizer: Tokenizer, where: str, start: Sequence[int]) -> Stream:
    """Encode one text as a document, after the tokens `start`. Raises ConfigError for a text without tokens."""
    import numpy as np

    ids = tokenizer.encode(check_text(text, where), bare=True)
    if not ids:
        found = "is empty" if not text else "has no token that the tokenizer knows"
        raise ConfigError(f"{where}: {found}, so there is nothing to score (a text)")
    return Stream(np.array([*start, *ids]), len(text.encode()), tokenizer.eos_id, given=len(start))


def find_start(tokenizer: Tokenizer, place: Path) -> list[int]:
    """Find the tokens that open a text: those that the tokenizer's file puts before a text, else the start token of its
    tokenizer_config.json, else the end of text."""
    from zoo.data.tokenizer import find_tokenizer_file, read_special_token

    opening, _ = tokenizer.around
    if opening:
        return opening
    named = read_special_token(find_tokenizer_file(place, "tokenizer"), "bos_token", "tokenizer")
    start = None if named is None else tokenizer.backend.token_to_id(named)
    return [tokenizer.eos_id if start is None else start]


# ---------------------------------------------------------------- scoring


def check_model(spec: Any) -> None:
    """Raise ConfigError for a model that defines no likelihood of a text; the message says what to use instead."""
    if spec.kind == "encoder":
        raise ConfigError("eval: an encoder predicts no next token (data=text data.path=FILE scores masked ones)")
    if spec.kind == "encoder_decoder" or spec.reads_memory:
        what, would = spec.kind.replace("_", "-"), "data=text data.path=FILE scores what is missing in it"
        raise ConfigError(f"eval: the model is an {what} and writes only what follows from a source ({would})")
    if not spec.head.predicts_tokens:
        raise ConfigError(f"eval: {describe_lack(spec.head)}, so it predicts no tokens (head: lm)")


def check_vocabulary(spec: Any, streams: Sequence[Stream]) -> None:
    """Raise ConfigError for a token id beyond the model's vocabulary."""
    largest = max(int(stream.ids.max()) for stream in streams)
    if largest >= spec.output_vocab_size:
        found = f"gives token {largest}, the model's vocabulary is 0 to {spec.output_vocab_size - 1}"
        raise ConfigError(f"tokenizer: {found} (the tokenizer that the model was trained with)")


def score(
    model: Model, streams: Sequence[Stream], context: int, stride: int, advance: Callable[[int], object] | None = None
) -> TextScore:
    """Score each stream in windows of `context` tokens. Each token is scored once, except the first `given`.

    A window does not see the tokens before it. `advance` is called with the number of tokens scored since the last
    call. Raises ZooError for a likelihood that is NaN.
    """
    device = next(model.parameters()).device
    rows = max(TOGETHER.get(device.type, MANY_TOGETHER) // context, 1)
    total = 0.0
    with torch.inference_mode():
        for stream in streams:
            for group in _group(list_windows(len(stream.ids), context, stride, stream.given), rows):
                batch = _make_batch(stream, group)
                documents = None if batch.documents is None else batch.documents.to(device)
                hidden = model(batch.input_ids.to(device), documents=documents, logits_to_keep=0).hidden
                total += float(sum_negative_log_likelihood(model, hidden, batch.targets.to(device), CHUNK))
                if not math.isfinite(total):
                    raise ZooError(f"eval: the loss is {total} (sound weights, or dtype=fp32)")
                if advance is not None:
                    advance(sum(window.scored for window in group))
    return TextScore(total, sum(stream.n_scored for stream in streams), sum(stream.n_bytes for stream in streams))


def _group(windows: Iterator[TextWindow], rows: int) -> Iterator[list[TextWindow]]:
    for _, alike in groupby(windows, lambda window: window.length):
        held = list(alike)
        yield from (held[first : first + rows] for first in range(0, len(held), rows))


def _make_batch(stream: Stream, group: Sequence[TextWindow]) -> Batch:
    """Make a batch [B, T] of windows of equal length, with targets only at the tokens to score."""
    import numpy as np

    length = group[0].length
    rows = np.stack([stream.ids[window.start : window.start + length + 1] for window in group]).astype(np.int64)
    batch = to_next_tokens(rows, eos_id=stream.eos_id, documents=stream.documents)
    targets = batch.targets.clone()  # for one row they are a view of the stream
    for row, window in zip(targets, group, strict=True):
        row[: length - window.scored] = IGNORED
    return batch._replace(targets=targets)
