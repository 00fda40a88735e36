"""Evaluate a model on texts, on its run's validation split or on other data; also with its weights quantised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo import runs
from zoo.checkpoint import store
from zoo.checkpoint.finding import find
from zoo.data import PreparedData
from zoo.data import prepare as prepare_data
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ConfigError, refuse
from zoo.generation.passes import serving
from zoo.run.fastest_dtype import settle_cpu, spell_dtype
from zoo.run.linear.ready import prepare
from zoo.text import loading
from zoo.text.score import Stream, TextScore, add_scores, check_model, encode, find_start, settle_windows
from zoo.training.eval_data import EvaluationPlan, plan_evaluation
from zoo.training.eval_parts import Material, cut_windows, make_parts, prepare_records
from zoo.training.objective import RecordObjective
from zoo.training.saving import Counters
from zoo.untrusted.json_file import check_shape

if TYPE_CHECKING:
    from zoo.run.layer import Model

Progress = Callable[[str, int, int], None]
"""Called with the name of the work, the amount done and the total: bytes of text, tokens or rows scored."""


class NamedText(NamedTuple):
    """A text and the name that messages call it by."""

    name: str
    text: str


def evaluate(
    model: str | Path | Model,
    texts: Sequence[str | NamedText] | None = None,
    *,
    overrides: Iterable[str] = (),
    tokenizer: str | Path | None = None,
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
    """Evaluate a model. Returns plain data: the `tokens` and `bytes` scored, and in `results` a row with `loss` (nats
    per target), `perplexity` and `bits_per_byte`.

    `model` is a folder, or a model with its `tokenizer` (a tokenizer.json or its folder). What is scored:

    - `texts`, each a document of its own, by a decoder; no end of text is scored.
    - with `overrides`, as `zoo train` takes them (`data=jsonl`, `data.path=…`, `objective=…`): all of that data, by the
      objective of the run or that of the model's topology.
    - else the validation split of the run that the folder belongs to, by the run's own objective.

    Next-token prediction is scored in windows of `context` tokens (default: the model's length) that begin `stride`
    tokens apart (default: half of `context`), each token once. In data, ends of text are scored too, and have no bytes.
    Other objectives are scored in rows of `context` tokens (default: the run's), corrupted the same way every time.
    Their loss is the mean over targets, and bits per byte are None, because targets are not all of the text. For a mix,
    `sources` of a row has each source's figures.

    `weights` (fp16, bf16, int8, int4; on a CPU) and `fp8` (`zoo.run.fp8`) evaluate the model a second time in that
    precision. `results` then has a second row, with its `loss_difference` and how its products are `made`. Products are
    rounded as in decoding one row; generation may round less for a whole prompt, for which it can unpack the weights.
    Raises ConfigError if there is nothing to score, or if data, `context`, `stride` or the precision do not suit.
    """
    tell, report = note or (lambda line: None), progress or (lambda what, done, total: None)
    subject = Subject(model, tokenizer, dtype=dtype, device=device, note=tell)
    subject.check_precision(weights, fp8)
    overrides = list(overrides)
    if texts is not None and overrides:
        raise ConfigError(f"file: texts were given beside {overrides[0]}, which names other data (one of the two)")
    if texts is not None:
        material = subject.read_texts(texts, context, stride)
    else:
        material = subject.read_data(overrides, context, stride, report)
    exact = subject.load()

    row, total = measure(exact, "exact", material, kernel, report)
    results = [row]
    del exact
    if weights is not None or fp8 is not None:
        with subject.lowered(weights, fp8) as (lowered, made):
            row, _ = measure(lowered, weights or f"fp8 {fp8}", material, kernel, report)
        results.append({**row, "loss_difference": row["loss"] - results[0]["loss"], "made": made})
    amount = {"tokens": total.tokens, "bytes": total.n_bytes}
    return {"model": str(subject.folder or ""), **material.describe(), **amount, "results": results}


def measure(
    model: Model, name: str, material: Material, kernel: str | None, progress: Progress
) -> tuple[dict[str, Any], TextScore]:
    """Score all parts. Returns a row of results, which with several parts also has the results of each, and the total
    score."""
    done, size = 0, sum(part.size for part in material.parts)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(f"scoring, {name} weights", done, size)

    with serving(model, kernel):
        scores = {part.name: part.score(model, advance) for part in material.parts}
    total = add_scores(list(scores.values()))
    row = {"weights": name, "dtype": spell_dtype(next(model.parameters()).dtype), **describe_score(total)}
    if len(scores) > 1:
        sizes = {name: {"tokens": each.tokens, "bytes": each.n_bytes} for name, each in scores.items()}
        row["sources"] = {name: {**describe_score(each), **sizes[name]} for name, each in scores.items()}
    return row, total


def describe_score(score: TextScore) -> dict[str, Any]:
    """Describe a score as plain data. A perplexity beyond the range of floats is None, because JSON has no infinity.
    Labelled data has metrics in place of a perplexity."""
    finite = not score.measures and math.isfinite(score.perplexity)
    perplexity = score.perplexity if finite else None
    measures = {"measures": dict(score.measures)} if score.measures else {}
    return {"loss": score.loss, "perplexity": perplexity, "bits_per_byte": score.bits_per_byte, **measures}


class Subject:
    """The model to evaluate, which is loaded from a folder, or given together with its tokenizer."""

    def __init__(
        self, model: Any, tokenizer: Any, *, dtype: str | None, device: str, note: Callable[[str], object]
    ) -> None:
        self.dtype, self.device, self.note = dtype, device, note
        self.given = not isinstance(model, str | Path)
        self.model: Any = model if self.given else None
        self.place = None if self.given else Path(model).expanduser()
        self.folder = None if self.place is None else find(self.place)
        self._tokenizer = tokenizer if tokenizer is not None else self.folder
        self.spec: Any = model.spec if self.folder is None else store.load_spec(self.folder)

    def check_precision(self, weights: str | None, fp8: str | None) -> None:
        """Raise ConfigError for an unsuitable precision, before anything is read."""
        if self.model is not None:
            if fp8 is not None or self.dtype is not None:
                name = "dtype" if fp8 is None else "fp8"
                raise ConfigError(f"{name}: the model is given, and stays as it is (a folder, or convert the model)")
            self.device = str(next(self.model.parameters()).device)
        loading.check_precision(self.device, fp8, weights)

    def load(self) -> Model:
        """Load the model with its own weights. On a CPU, also choose its dtype and the number of threads
        (`settle_cpu`)."""
        if self.model is None:
            assert self.folder is not None
            self.model = store.load(self.folder, self.dtype, self.device)
            settle_cpu(self.model, self.note, dtype=None if self.dtype is None else f"dtype: {self.dtype}")
        return self.model

    @contextmanager
    def lowered(self, weights: str | None, fp8: str | None) -> Iterator[tuple[Any, str]]:
        """Yield the quantised model, and a description of its products. A given model is restored after the block."""
        if fp8 is not None:
            self.model = None  # so that not both are in memory
            lines: list[str] = []
            loaded = loading.load(self.folder, device=self.device, dtype=self.dtype, fp8=fp8, note=lines.append)
            yield loaded.model, "; ".join(lines)
            return
        ready = prepare(self.model, weights, keep=self.given, rows=(1,))
        try:
            yield self.model, f"weights {weights}: {ready}"
        finally:
            if self.given:
                ready.undo()

    def read_texts(self, texts: Sequence[str | NamedText], context: int | None, stride: int | None) -> Material:
        """Make windows of texts, each a separate document. Raises ConfigError with all faults."""
        check_model(self.spec)
        windows = settle_windows(self.spec, context, stride, self.note)
        return cut_windows([("", self.encode(texts))], "texts", self.spec, windows)

    def encode(self, texts: Sequence[str | NamedText]) -> list[Stream]:
        """Encode the texts. Raises ConfigError with all faults."""
        if not texts:
            raise ConfigError("texts: there are none (one at least)")
        tokenizer = Tokenizer.load(self.tokenizer)
        start = find_start(tokenizer, Path(self.tokenizer))
        streams, faults = [], []
        for number, each in enumerate(texts, 1):
            name, text = each if isinstance(each, NamedText) else (f"texts: number {number}", each)
            try:
                streams.append(encode(text, tokenizer, name, start))
            except ConfigError as error:
                faults += error.faults
        refuse(faults)
        return streams

    @property
    def tokenizer(self) -> Any:
        """Find the tokenizer.json or its folder. Raises ConfigError if there is none."""
        if self._tokenizer is None:
            raise ConfigError("tokenizer: a model alone does not read text (pass its tokenizer.json)")
        return self._tokenizer

    def read_data(
        self, overrides: Sequence[str], context: int | None, stride: int | None, progress: Progress
    ) -> Material:
        """Read the data that overrides name, or the validation split of the run that the folder belongs to. Raises
        ConfigError if there is none, or the run's text has changed since."""
        plan, data = self.open_data(overrides, context, progress)
        start = None if plan.start is None else partial(self.load_start, plan.start)
        return make_parts(plan, data, self.spec, context, stride, self.note, start)

    def load_start(self, folder: str) -> Any:
        """Load the weights that the model's run started from. Raises ConfigError if they are another model's."""
        if store.load_spec(folder) != self.spec:
            raise ConfigError(
                f"weights: the run changed the model of {folder}, which cannot be compared with (its own data)"
            )
        return store.load(folder, "fp32", self.device)

    def open_data(
        self, overrides: Sequence[str], context: int | None, progress: Progress
    ) -> tuple[EvaluationPlan, PreparedData]:
        """Plan the evaluation, and prepare its data. Raises ConfigError as `read_data` does."""
        if self.folder is None and not overrides:
            raise ConfigError("texts: a model that is given has no validation split of its own (pass texts)")
        run = None if self.place is None or self.folder is None else runs.find_run(self.folder, self.place)
        plan = plan_evaluation(self.spec, run, self.tokenizer, overrides, str(self.place or "the model"))
        if isinstance(plan.objective, RecordObjective):
            data = prepare_records(plan, self.spec, context, self.note, progress)
        else:
            data = prepare_data(plan.data, progress, whole=plan.whole)
        if plan.run is not None and not plan.whole:
            assert self.folder is not None
            self.check_key(plan.run, data.key)
        return plan, data

    def check_key(self, run: Path, key: str) -> None:
        """Raise ConfigError if the run's data has changed."""
        assert self.folder is not None
        checkpoint = runs.find_checkpoint(self.folder)
        counters = check_shape(store.read_counters(checkpoint), Counters, str(checkpoint / runs.COUNTERS))
        if key != (was := counters["data"]["key"]):
            raise ConfigError(f"{run}: its data is not what it was, found {key} (was {was}; --file TEXT would do)")
