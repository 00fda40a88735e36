"""Evaluate a model on texts, or on a run's own validation split; and what fewer bits for its weights cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from zoo import runs
from zoo.checkpoint import hf, store
from zoo.data import prepare as prepare_data
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ConfigError
from zoo.generation.passes import serving
from zoo.grammar.saved import read_spec
from zoo.run.dtypes import settle_cpu, spell_dtype
from zoo.run.linear.ready import prepare
from zoo.text import loading
from zoo.text.score import Stream, check_model, check_vocabulary, encode, find_start, score, settle_windows
from zoo.training.planning import CONFIG, plan_resumption

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is: bytes of text, or tokens scored."""


class Text(NamedTuple):
    """A text and the name that messages call it by."""

    name: str
    text: str


def evaluate(
    model: Any,
    texts: Sequence[str | Text] | None = None,
    *,
    tokenizer: Any = None,
    context: int | None = None,
    stride: int | None = None,
    weights: str | None = None,
    fp8: str | None = None,
    dtype: str | None = None,
    kernel: str | None = None,
    device: str = "cpu",
    note: Callable[[str], object] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a decoder: `loss` (nats a token), `perplexity` and `bits_per_byte` of so many `tokens` and `bytes`.

    `model` is a folder, or a model with its `tokenizer` (a tokenizer.json or its folder). Each text is a document of
    its own; without texts, the validation split of the run that the folder belongs to. Windows of `context` tokens (the
    model's length unless given) begin `stride` apart (half of that), and each token is scored once. The ends of text in
    a run's split are among them, and have no bytes; a text that is given has none at its end.

    `weights` (fp16, bf16, int8, int4; on a CPU) and `fp8` (`zoo.run.fp8`) evaluate the model a second time in that
    precision: `results` has a row for each, the second with its `loss_difference` and how its products are `made`. They
    round as they do when a token is decoded alone. Raises ConfigError.
    """
    tell, report = note or (lambda line: None), progress or (lambda what, done, total: None)
    subject = Subject(model, tokenizer, dtype=dtype, device=device, note=tell)
    subject.check_precision(weights, fp8)
    check_model(subject.spec)
    windows = settle_windows(subject.spec, context, stride, tell)
    streams = subject.encode(texts) if texts is not None else subject.read_validation(report)
    check_vocabulary(subject.spec, streams)
    exact = subject.load()

    scorer = Scorer(streams, windows, kernel, report)
    results = [scorer.measure(exact, "exact")]
    del exact
    if weights is not None or fp8 is not None:
        with subject.lowered(weights, fp8) as (lowered, made):
            row = scorer.measure(lowered, weights or f"fp8 {fp8}")
        results.append({**row, "loss_difference": row["loss"] - results[0]["loss"], "made": made})
    how = {"context": windows[0], "stride": windows[1]}
    amount = {"tokens": scorer.tokens, "bytes": sum(stream.n_bytes for stream in streams)}
    return {"model": str(subject.folder or ""), **how, **amount, "results": results}


@dataclass(frozen=True)
class Scorer:
    """What every precision is measured on, and who is told how far it is."""

    streams: Sequence[Stream]
    windows: tuple[int, int]
    kernel: str | None
    progress: Progress

    @property
    def tokens(self) -> int:
        return sum(stream.n_scored for stream in self.streams)

    def measure(self, model: Any, name: str) -> dict[str, Any]:
        """Score all streams: a row of results. A perplexity beyond the range of floats is None, as JSON has no
        infinity."""
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.progress(f"scoring, {name} weights", done, self.tokens)

        with serving(model, self.kernel):
            found = score(model, self.streams, *self.windows, advance)
        return {
            "weights": name,
            "dtype": spell_dtype(next(model.parameters()).dtype),
            "loss": found.loss,
            "perplexity": found.perplexity if math.isfinite(found.perplexity) else None,
            "bits_per_byte": found.bits_per_byte,
        }


def read_spec_of(folder: Path) -> Any:
    """Read the Spec of a folder's model, of ours or Hugging Face's, without its weights."""
    if (folder / runs.ARCHITECTURE).is_file():
        return read_spec(folder)
    return hf.compose_spec(hf.open_folder(folder)[0].body)


class Subject:
    """What is evaluated: the model of a folder, or a model that was given with its tokenizer. `spec` is the model's."""

    def __init__(
        self, model: Any, tokenizer: Any, *, dtype: str | None, device: str, note: Callable[[str], object]
    ) -> None:
        self.dtype, self.device, self.note = dtype, device, note
        self.given = not isinstance(model, str | Path)
        self.model: Any = model if self.given else None
        self.place = None if self.given else Path(model).expanduser()
        self.folder = None if self.place is None else runs.find(self.place)
        self._tokenizer = tokenizer if tokenizer is not None else self.folder
        self.spec: Any = model.spec if self.folder is None else read_spec_of(self.folder)

    def check_precision(self, weights: str | None, fp8: str | None) -> None:
        """Raises ConfigError for a precision that will not do, before anything is read."""
        if self.model is not None:
            if fp8 is not None or self.dtype is not None:
                name = "dtype" if fp8 is None else "fp8"
                raise ConfigError(f"{name}: the model is given, and stays as it is (a folder, or convert the model)")
            self.device = str(next(self.model.parameters()).device)
        loading.check_precision(self.device, fp8, weights)

    def load(self) -> Any:
        """The model with its own weights. On a CPU it computes in the dtype and with the threads that are fastest."""
        if self.model is None:
            assert self.folder is not None
            self.model = store.load(self.folder, self.dtype, self.device)
            settle_cpu(self.model, self.note, dtype=None if self.dtype is None else f"dtype: {self.dtype}")
        return self.model

    @contextmanager
    def lowered(self, weights: str | None, fp8: str | None) -> Iterator[tuple[Any, str]]:
        """The model in fewer bits, and how its products are made. A model that was given is itself again afterwards."""
        if fp8 is not None:
            self.model = None  # both need not be in memory
            lines: list[str] = []
            loaded = loading.load(self.folder, device=self.device, dtype=self.dtype, fp8=fp8, note=lines.append)
            yield loaded.model, "; ".join(lines)
            return
        ready = prepare(self.model, weights, keep=self.given, rows=(1,), uniform=True)
        try:
            yield self.model, f"weights {weights}: {ready}"
        finally:
            if self.given:
                ready.undo()

    def encode(self, texts: Sequence[str | Text]) -> list[Stream]:
        """The texts as tokens. Raises ConfigError for all faults together."""
        if not texts:
            raise ConfigError("texts: there are none (one at least)")
        if self._tokenizer is None:
            raise ConfigError("tokenizer: a model alone does not read text (pass its tokenizer.json)")
        tokenizer = Tokenizer.load(self._tokenizer)
        start = find_start(tokenizer, Path(self._tokenizer))
        streams, faults = [], []
        for number, each in enumerate(texts, 1):
            name, text = each if isinstance(each, Text) else (f"texts: number {number}", each)
            try:
                streams.append(encode(text, tokenizer, name, start))
            except ConfigError as error:
                faults += error.faults
        if faults:
            raise ConfigError(*faults)
        return streams

    def read_validation(self, progress: Progress) -> list[Stream]:
        """The validation split of the run that the folder is of, or lies in; of a mix, that of each source. Raises
        ConfigError where there is none, and where the text has changed since."""
        if self.place is None or self.folder is None:
            raise ConfigError("texts: a model that is given has no validation split of its own (pass texts)")
        run = self.place if (self.place / CONFIG).is_file() else self.folder.parent.parent
        if self.folder.parent.name != runs.CHECKPOINTS or not (run / CONFIG).is_file():
            raise ConfigError(f"file: {self.place} is no run, so it has no validation split (--file TEXT)")
        planned = plan_resumption(run, ())
        data = prepare_data(planned.data, progress)
        if data.key != (was := store.read_counters(self.folder)["data"]["key"]):
            raise ConfigError(f"{run}: its data is not what it was, found {data.key} (was {was}; --file TEXT would do)")
        held = [source.tokens for source in data.held_out]
        return [Stream(each.ids, each.n_bytes, each.eos_id, documents=planned.data.documents) for each in held]
