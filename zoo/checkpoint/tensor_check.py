"""Compare the tensors in a folder's files with its architecture, by their headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zoo import runs
from zoo.checkpoint import hf
from zoo.checkpoint.adapter_files import check_weights, find_base, read_plan
from zoo.checkpoint.finding import find
from zoo.checkpoint.mapping import map_tensors
from zoo.costs.params import count_parameters
from zoo.errors import CheckpointError
from zoo.grammar.saved import read_spec
from zoo.spec import table


@dataclass(frozen=True)
class TensorReport:
    """The result of comparing a folder's headers with its model: the format (`kind`), the counts of tensors in the
    files (`theirs`) and in the model (`ours`), a line for each fault, and whether the files have adapters alone."""

    folder: Path
    kind: str
    theirs: int
    ours: int
    parameters: int
    faults: tuple[str, ...] = ()
    adapters: bool = False

    def __str__(self) -> str:
        are = "are adapters of" if self.adapters else "are"
        tensors = f"{self.theirs} tensors in its files {are} the {self.ours} of the model"
        return f"{self.folder}: whole ({self.kind}): {tensors}, {self.parameters:,} parameters"


def compare_tensors(path: Path) -> TensorReport:
    """Compare the headers of a checkpoint, a run's newest checkpoint, or a Hugging Face folder with its model.

    Reads no weight. Raises CheckpointError for broken or missing files.
    """
    folder = find(path)
    if (folder / runs.ARCHITECTURE).is_file():
        spec = read_spec(folder)
        names, faults = table(spec, spec.d_model), []
        theirs, adapters = len(names), False
        try:
            check_weights(folder, spec)
            if (plan := read_plan(folder)) is not None and plan.hash is not None:
                find_base(plan, folder)
                theirs, adapters = len(plan.paths) * (3 if plan.dora else 2) + len(plan.trained), True
        except CheckpointError as error:
            faults = error.faults
        total = count_parameters(spec)["total"]
        return TensorReport(folder, "zoo", theirs, len(names), total, tuple(faults), adapters)
    source, found = hf.open_folder(folder)
    laid = map_tensors(source.spec, source.stored)
    faults = hf.find_differences(laid, found, source)
    theirs, ours = sum(len(entry.theirs) for entry in laid), sum(len(entry.ours) for entry in laid)
    total, of = count_parameters(source.spec)["total"], f"{source.family.name}, {source.body.architecture}"
    return TensorReport(source.file or folder, of, theirs, ours, total, tuple(faults))
