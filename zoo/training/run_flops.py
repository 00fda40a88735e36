"""Count a run's parameters, and its training FLOPs batch by batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from zoo.costs.batches import RowFlops
from zoo.costs.params import count_parameters
from zoo.spec import table
from zoo.training.start.begin import StartSettings

if TYPE_CHECKING:
    from zoo.data import Batch
    from zoo.model.tower import Topology
    from zoo.run.layer import Model
    from zoo.training.objective import Objective
    from zoo.training.settings import Training


class TrainingFlops:
    """Counts the FLOPs of training on batches: three times a forward pass, plus a forward pass of a teacher, and one of
    the rows that are only measured (`Objective.split_passes`). The head counts for targets only. Not counted are
    recomputation, and gradients that nothing needs (an indexer's).

    Wrong if weights are frozen: frozen weights have no gradient, and not all activations have one.
    """

    def __init__(self, spec: Topology, objective: Objective) -> None:
        self.student = RowFlops(spec)
        self.objective = objective
        self.teachers = [RowFlops(each) for each in objective.list_teachers()]

    def count(self, batch: Batch) -> int:
        """Count the FLOPs of a batch."""
        batch, measured = self.objective.split_passes(batch)
        targets = self.objective.count_predictions(batch)
        found = 3 * sum_forward(self.student, batch, targets) - sum_skipped(self.student, batch)
        if measured is not None:
            found += sum_forward(self.student, measured, self.objective.count_predictions(measured))
        return found + sum(sum_forward(each, batch, targets) for each in self.teachers)


def price_step(settings: Training, spec: Topology) -> int | None:
    """Count the training FLOPs of a step from its config alone; None if they depend on the rows, as with labelled
    records, or if weights are frozen."""
    if not settings.objective.every_token or StartSettings.of(settings).partly:
        return None

    def forward(rows: RowFlops) -> int:
        return settings.batch_size * (rows.body(settings.seq_len) + settings.seq_len * rows.target)

    student, teachers = RowFlops(spec), map(RowFlops, settings.objective.list_teachers())
    skipped = settings.batch_size * student.skipped(settings.seq_len)
    return 3 * forward(student) - skipped + sum(map(forward, teachers))


def sum_forward(rows: RowFlops, batch: Batch, targets: int) -> int:
    """Sum the forward FLOPs of a batch's rows."""
    body = _count_rows(batch) * rows.body(*_measure(batch))
    shown = 0 if batch.prefix is None else sum(rows.shown(prefix)[0] for prefix in batch.prefix.tolist())
    return body + shown + targets * rows.target


def sum_skipped(rows: RowFlops, batch: Batch) -> int:
    """Sum the FLOPs of gradients that nothing needs, over a batch's rows."""
    shown = 0 if batch.prefix is None else sum(rows.shown(prefix)[1] for prefix in batch.prefix.tolist())
    return _count_rows(batch) * rows.skipped(*_measure(batch)) + shown


def _count_rows(batch: Batch) -> int:
    """Count the rows that the model reads: those of all texts where records have several [B, K, T]."""
    return batch.input_ids.shape[:-1].numel()


def _measure(batch: Batch) -> tuple[int, int | None]:
    """Return the tokens of a row, and of a decoder's row in an encoder-decoder."""
    written = None if batch.decoder_input_ids is None else batch.decoder_input_ids.shape[1]
    return batch.input_ids.shape[-1], written


def count_parameters_of(model: Model, settings: Training) -> tuple[int, int]:
    """Count the parameters of a run's whole model, adapters included, and those that train."""
    if model.shares.divisions or model.shares.stages:  # the built model is a rank's part
        whole, trained = model.whole, StartSettings.of(settings).choose_trained(model.whole)
        return count_parameters(whole)["total"], sum(math.prod(table(whole, whole.d_model)[name]) for name in trained)
    from zoo.run.adapters import INSIDE

    added = sum(each.numel() for name, each in model.named_parameters() if INSIDE in name)  # the rest may be held apart
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    return count_parameters(model.whole)["total"] + added, trained
