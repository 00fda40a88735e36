# B rows, T tokens, C classes or numbers
"""Objectives that name the fields of their records. Labels are predicted by a task head (`zoo.model.task_head`) that
the objective puts on the model: a class for each record, a tag for each word, or numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeInt, PositiveInt

from zoo.lazy import Tensor
from zoo.model.activation import Tanh
from zoo.model.head import Head
from zoo.model.loss import IGNORED, SquaredLoss, TokenLoss
from zoo.model.task_head import ClassNames, Pooling, RegressionHead, SequenceHead, TokenHead
from zoo.training.objective.base import Context, Objective, list_inputs

if TYPE_CHECKING:
    from zoo.data import Batch, DataSettings, PreparedData
    from zoo.data.labelled_records import LabelledTask, PreparedLabels
    from zoo.data.tokens import Collate
    from zoo.model.tower import Topology, Tower
    from zoo.run.layer import Model
    from zoo.training.metrics import Metrics


def find_reading_tower(spec: Any) -> Tower:
    """Find the tower that gets the task head: the model itself, or the decoder of an encoder-decoder."""
    return spec.decoder if spec.kind == "encoder_decoder" else spec


class RecordObjective(Objective):
    """Base of the objectives that name the fields of the records from which they learn."""

    reads: ClassVar[str] = "labelled records"
    named: ClassVar[str] = "objective.text and objective.label"
    """The settings that name the fields, for messages."""
    pools_first: ClassVar[bool] = False
    """Whether a row is read by its first token, which then should be a special token."""
    known: ClassVar[Any] = None
    """The classes, or the count of numbers in a label; None if they follow from the data."""

    def make_task(self) -> LabelledTask:
        """Make the reader of examples from records."""
        raise NotImplementedError

    def prepare(self, data: DataSettings, limit: int, **how: Any) -> PreparedLabels:
        """Prepare the records as rows of at most `limit` tokens (`zoo.data.labelled_records.prepare_labelled`)."""
        from zoo.data.labelled_records import prepare_labelled

        return prepare_labelled(data, self.make_task(), self.known, limit=limit, opens=self.pools_first, **how)

    def learn(self, data: PreparedLabels) -> dict[str, Any]:
        """Return the fields that follow from the data, with their values."""
        return {}

    def count_tokens(self, batch: Batch, seq_len: int) -> int:
        """Count the real tokens of a batch."""
        assert batch.attention_mask is not None
        return int(batch.attention_mask.sum())

    def open_metrics(self) -> Metrics:
        """Make the accumulator of an evaluation's metrics."""
        raise NotImplementedError


class TaskObjective(Objective):
    """Base of the objectives that put a task head on the model."""

    head: ClassVar[type[Head]]
    """The kind of head that this objective trains."""
    shared: ClassVar[tuple[str, ...]]
    """The fields that set the head's fields of the same names. Null keeps the value of the model's own head if that is
    of this kind; else null stands for the default, or for the value that follows from the data."""
    guessed: ClassVar[dict[str, Any]] = {}
    """Placeholder values of the head's fields until the data is read."""

    def settle(self, spec: Topology, data: Any = None) -> Objective:
        own, causal = (tower := find_reading_tower(spec)).head, tower.causal
        known: dict[str, Any] = {"pooling": "last" if causal else "cls"}
        if isinstance(own, self.head):
            known = {name: getattr(own, name) for name in self.shared}
        return replace(self, **{name: known.get(name) for name in self.shared if getattr(self, name) is None})

    def refuses(self, spec: Any) -> str | None:
        if spec.kind == "decoder" and spec.reads_memory:
            return f"{self.kind} gives no encoder's output to read, and the model's layers read one (no block.cross)"
        if find_reading_tower(spec).causal and self.pools_first:
            return (
                f"{self.kind} pools the first token, which in a decoder sees no other (objective.pooling=last, or mean)"
            )
        return None

    @property
    def pools_first(self) -> bool:  # type: ignore[override]
        return getattr(self, "pooling", None) == "cls"

    def adapt(self, spec: Topology) -> Topology:
        """Put the task head on the model, in place of its head and pooler. If the model's head is of this kind, only
        the `shared` fields change. In an encoder-decoder the decoder has the head, and reads the text again (BART;
        Lewis et al., 2019, §3)."""
        tower = find_reading_tower(spec)
        given = {name: each for name in self.shared if (each := getattr(self, name)) is not None}
        fields = {**{name: each for name, each in self.guessed.items() if name in self.shared}, **given}
        lone = spec is tower and tower.causal
        if not lone:
            fields.pop("skip_id", None)
        if isinstance(tower.head, self.head):
            made = replace(tower, head=replace(tower.head, **fields))
        else:
            dense = self.pools_first or (spec is not tower and self.head.reads_rows)  # as in BERT and BART
            tanh = {"activation": Tanh()} if dense else {}
            bare = {"bias": False} if lone and self.head.reads_rows else {}  # as in Llama
            made = replace(tower, head=self.head(**{**bare, **fields, **tanh}), pooler=None)
        return made if spec is tower else replace(spec, decoder=made)

    def learn(self, data: Any) -> dict[str, Any]:
        """Return the fields that follow from the data, with their values."""
        raise NotImplementedError


