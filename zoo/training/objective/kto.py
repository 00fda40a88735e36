# B records, T tokens
"""Kahneman-Tversky optimisation: learn from single answers, each labelled good or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat

from zoo.data.tokens import Batch
from zoo.lazy import Tensor, torch
from zoo.model.loss import IGNORED
from zoo.training.objective.base import Loss, Objective
from zoo.training.objective.preference import Referenced

if TYPE_CHECKING:
    from zoo.data.settings import DataSettings
    from zoo.model.tower import Topology
    from zoo.run.layer import Model
    from zoo.training.metrics import Metrics
    from zoo.training.run import Run


class KTO(Referenced, kind="kto"):
    """Raise the reward r of desirable answers and lower that of undesirable ones (Kahneman-Tversky optimisation;
    Ethayarajh et al., 2024): the loss of an answer is `desirable_weight` · (1 − σ(r − z)), or `undesirable_weight` · (1
    − σ(z − r)). An answer's reward is `beta` times the logarithm of its probability over that under the starting
    weights, which is computed once, before the first step.

    z is `beta` times an estimate of the divergence from the starting weights, at least 0: the mean of the logarithm of
    that ratio for mismatched answers, over a step's batch of all microbatches and processes. A mismatched answer is a
    record's prompt with the completion of the previous record in the data. Data: `data.form=unpaired`, or
    `data.form=preference`, of which both answers of a record count.
    """

    reads: ClassVar[str] = "judgements"
    scored: ClassVar[str] = "answers"
    measures: ClassVar[tuple[str, ...]] = ("val_reward_margin", "val_reward_chosen", "val_reward_rejected")
    ranked_by: ClassVar[str | None] = "val_reward_margin"
    terms: ClassVar[tuple[str, ...]] = ("loss", "kl", "reward_chosen", "reward_rejected")
    rows: ClassVar[int] = 4
    collate: ClassVar[str] = "collate_judged"

    desirable_weight: PositiveFloat = 1.0
    undesirable_weight: PositiveFloat = 1.0

    def settle(self, spec: Topology, data: DataSettings | None = None) -> Objective:
        if data is None or data.content != "judgements":
            return self
        return OneAnswerKTO(**{field.name: getattr(self, field.name) for field in self.fields()})

    def accepts(self, content: str) -> bool:
        return content in ("judgements", "preferences")

    def list_learned(self, batch: Batch) -> list[int]:
        there = (batch.targets != IGNORED).any(1).tolist()
        return [row for row, has in enumerate(there) if has and row % 4 < 2]

    def targets(self, batch: Batch) -> int:
        return len(self.list_learned(batch))

    def split_passes(self, batch: Batch) -> tuple[Batch, Batch | None]:
        return take_rows(batch, self.list_learned(batch)), take_mismatched(batch)

    def count_tokens(self, batch: Batch, seq_len: int) -> int:
        return super().count_tokens(take_rows(batch, self.list_learned(batch)), seq_len)

    def finish_batch(self, run: Run, batch: Batch) -> Batch:
        """Estimate the divergence of a batch, of which each process has a part."""
        found, parts = torch.zeros(2, dtype=torch.float64, device=run.device), run.settings.accumulate
        size = len(batch.input_ids) // parts
        for first in range(0, len(batch.input_ids), size):
            part = take_rows(batch, range(first, first + size))
            moved = Batch._make(None if each is None else each.to(run.device) for each in part)
            with torch.no_grad(), run.computing.autocast():
                found += self.sum_divergence(run.model, moved)
        return note_divergence(batch, run.layout.rows.all_reduce_(found).cpu())

    def sum_divergence(self, model: Model, batch: Batch) -> Tensor:
        """Sum, over the mismatched answers of a batch, log p − log p under the starting weights; also return their
        number: [2]."""
        part = take_mismatched(batch)
        assert part.reference is not None
        ratios = self.measure(model, part) - part.reference
        return torch.stack([ratios.double().sum(), ratios.new_tensor(len(ratios), dtype=torch.float64)])

    def loss(self, model: Model, batch: Batch, *, weight: float = 1.0, count: int | None = None) -> Loss:
        rows = self.list_learned(batch)
        part, count = take_rows(batch, rows), len(rows) if count is None else count
        assert batch.reference is not None and part.reference is not None
        reference, divergence = part.reference, batch.reference[2]  # as `note_divergence` leaves it
        good = torch.tensor([row % 4 == 0 for row in rows], device=reference.device)

        def combine(log_probs: Tensor) -> dict[str, Tensor]:
            ratios = log_probs - reference
            gains = self.beta * torch.where(good, ratios - divergence, divergence - ratios)
            weights = torch.where(good, self.desirable_weight, self.undesirable_weight)
            losses = weights * (1 - gains.sigmoid())
            rewards = self.beta * ratios.detach()
            of = {"reward_chosen": rewards[good].sum(), "reward_rejected": rewards[~good].sum()}
            return {"loss": losses.sum(), "kl": divergence * len(rows), **of}

        return self.run_model(model, part, self.sum_rows(part, self.terms, combine, weight), count)

    def judge(self, model: Model, batch: Batch, count: int, metrics: Metrics | None) -> Tensor:
        from zoo.training.metrics import MeanMetrics

        noted = note_divergence(batch, self.sum_divergence(model, batch))
        terms, good = self.loss(model, noted, count=count).terms, sum(row % 4 == 0 for row in self.list_learned(batch))
        if isinstance(metrics, MeanMetrics):
            counts = {"reward_chosen": good, "reward_rejected": count - good}
            metrics.add_sums({name: (terms[name], many) for name, many in counts.items()})
        return terms["loss"]


class OneAnswerKTO(KTO):
    """KTO on records of one answer, `data.form=unpaired`."""

    n_texts: ClassVar[int] = 1


def note_divergence(batch: Batch, found: Tensor) -> Batch:
    """Replace the reference of the mismatched answers, which is not needed any more, by the mean of a sum and a count
    [2], at least 0."""
    assert batch.reference is not None
    mean = (found[0] / found[1].clamp(min=1)).clamp(min=0).to(batch.reference)
    reference = batch.reference.view(-1, 4).clone()
    reference[:, 2:] = mean
    return batch._replace(reference=reference.flatten())


def take_rows(batch: Batch, rows: list[int] | range | Tensor) -> Batch:
    """Take some rows of a batch."""
    index = torch.as_tensor(rows, device=batch.input_ids.device)
    return Batch._make(None if each is None else each[index] for each in batch)


def take_mismatched(batch: Batch) -> Batch:
    """Take the mismatched answers of a batch, without the rows that are padding."""
    there = (batch.targets != IGNORED).any(1).view(-1, 4).clone()
    there[:, :2] = False
    return take_rows(batch, there.flatten().nonzero().flatten())
