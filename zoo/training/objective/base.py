# B rows, T tokens
"""Base of the training objectives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import NonNegativeFloat, PositiveInt

from zoo.model.head import describe_lack
from zoo.model.loss import IGNORED, TokenLoss
from zoo.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from zoo.data import Batch, Tokenizer
    from zoo.data.tokens import Collate
    from zoo.training.metrics import Metrics


@dataclass(frozen=True)
class Context:
    """The setting in which an objective makes batches: rows of `seq_len` tokens, their documents apart or not."""

    spec: Any
    tokenizer: Tokenizer
    seq_len: int
    seed: int
    documents: bool
    one_shape: bool = True
    """Whether all batches must have one shape, rather than be as wide as their longest row."""


class Loss(NamedTuple):
    """A batch's loss: the weighted sum `total`, through which a gradient goes back; the number of targets; the weighted
    terms by name, of which `loss` is the cross-entropy alone; and the tokens [E] of each mixture's experts."""

    total: Tensor
    count: int
    terms: dict[str, Tensor]
    loads: list[Tensor]


class Objective(Spec, axis="objective"):
    """Training objective: which tokens the model reads, which it predicts, and the loss.

    The loss is cross-entropy, and `z_loss` × (log Σ exp logits)² (PaLM, 2022). It is computed on as many tokens at a
    time as give `chunk_mib` of logits, so that the logits are never whole (`zoo/model/loss.py`).
    """

    every_token: ClassVar[bool] = False
    """Whether every token of the text is a target, given those before it: then bits per byte follow from the loss, and
    the head runs on all tokens, as MFU counts."""
    scored: ClassVar[str] = "targets"
    """What its loss is a mean over, in words."""
    reads_pairs: ClassVar[bool] = False
    """Whether its rows are pairs of a source and an answer, in place of text."""
    reads_labels: ClassVar[bool] = False
    """Whether its rows are labelled records (`zoo.training.objective.labelled`)."""
    measures: ClassVar[tuple[str, ...]] = ()
    """The metrics of an evaluation beside `val_loss`, as lines of metrics name them."""
    ranked_by: ClassVar[str | None] = None
    """The metric of an evaluation whose largest value marks the best checkpoint; None: the lowest `val_loss` does."""

    z_loss: NonNegativeFloat = 0.0
    chunk_mib: PositiveInt = 256

    def settle(self, spec: Any) -> Objective:
        """The objective itself, or the one that it stands for with this model."""
        return self

    def refuses(self, spec: Any) -> str | None:
        """Return the reason why a model cannot be trained on this objective, or None. Reads no weights."""
        return None

    def refuses_documents(self, spec: Any) -> str | None:
        """Return the reason why the documents of a row cannot be kept apart (`data.documents`), or None."""
        return "is true, and pairs are not packed (data.documents=false)" if self.reads_pairs else None

    def adapt(self, spec: Any) -> Any:
        """The model as it is trained on this objective: with a head for the task, where that is one."""
        return spec

    def widths(self, spec: Any, seq_len: int, documents: bool) -> dict[str, int]:
        """Count the tokens of a row in each tower, by the tower's path."""
        return dict.fromkeys(spec.towers(), seq_len)

    def count_special(self, seq_len: int) -> int:
        """Count the special tokens that it needs, and that a tokenizer of plain text lacks."""
        return 0

    def extend(self, tokenizer: Tokenizer, seq_len: int) -> None:
        """Add the special tokens that it needs and the tokenizer lacks, behind its vocabulary. Raises ConfigError for
        a tokenizer that will not do."""

    def collator(self, context: Context) -> Collate:
        """Make what turns rows of ids [B, T + 1] into batches; the tokenizer has been extended."""
        raise NotImplementedError

    def targets(self, batch: Batch) -> int:
        """Count the targets of a batch on the CPU: its loss is divided by them."""
        return int((batch.targets != IGNORED).sum())

    def count_tokens(self, batch: Batch, seq_len: int) -> int:
        """Count the tokens that a batch adds to those seen: whole rows of `seq_len`, padding included."""
        return len(batch.input_ids) * seq_len

    def list_teachers(self) -> Sequence[Any]:
        """List the models whose forward pass a step runs beside the trained one's, as Specs."""
        return ()

    def open_metrics(self) -> Metrics | None:
        """Begin to gather what an evaluation measures beside the loss; None where that is all."""
        return None

    def judge(self, model: Any, batch: Batch, count: int, metrics: Metrics | None) -> Tensor:
        """Compute the loss of a batch, summed over its `count` targets. The metrics that `open_metrics` gave get the
        results too."""
        return self.loss(model, batch, count=count).terms["loss"]

    def loss(self, model: Any, batch: Batch, *, weight: float = 1.0, count: int | None = None) -> Loss:
        """Compute the loss of a batch: `weight` × (the sum over its targets + their `count` × the model's own losses,
        which are means). The count spares a device from being waited for."""
        count = self.targets(batch) if count is None else count
        inputs = list_inputs(batch)
        out = model(**inputs, targets=batch.targets, loss=self.weigh(inputs, weight, count))
        own = {name: loss * (weight * count) for name, loss in out.losses.items()}
        terms = {**out.terms, **{name: loss.detach() for name, loss in own.items()}}
        total = out.loss
        for each in own.values():
            total = total + each
        return Loss(total, count, terms, out.loads)

    def weigh(self, inputs: dict[str, Tensor], weight: float, count: int | None) -> TokenLoss:
        """Say how the targets are weighed in a pass of these inputs."""
        return TokenLoss(weight, self.z_loss, self.chunk_mib << 20, count)


def list_inputs(batch: Batch) -> dict[str, Tensor]:
    """List the fields of a batch that a model reads."""
    return {name: value for name, value in batch._asdict().items() if value is not None and name != "targets"}


def describe(spec: Any) -> str:
    """Name a model's topology in a sentence."""
    return f"an {spec.kind.replace('_', '-')}" if spec.kind[0] == "e" else f"a {spec.kind}"


def refuse_topology(name: str, spec: Any, kind: str, instead: str) -> str | None:
    """Return the reason why an objective of one kind of model does not train another, or None; `instead` is the
    objective that would."""
    if spec.kind != kind:
        learned = f"{name} is learned by {'an' if kind[0] == 'e' else 'a'} {kind.replace('_', '-')}"
        return f"{learned}, the model is {describe(spec)} (kind: {kind}, or objective={instead})"
    return None


def suggest(spec: Any) -> str:
    """Name the objective that a model is trained on where none is named."""
    return {"encoder": "mlm", "encoder_decoder": "span_corruption"}.get(spec.kind, "next_token")


def refuse_headless(name: str, spec: Any) -> str | None:
    """Return the reason where no tower of a model has a head that predicts tokens, or None."""
    heads = [tower.head for tower in spec.towers().values()]
    if any(head.predicts_tokens for head in heads):
        return None
    would = f"head.kind: {'mlm' if spec.kind == 'encoder' else 'lm'}"
    if all(head.kind == "none" for head in heads):
        return f"{name} needs a head, the model has none ({would})"
    return f"{name} predicts tokens, and {describe_lack(heads[-1])} ({would})"