class RowTask(TaskObjective):
    """Base of the objectives whose head reads a row as a whole. The last token of a decoder's row is the last that is
    not the tokenizer's padding (`skip_id`), as in transformers."""

    pooling: Pooling | None = None
    skip_id: NonNegativeInt | None = None

    def find_skipped(self, data: PreparedData) -> int | None:
        """Return `skip_id` if it is set; else, for rows read at their last token, the id of the tokenizer's padding, or
        None."""
        if self.skip_id is not None or self.pooling != "last":
            return self.skip_id
        return data.tokenizer.find_padding(data.special)


class Labelled(TaskObjective, RecordObjective):  # type: ignore[reportIncompatibleVariableOverride]
    """Base of the objectives that predict labels by a head that they put on the model."""

    scored: ClassVar[str] = "labels"
    by_token: ClassVar[bool] = False
    """Whether each token has a label; if not, each row has one."""
    guessed: ClassVar[dict[str, Any]] = {"labels": ("0", "1")}

    @property
    def known(self) -> Any:  # type: ignore[override]
        return getattr(self, self.shared[0])

    def learn(self, data: PreparedLabels) -> dict[str, Any]:
        return {"labels": data.labels}

    def collator(self, context: Context) -> Collate:
        from zoo.data.collate import pad_labelled

        first = next(iter(context.spec.towers().values()))
        typed = first is context.spec and first.takes_types  # an encoder-decoder gets no types
        how = {"typed": typed, "by_token": self.by_token}
        return partial(
            pad_labelled,
            pad_id=first.position.skip_id or 0,
            seq_len=context.seq_len,
            one_shape=context.one_shape,
            **how,
        )  # type: ignore[return-value]

    def judge(self, model: Model, batch: Batch, count: int, metrics: Metrics | None) -> Tensor:
        assert metrics is not None
        logits = model(**list_inputs(batch)).logits
        metrics.add(logits, batch.targets)
        logits, targets = logits.flatten(0, -2), batch.targets.flatten(0, 1)
        if targets.ndim == 1:
            scored = targets != IGNORED
            logits, targets = logits[scored], targets[scored]
        return self.weigh({}, 1.0, len(targets)).measure(logits, targets, slice(None))[0]


