# N records of a split, B rows, T tokens
"""Compute reference log-probabilities: how likely the starting weights of a run make each answer. Computed once, before
the first step, and stored in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zoo.checkpoint.adapter_files import choose_base
from zoo.data.tokens import move_batch
from zoo.disk import replace_file
from zoo.distributed.world import ALONE, World
from zoo.errors import CheckpointError, ConfigError, short
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.data import Batch, PreparedData
    from zoo.data.chat.preference_rows import PreferenceFile
    from zoo.data.tokens import Collate
    from zoo.run.layer import Model
    from zoo.training.run import Run

FILE = "reference.safetensors"

TOGETHER = 1 << 14
"""Tokens of conversations in one batch of an evaluation's measurements."""

Measure = Callable[["Model", "Batch"], "Tensor"]
"""Computes the log-probability of each row's targets [B]."""


class RecordGroup(NamedTuple):
    """Records of a split that are measured together: the split's name in the file, and the numbers of its rows."""

    split: str
    rows: list[int]


class ReferenceLogProbs:
    """The reference log-probabilities of a run's records: [N, R] for each split, NaN where they are not computed. R is
    the number of rows in a batch for each record."""

    def __init__(self, data: PreparedData, rows: int) -> None:
        parts = {"train": data.sources, "validation": data.held_out}
        named = ((f"{part}/{each.name}", each.tokens) for part, sources in parts.items() for each in sources)
        self.files: dict[str, PreferenceFile] = dict(named)  # type: ignore[arg-type]
        self.take({name: np.full((file.n_documents, rows), np.nan, np.float32) for name, file in self.files.items()})

    def take(self, values: dict[str, np.ndarray]) -> None:
        """Set the values of each split's rows."""
        self.values = values
        for name, file in self.files.items():
            file.reference.values = values[name]

    def read(self, folder: Path) -> dict[str, str]:
        """Read the values stored in a run's folder. Returns a description of their origin ({} without a file). Raises
        CheckpointError for a damaged file, or for one of other records."""
        from safetensors import SafetensorError, safe_open

        if not (file := folder / FILE).is_file():
            return {}
        try:
            with safe_open(file, "np") as opened:
                found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
                about = dict(opened.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: cannot be read, found {short(error)} (delete it: it is made again)"
            ) from None
        forms = [{name: (each.shape, each.dtype) for name, each in held.items()} for held in (found, self.values)]
        if forms[0] != forms[1]:
            raise CheckpointError(f"{file}: is of other records than the run's (delete it: it is made again)")
        self.take(found)
        return about

    def write(self, folder: Path, about: Mapping[str, str]) -> None:
        """Write the values, and a description of their origin (`about`)."""
        from safetensors.numpy import save_file

        with replace_file(folder / FILE) as draft:
            save_file(self.values, draft, dict(about))

    def list_groups(self, asked: Mapping[str, Sequence[int]], seq_len: int, size: int) -> Iterator[RecordGroup]:
        """List the rows of each split whose values are missing, in groups of `size`. The groups do not depend on the
        number of processes."""
        for split, rows in asked.items():
            lacking = self.list_lacking(split, rows, seq_len)
            yield from (RecordGroup(split, lacking[first : first + size]) for first in range(0, len(lacking), size))

    def list_lacking(self, split: str, rows: Sequence[int], seq_len: int) -> list[int]:
        """List the rows of a split whose values are missing, the longest first."""
        file = self.files[split]
        records = file.records(seq_len)[np.asarray(rows, np.int64)]
        lacking = np.isnan(self.values[split][records]).any(1)
        order = np.argsort(-file.measured[records].max(1), kind="stable").tolist()
        return [rows[at] for at in order if lacking.item(at)]


