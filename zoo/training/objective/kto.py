# B records, T tokens
"""Kahneman-Tversky optimisation: learn from single answers, each labelled good or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat

from zoo.data.tokens import Batch, map_tensors, move_batch, split_rows
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
    − σ(z − r)). An answer's reward is `beta` · log (its probability ÷ its probability under the starting weights). The
    probability under the starting weights is computed once, before the first step.

    z estimates `beta` times the KL divergence from the starting weights: the mean reward of the mismatched answers in a
    step's whole batch, at least 0. A mismatched answer is a record's prompt with the completion of the previous record
    in the data. Data: `data.form=unpaired`, or `data.form=preference`, where both answers of a record count.
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

    def find_learned(self, batch: Batch) -> Tensor:
        """Return the numbers of the rows with real answers, `n_texts` of each record. The mismatched answer is two rows
        further. Does not wait for a device."""
        there = (batch.targets != IGNORED).any(1).view(-1, 4)[:, :2]
        places = there.byte().argsort(dim=1, descending=True, stable=True)[:, : self.n_texts]
        return (4 * torch.arange(len(places), device=places.device)[:, None] + places).flatten()

    def list_learned(self, batch: Batch) -> list[int]:
        return self.find_learned(batch).tolist()

    def targets(self, batch: Batch) -> int:
        return len(batch.input_ids) // 4 * self.n_texts

    def split_passes(self, batch: Batch) -> tuple[Batch, Batch | None]:
        rows, batch = self.find_learned(batch), batch._replace(reference=None)  # which may lie on a device
        return take_rows(batch, rows), take_rows(batch, rows + 2)

    def count_tokens(self, batch: Batch, seq_len: int) -> int:
        return super().count_tokens(self.split_passes(batch)[0], seq_len)

    def finish_batch(self, run: Run, batch: Batch) -> Batch:
        """Add to a batch its divergence, estimated from the parts of all processes. The host does not wait for the
        device."""
        assert batch.reference is not None
        found, rows = torch.zeros((), dtype=torch.float64, device=run.device), run.layout.rows
        for part in split_rows(batch, run.settings.accumulate):
            part = take_rows(part, self.find_learned(part) + 2)
            count = self.count_predictions(part)
            with torch.no_grad(), run.computing.autocast():
                found += self.sum_divergence(run.model, move_batch(part, run.device), count)
        mean = rows.all_reduce_(found) / (rows.size * self.targets(batch))
        return note_divergence(batch._replace(reference=batch.reference.to(run.device, non_blocking=True)), mean)

    def sum_divergence(self, model: Model, mismatched: Batch, count: int | None = None) -> Tensor:
        """Sum log (p ÷ p under the starting weights) over mismatched answers. `count` is the number of their targets,
        if known."""
        assert mismatched.reference is not None
        return (self.measure(model, mismatched, count) - mismatched.reference).double().sum()

    def loss(self, model: Model, batch: Batch, *, weight: float = 1.0, count: int | None = None) -> Loss:
        rows = self.find_learned(batch)
        part, good = take_rows(batch, rows), rows % 4 == 0
        assert batch.reference is not None and part.reference is not None
        reference, divergence = part.reference, batch.reference[2]  # as `note_divergence` leaves it

        def combine(log_probs: Tensor) -> dict[str, Tensor]:
            ratios = log_probs - reference
            gains = self.beta * torch.where(good, ratios - divergence, divergence - ratios)
            weights = torch.where(good, self.desirable_weight, self.undesirable_weight)
            losses = weights * (1 - gains.sigmoid())
            rewards = self.beta * ratios.detach()
            chosen, rejected = (torch.where(of, rewards, 0).sum() for of in (good, ~good))
            of = {"reward_chosen": chosen, "reward_rejected": rejected}
            return {"loss": losses.sum(), "kl": divergence * len(rows), **of}

        return self.run_model(model, part, self.sum_rows(part, self.terms, combine, weight, count), len(rows))

    def judge(self, model: Model, batch: Batch, count: int, metrics: Metrics | None) -> Tensor:
        from zoo.training.metrics import MeanMetrics

        rows = self.find_learned(batch)
        found = self.sum_divergence(model, take_rows(batch, rows + 2))
        terms, good = self.loss(model, note_divergence(batch, found / count)).terms, int((rows % 4 == 0).sum())
        if isinstance(metrics, MeanMetrics):
            counts = {"reward_chosen": good, "reward_rejected": count - good}
            metrics.add_sums({name: (terms[name], many) for name, many in counts.items()})
        return terms["loss"]


class OneAnswerKTO(KTO):
    """KTO on records of one answer, `data.form=unpaired`."""

    n_texts: ClassVar[int] = 1


def note_divergence(batch: Batch, mean: Tensor) -> Batch:
    """Replace the reference of the mismatched answers, no longer needed, by the divergence: `mean`, at least 0."""
    assert batch.reference is not None
    reference = batch.reference.view(-1, 4).clone()
    reference[:, 2:] = mean.clamp(min=0)
    return batch._replace(reference=reference.flatten())


def take_rows(batch: Batch, rows: Tensor) -> Batch:
    """Take the rows of a batch with these numbers."""
    return map_tensors(batch, lambda each: each[rows])
