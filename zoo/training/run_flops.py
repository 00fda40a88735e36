"""Count a run's parameters, and its training FLOPs batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from zoo.costs.batches import RowFlops, list_row_passes
from zoo.costs.params import count_parameters
from zoo.costs.partial_training import list_partial_passes
from zoo.costs.shadow.tape import UnknownOperation
from zoo.costs.tuning import apply_tuning
from zoo.lazy import Tensor, torch
from zoo.spec import table
from zoo.training.start.begin import StartSettings

if TYPE_CHECKING:
    from zoo.data import Batch
    from zoo.model.tower import Topology
    from zoo.run.layer import Model
    from zoo.training.objective import Objective
    from zoo.training.settings import Training


class TrainingFlops:
    """Counts the FLOPs of training on batches: a forward and a backward pass, a forward pass of a teacher, and a
    forward pass of the rows that are only measured (`Objective.split_passes`). The head counts for targets only.
    Recomputation, and gradients that are not needed (an indexer's, those of frozen weights), are not counted.

    `start` has the trained weights and the added adapters. Raises UnknownOperation for a partly trained model whose
    pass cannot be traced.
    """

    def __init__(self, spec: Topology, objective: Objective, start: StartSettings | None = None) -> None:
        self.objective = objective
        if start is None or not start.partly:
            self.forward, self.backward = list_row_passes(spec)
        else:
            self.forward, self.backward = list_partial_passes(apply_tuning(spec, start.describe_tuning(spec)))
        self.teachers = [list_row_passes(each)[0] for each in objective.list_teachers()]

    def count(self, batch: Batch) -> int:
        """Count the FLOPs of a batch."""
        batch, measured = self.objective.split_passes(batch)
        targets = self.objective.count_predictions(batch)
        found = sum(sum_rows(each, batch, targets) for each in (self.forward, self.backward, *self.teachers))
        if measured is not None:
            found += sum_rows(self.forward, measured, self.objective.count_predictions(measured))
        return found


def open_counter(
    settings: Training, spec: Topology, say: Callable[[str], object] = lambda line: None
) -> TrainingFlops | None:
    """Make the TrainingFlops of a run; None, with a line to `say`, for a partly trained model whose pass cannot be
    traced."""
    try:
        return TrainingFlops(spec, settings.objective, StartSettings.of(settings))
    except UnknownOperation as error:
        say(f"flops: are not counted ({error})")
        return None


def price_step(settings: Training, spec: Topology) -> int | None:
    """Count the training FLOPs of a step from its config alone; None if they depend on the rows, as with labelled
    records, or if they are not counted (`open_counter`)."""
    if not settings.objective.every_token or (counter := open_counter(settings, spec)) is None:
        return None
    passes = (counter.forward, counter.backward, *counter.teachers)
    return settings.batch_size * sum(each.body(settings.seq_len) + settings.seq_len * each.target for each in passes)


def sum_rows(rows: RowFlops, batch: Batch, targets: int) -> int:
    """Sum the FLOPs of a pass over a batch's rows. Packed documents do not see one another."""
    count = batch.input_ids.shape[:-1].numel()  # B rows, or B·K if records have K texts [B, K, T]
    sizes = (batch.input_ids.shape[-1], None if (written := batch.decoder_input_ids) is None else written.shape[1])
    found = count * rows.body(*sizes) + targets * rows.target
    if batch.documents is not None:
        found += sum(rows.pairs(*each) for each in zip(*_measure_documents(batch), strict=True))
        found -= count * rows.pairs(*sizes)
    if batch.prefix is not None:
        first = torch.arange(sizes[0]) < batch.prefix[:, None]
        found += sum(map(rows.shown, _measure_documents(batch, first)[0]))
    return found


def _measure_documents(batch: Batch, where: Tensor | None = None) -> list[list[int]]:
    """Count the tokens of each document of a batch, at the positions where `where` is True (default: all). Returns the
    counts of input tokens and, in an encoder-decoder, of decoder tokens. A row that is not packed is a document."""
    numbers = [each for each in (batch.documents, batch.decoder_documents) if each is not None]
    numbers = numbers or [torch.zeros_like(batch.input_ids)]
    stride = 1 + max(int(each.max()) for each in numbers)
    keys = [each + stride * torch.arange(len(each))[:, None] for each in numbers]
    keys = [each.flatten() if where is None else each[where] for each in keys]
    return [torch.bincount(each, minlength=stride * len(batch.input_ids)).tolist() for each in keys]


def count_parameters_of(model: Model, settings: Training) -> tuple[int, int]:
    """Count the parameters of a run's whole model, adapters included, and those that train."""
    if model.shares.divisions or model.shares.stages:  # the built model is a rank's part
        whole, trained = model.whole, StartSettings.of(settings).choose_trained(model.whole)
        return count_parameters(whole)["total"], sum(math.prod(table(whole, whole.d_model)[name]) for name in trained)
    from zoo.run.adapters import INSIDE

    added = sum(each.numel() for name, each in model.named_parameters() if INSIDE in name)  # the rest may be held apart
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    return count_parameters(model.whole)["total"] + added, trained