@dataclass(frozen=True)
class RowMeasure:
    """Measures records in rows of `seq_len` tokens: `collate` makes a batch of records, and `measure` computes the
    log-probability of its rows under `autocast`. The processes of `world` share the records."""

    measure: Measure
    collate: Collate
    seq_len: int
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    world: World = ALONE

    def compute(self, held: ReferenceLogProbs, groups: Sequence[RecordGroup], model: Model) -> None:
        """Compute the values of groups of records. All processes run equally many passes, as a model spread over them
        requires."""
        world, device = self.world, next(model.parameters()).device
        shares = groups[world.rank :: world.size]
        found = {name: torch.zeros(values.shape) for name, values in held.values.items()}
        model.eval()
        for turn in range(-(-len(groups) // world.size)):
            split, rows = shares[turn] if turn < len(shares) else groups[-1]
            file = held.files[split]
            batch = self.collate([file.read_row(row, self.seq_len) for row in rows], [])
            with torch.no_grad(), self.autocast():
                values = self.measure(model, move_batch(batch, device))
            if turn < len(shares):
                found[split][file.records(self.seq_len)[rows]] = values.float().cpu().view(len(rows), -1)
        model.train()
        total = {name: world.all_reduce_(values.to(device)).cpu().numpy() for name, values in found.items()}
        for split, rows in groups:
            records = held.files[split].records(self.seq_len)[rows]
            held.values[split][records] = total[split][records]


def prepare_reference(run: Run, start: Callable[[], Model], steps: int, measure: Measure, rows: int) -> None:
    """Fill in the reference log-probabilities of the rows that a run reads up to its last step, and of all validation
    rows. Values are read from the run's folder, or computed with the starting weights; each process computes a share of
    the rows. Raises ConfigError if values are missing and the starting weights have changed."""
    held = ReferenceLogProbs(run.data, rows)
    known = held.read(run.folder)
    if not run.step and known != describe_start(run):  # left by another run in this folder
        held = ReferenceLogProbs(run.data, rows)
    seq_len, size = run.settings.seq_len, run.settings.batch_size // run.settings.accumulate
    if groups := list(held.list_groups(list_rows(run, steps), seq_len, size)):
        about = describe_start(run)
        if run.step and known and known != about:
            found = f"lacks rows that {steps} steps read, and the starting weights are others now"
            raise ConfigError(f"{run.folder / FILE}: {found} (weights as they were, or fewer steps)")
        count = sum(len(each.rows) for each in groups)
        run.show.say(f"reference: the starting weights' log-probabilities of {count:,} records, kept in {FILE}")
        how = RowMeasure(measure, run.batches.collate, seq_len, run.computing.autocast, run.layout.rows)
        how.compute(held, groups, start())
        if run.world.main:
            held.write(run.folder, about)
        run.world.barrier()


def recall_reference(
    folder: Path | None, start: Callable[[], Model] | None, data: PreparedData, how: RowMeasure, rows: int
) -> None:
    """Fill in the reference log-probabilities of validation rows, to evaluate a run. Values are read from the run's
    `folder` if the rows are the run's own, else computed with the starting weights. Raises ConfigError if the starting
    weights are unknown."""
    held = ReferenceLogProbs(data, rows)
    if folder is not None:
        held.read(folder)
    asked = {f"validation/{each.name}": range(each.tokens.count_rows(how.seq_len)) for each in data.held_out}
    together = max(TOGETHER // how.seq_len, 1)
    if groups := list(held.list_groups(asked, how.seq_len, together)):
        if start is None:
            found = "compares with the starting weights, which are not known for these records"
            raise ConfigError(
                f"objective: {found} (a run with weights=DIR, or zoo eval RUN on its own validation split)"
            )
        how.compute(held, groups, start())


def describe_start(run: Run) -> dict[str, str]:
    """Describe the origin of the values: the data, the starting weights, and the precision of a pass."""
    weights = run.settings.weights
    start = f"seed {run.settings.seed}" if weights is None else choose_base(weights)[1]
    return {"data": run.data.key, "start": start, "precision": run.settings.precision}


def list_rows(run: Run, steps: int) -> dict[str, Sequence[int]]:
    """List the rows of each split that a run reads up to its last step: the training rows still to come, and all
    validation rows."""
    batches, seq_len = run.batches, run.settings.seq_len
    end = batches.consumed + max(steps - run.step, 0) * batches.batch_size
    read: dict[str, set[int]] = {f"train/{source.name}": set() for source in batches.sources}
    for number in range(batches.consumed, end):
        place = batches.place(number)
        read[f"train/{batches.sources[place.source].name}"].add(place.window)
        if sum(map(len, read.values())) == sum(batches.windows):
            break
    held_out = {f"validation/{each.name}": range(each.tokens.count_rows(seq_len)) for each in run.data.held_out}
    return {**{name: sorted(rows) for name, rows in read.items()}, **held_out}