class Classify(RowTask, Labelled, kind="classify"):  # type: ignore[reportIncompatibleVariableOverride]
    """Predict a class for each text, or pair of texts (Devlin et al., 2018, §4.1). `text`, `second` (of a pair) and
    `label` name the fields of the records. The classes are `labels`; by default those of the model's own classification
    head, if it has one, else those of the training split, sorted.

    `pooling` takes a row's vector from its first token (cls) or its last token (last), or as the mean over its tokens
    (mean). The default is that of the model's own classification head, if it has one; else cls for an encoder, and last
    for a decoder or an encoder-decoder. A new head begins with BERT's dense layer and tanh if either the pooling is cls
    or the model is an encoder-decoder; a decoder's head has no bias, as in transformers. Evaluations give accuracy and
    macro F1.
    """

    head: ClassVar[type[Head]] = SequenceHead
    shared: ClassVar[tuple[str, ...]] = ("labels", "pooling", "skip_id")
    measures: ClassVar[tuple[str, ...]] = ("val_accuracy", "val_f1")
    ranked_by: ClassVar[str | None] = "val_f1"

    text: str = "text"
    second: str | None = None
    label: str = "label"
    labels: ClassNames | None = None

    def learn(self, data: PreparedLabels) -> dict[str, Any]:
        return {"labels": data.labels, "skip_id": self.find_skipped(data)}

    def make_task(self) -> LabelledTask:
        from zoo.data import labelled_records

        return labelled_records.ClassTask((self.text, *([self.second] if self.second else [])), self.label)

    def open_metrics(self) -> Metrics:
        from zoo.training.metrics import ClassMetrics

        assert self.labels is not None  # set from the data
        return ClassMetrics(self.labels)


class Tag(Labelled, kind="tag"):
    """Predict a tag for each word (Devlin et al., 2018, §5.3). `tokens` and `tags` name the fields of the records,
    lists of one length. A word's tag is predicted at its first token. The tags are `labels`; by default those of the
    model's own tagging head, if it has one, else those of the training split, sorted.

    Evaluations give the accuracy of words, and F1: of entities if tags are spelled B-…, I-… and O, else of the words
    whose tag is not O.
    """

    named: ClassVar[str] = "objective.tokens and objective.tags"
    by_token: ClassVar[bool] = True
    head: ClassVar[type[Head]] = TokenHead
    shared: ClassVar[tuple[str, ...]] = ("labels",)
    measures: ClassVar[tuple[str, ...]] = ("val_accuracy", "val_f1")
    ranked_by: ClassVar[str | None] = "val_f1"

    tokens: str = "tokens"
    tags: str = "tags"
    labels: ClassNames | None = None

    def make_task(self) -> LabelledTask:
        from zoo.data import labelled_records

        return labelled_records.TagTask((self.tokens,), self.tags)

    def open_metrics(self) -> Metrics:
        from zoo.training.metrics import TagMetrics

        assert self.labels is not None
        return TagMetrics(self.labels)


class Regress(RowTask, Labelled, kind="regress"):  # type: ignore[reportIncompatibleVariableOverride]
    """Predict a number, or a list of numbers, for each text or pair of texts. `text`, `second` (of a pair) and `label`
    name the fields of the records. The loss is the mean squared error; evaluations give Pearson's and Spearman's
    correlation.

    `n_outputs` is the count of numbers in a label, by default that of the model's own regression head, if it has one,
    else the data's. `pooling` is as in `classify`.
    """

    head: ClassVar[type[Head]] = RegressionHead
    shared: ClassVar[tuple[str, ...]] = ("n_outputs", "pooling", "skip_id")
    guessed: ClassVar[dict[str, Any]] = {"n_outputs": 1}
    measures: ClassVar[tuple[str, ...]] = ("val_pearson", "val_spearman")

    text: str = "text"
    second: str | None = None
    label: str = "label"
    n_outputs: PositiveInt | None = None

    def __post_init__(self) -> None:
        if self.z_loss:
            raise ValueError(f"z_loss: is of a softmax, and numbers have none, found {self.z_loss} (0)")

    def learn(self, data: PreparedLabels) -> dict[str, Any]:
        return {"n_outputs": data.n_outputs, "skip_id": self.find_skipped(data)}

    def weigh(self, inputs: dict[str, Tensor], weight: float, count: int | None) -> TokenLoss:
        return SquaredLoss(weight, 0.0, self.chunk_mib << 20, count)

    def targets(self, batch: Batch) -> int:
        return len(batch.targets)

    def make_task(self) -> LabelledTask:
        from zoo.data import labelled_records

        return labelled_records.NumberTask((self.text, *([self.second] if self.second else [])), self.label)

    def open_metrics(self) -> Metrics:
        from zoo.training.metrics import NumberMetrics

        return NumberMetrics()
