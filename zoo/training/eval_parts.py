# B rows, T tokens
"""Score the parts of an evaluation: texts in sliding windows, or rows collated by a training objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.data.cut_rows import name_length
from zoo.data.held_out_rows import read_evaluation_batches
from zoo.data.tokens import TokenFile, move_batch
from zoo.errors import ConfigError, ZooError
from zoo.lazy import torch
from zoo.text.reader import longest_text
from zoo.text.score import MANY_TOGETHER, TOGETHER, Stream, TextScore, check_vocabulary, score, settle_windows
from zoo.training.objective import Context, Objective, RecordObjective

if TYPE_CHECKING:
    from zoo.data import PreparedData
    from zoo.data.tokens import Collate
    from zoo.model.tower import Topology
    from zoo.run.layer import Model
    from zoo.training.eval_data import EvaluationPlan

Tell = Callable[[str], object]
Advance = Callable[[int], object]
"""Called with the number of tokens or rows scored since the last call."""


@dataclass(frozen=True)
class Windowed:
    """Streams of tokens in sliding windows. Each token is scored once, given the earlier tokens in its window."""

    name: str
    streams: Sequence[Stream]
    context: int
    stride: int

    @property
    def size(self) -> int:
        """The number of tokens to score, which `advance` counts up to."""
        return sum(stream.n_scored for stream in self.streams)

    def score(self, model: Model, advance: Advance) -> TextScore:
        return score(model, self.streams, self.context, self.stride, advance)


@dataclass(frozen=True)
class Collated:
    """Rows of a source collated by an objective. Only the objective's targets are scored; bytes are not counted."""

    name: str
    tokens: TokenFile
    objective: Objective
    collate: Collate
    context: int
    documents: bool = False
    rows: int | None = None
    """Number of rows in a batch; None: a fast number is chosen."""

    @property
    def size(self) -> int:
        """The number of rows to score, which `advance` counts up to."""
        return self.tokens.count_rows(self.context)

    def score(self, model: Model, advance: Advance) -> TextScore:
        """Score all rows. Raises ZooError if a loss is not finite, or no row has a target."""
        device = next(model.parameters()).device
        tokens = self.objective.n_texts * self.context
        together = self.rows or max(TOGETHER.get(device.type, MANY_TOGETHER) // tokens, 1)
        rows = read_evaluation_batches(
            self.tokens, together, self.context, documents=self.documents, collate=self.collate
        )
        total, targets, metrics, left = 0.0, 0, self.objective.open_metrics(), self.size
        for batch in rows:
            count = self.objective.targets(batch)
            if count:
                with torch.no_grad():
                    total += float(self.objective.judge(model, move_batch(batch, device), count, metrics))
            if not math.isfinite(total):
                raise ZooError(f"eval: the loss is {total} (sound weights, or dtype=fp32)")
            targets += count
            advance(min(together, left))
            left -= together
        if not targets:
            raise ZooError(f"eval: {self.objective.kind} has no targets in these rows (more of them, or longer ones)")
        return TextScore(total, targets, None, {} if metrics is None else metrics.compute())


@dataclass(frozen=True)
class Material:
    """The parts to score, and their description: `data` in words, the kind of the `objective`, its `targets` in words,
    and the sizes of windows or rows. Rows do not overlap, so they have no stride."""

    parts: Sequence[Windowed | Collated]
    data: str
    objective: str
    targets: str
    context: int
    stride: int | None

    def describe(self) -> dict[str, Any]:
        about = {name: getattr(self, name) for name in ("objective", "targets", "context", "stride")}
        return {"data": self.data, **about}


def cut_windows(
    streams: Sequence[tuple[str, Sequence[Stream]]],
    data: str,
    spec: Topology,
    windows: tuple[int, int],
) -> Material:
    """Cut the streams of each source into windows (context, stride). Raises ConfigError for a token id beyond the
    model's vocabulary."""
    check_vocabulary(spec, [each for _, of in streams for each in of])
    parts = [Windowed(name, of, *windows) for name, of in streams]
    return Material(parts, data, "next_token", "tokens", *windows)


def make_parts(
    plan: EvaluationPlan,
    data: PreparedData,
    spec: Topology,
    context: int | None,
    stride: int | None,
    tell: Tell,
    start: Callable[[], Model] | None = None,
) -> Material:
    """Make windows of prepared data if the objective predicts every token, else rows. Raises ConfigError for a context
    or stride that does not suit model, data or objective."""
    if plan.objective.every_token:
        windows = settle_windows(spec, context, stride, tell)
        streams = [
            (name, [Stream(tokens.ids, tokens.n_bytes, tokens.eos_id, documents=plan.data.apart)])
            for name, _, tokens in data.held_out
        ]
        return cut_windows(streams, plan.describe(), spec, windows)
    if stride is not None:
        raise ConfigError(f"stride: is {stride}, and rows of {plan.objective.kind} do not overlap (leave it out)")
    return make_rows(plan, data, spec, context, tell, start)


def make_rows(
    plan: EvaluationPlan,
    data: PreparedData,
    spec: Topology,
    context: int | None,
    tell: Tell,
    start: Callable[[], Model] | None,
) -> Material:
    """Make rows of `context` tokens for an objective; by default of the run's length, else the model's. Raises
    ConfigError for rows that do not suit the model or the data. `start` loads the run's starting weights."""
    objective, documents, labelled = plan.objective, plan.data.apart, isinstance(plan.objective, RecordObjective)
    length = settle_length(plan, spec, context) if labelled else context or plan.seq_len or longest_text(spec)
    if not labelled:
        check_rows(objective, spec, length, documents)
        there = data.tokenizer.vocab_size
        objective.extend(data.tokenizer, length)
        check_ids(data, spec, added=data.tokenizer.vocab_size - there)
    how = Context(spec, data.tokenizer, length, plan.seed, documents, one_shape=not labelled)
    collate = objective.collator(how)
    objective.recall(None if plan.whole else plan.run, start, data, how)
    rows = plan.batch_size if objective.compares_rows else None
    parts = [Collated(each.name, each.tokens, objective, collate, length, documents, rows) for each in data.held_out]
    for part in () if labelled else parts:
        tell_of_rest(part, spec, tell)
    return Material(parts, plan.describe(), objective.kind, objective.scored, length, None)


def prepare_records(
    plan: EvaluationPlan, spec: Topology, context: int | None, tell: Tell, progress: Callable[[str, int, int], None]
) -> PreparedData:
    """Prepare labelled records to score: the run's validation records, or all records that overrides name. Raises
    ConfigError for a `context` that is not the run's, or more than the model reads."""
    objective = plan.objective
    assert isinstance(objective, RecordObjective)
    if context is not None and plan.seq_len not in (None, context) and not plan.whole:
        raise ConfigError(f"context: is {context}, the run's rows have {plan.seq_len} tokens (leave it out)")
    limit = settle_length(plan, spec, context)
    return objective.prepare(plan.data, limit, say=tell, progress=progress, whole=plan.whole)


def settle_length(plan: EvaluationPlan, spec: Topology, context: int | None) -> int:
    """Choose the maximum number of tokens in a row. Raises ConfigError for a `context` below 1, or above the model's
    length."""
    most = longest_text(spec)
    if context is not None and not 1 <= context <= most:
        raise ConfigError(f"context: is {context}, not a whole number from 1 to {most}, the model's length")
    return context or plan.seq_len or most


def check_rows(objective: Objective, spec: Topology, context: int, documents: bool) -> None:
    """Raise ConfigError for rows of one token, and for rows that are longer than the model reads."""
    if context < 2:
        raise ConfigError(f"context: is {context}, which is no row of {objective.kind} (2 at least)")
    for path, width in objective.widths(spec, context, documents).items():
        most = spec.towers()[path].max_seq_len
        if width > most:
            made = f", which makes rows of {width} tokens" if width != context else ""
            would = most - max(width - context, 0)
            raise ConfigError(f"context: is {context}{made}, and the model reads {most} (--context {would})")


def check_ids(data: PreparedData, spec: Topology, added: int) -> None:
    """Raise ConfigError for a token id beyond the model's vocabulary: of the text, or of the `added` special tokens."""
    largest = max(int(each.tokens.ids.max()) for each in data.held_out)
    largest = max(largest, data.tokenizer.vocab_size - 1 if added else 0)
    if largest >= spec.output_vocab_size:
        with_them = f" with {added} special tokens of the objective's" if added else ""
        found = f"gives token {largest}{with_them}, the model's vocabulary is 0 to {spec.output_vocab_size - 1}"
        raise ConfigError(f"tokenizer: {found} (the tokenizer that the model was trained with)")


def tell_of_rest(part: Collated, spec: Topology, tell: Tell) -> None:
    """Report the tokens of a source that are not scored. Raises ConfigError if the source fills no row."""
    tokens, of = part.tokens, f" of {part.name}" if part.name else ""
    cure = name_length("--context ", spec.max_seq_len)
    if not part.size:
        found = f"fills no row of {part.context} tokens, found {len(tokens)}"
        raise ConfigError(f"data: the text{of} {found} (a longer text, or --context {max(len(tokens) - 1, 2)})")
    for line in part.objective.describe_cuts(spec, tokens, of, part.context, cure):
        tell(line)
    if part.objective.reads == "text" and (left := len(tokens) - 1 - part.size * part.context):
        tell(f"{left:,} of {len(tokens) - 1:,} tokens{of} fill no row of {part.context}, and are not scored")
