"""Save and load low-rank adapters (LoRA) in a checkpoint of Zoo, and find their base model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field

from zoo.checkpoint import parallel_checkpoint
from zoo.checkpoint.base_identity import identify_base, is_base, resolve_base
from zoo.checkpoint.gguf import find
from zoo.checkpoint.headers import compare_shapes
from zoo.checkpoint.manifest import is_verified
from zoo.checkpoint.stored import StoredTensors
from zoo.checkpoint.tensor_files import read_header
from zoo.errors import CheckpointError, short
from zoo.families.described import read_json, write_json
from zoo.lazy import Tensor
from zoo.runs import ADAPTERS, WEIGHTS
from zoo.spec import table
from zoo.untrusted.json_file import JsonShape
from zoo.untrusted.printable import quote, shorten

if TYPE_CHECKING:
    from torch import device, nn

    from zoo.checkpoint.stored import WholeSpec
    from zoo.run.adapters import Adapters

T = TypeVar("T")

PLAN = "adapter.json"
FILES = (PLAN, ADAPTERS)


class PlanFile(JsonShape):
    """The schema of adapter.json: the fields of `zoo.run.adapters.Adapters`."""

    rank: Annotated[int, Field(ge=1, le=2**20)]
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    paths: list[str]
    trained: list[str]
    base: str | None = None
    hash: str | None = None
    quantise: Literal["nf4", "int8"] | None = None
    dora: bool = False


# ---------------------------------------------------------------- in a checkpoint of Zoo


def write_plan(model: nn.Module, folder: Path) -> None:
    """Write the plan of a model's adapters into a folder as adapter.json; nothing for a model without adapters."""
    plan: Adapters | None = getattr(model, "adapters", None)
    if plan is not None:
        write_json(folder / PLAN, dataclasses.asdict(plan))


def split_files(model: nn.Module, tensors: Mapping[str, T]) -> dict[str, Mapping[str, T]]:
    """Divide a model's tensors among the files of its checkpoint: file name → tensors by name. Without adapters there
    is one file. With adapters, one file has the adapters, the other the weights that are not the base's."""
    plan: Adapters | None = getattr(model, "adapters", None)
    if plan is None:
        return {WEIGHTS: tensors}
    from zoo.run.adapters import split_adapters

    own, adapters = split_adapters(tensors)
    return {ADAPTERS: adapters, WEIGHTS: own if plan.hash is None else {name: own[name] for name in plan.trained}}


def read_plan(folder: Path) -> Adapters | None:
    """Read the rank, scale and paths of a checkpoint's adapters; None if it has none. Raises CheckpointError for a
    malformed file."""
    from zoo.run.adapters import Adapters

    file = folder / PLAN
    if not file.is_file():
        return None
    node = read_json(file, PlanFile)
    strange = sorted(node.keys() - {each.name for each in dataclasses.fields(Adapters)})
    if strange:
        raise CheckpointError(f"{file}: {shorten(strange[0])}: no such key (a file that zoo wrote)")
    return Adapters(**{**node, "paths": tuple(node["paths"]), "trained": tuple(node["trained"])})


def read(model: Any, folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint's adapters, and record their base in the model. Raises CheckpointError unless
    the model has the same adapters."""
    plan, own = read_plan(folder), getattr(model, "adapters", None)
    if _describe(plan) != _describe(own):
        raise CheckpointError(f"{folder / PLAN}: its adapters are not the run's (as they were when the run began)")
    model.adapters = plan
    return {} if plan is None else read_tensors(plan, model.spec, folder, next(model.parameters()).device)


def _describe(plan: Adapters | None) -> Adapters | None:
    return plan and dataclasses.replace(plan, trained=(), base=None, hash=None)


def merge(stored: StoredTensors, spec: WholeSpec, plan: Adapters, folder: Path) -> StoredTensors:
    """Merge a checkpoint's adapters into its model's weights, each weight as it is read."""
    from zoo.run.adapters import INSIDE, merge_adapter

    held = read_tensors(plan, spec, folder, "cpu")
    adapted = {f"{path}.weight": path for path in plan.paths}

    def read(name: str) -> Tensor:
        if (path := adapted.get(name)) is None:
            return stored[name]
        a, b = (held[f"{path}{INSIDE}{each}"] for each in "ab")
        return merge_adapter(stored[name], plan, a, b, held.get(f"{path}{INSIDE}m"))

    slices = stored.find_slices
    return StoredTensors(stored.forms, read, find_slices=lambda name: None if name in adapted else slices(name))


def read_tensors(plan: Adapters, spec: WholeSpec, folder: Path, device: device | str) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint's adapters, under Zoo's names. Raises CheckpointError if they do not match the
    plan."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from zoo.run.adapters import list_adapter_shapes

    shapes = table(spec, spec.d_model)
    strange = [path for path in plan.paths if len(shapes.get(f"{path}.weight", ())) < 2]
    if strange:
        raise CheckpointError(f"{folder / PLAN}: paths: {quote(strange[0])} is no product of the model")
    found = {name: header.shape for name, header in read_header(folder / ADAPTERS).items()}
    compare_shapes(folder / ADAPTERS, found, list_adapter_shapes(plan, shapes))
    try:
        return load_file(folder / ADAPTERS, device=str(device))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / ADAPTERS}: cannot be read, found {short(error)} (a whole file)") from error


def load_adapter(model: Any, folder: Path) -> None:
    """Load a checkpoint's adapters into a model, with the weights that were trained with them. Raises CheckpointError
    if the checkpoint holds a whole model, and for tensors that the model does not have."""
    plan = read_plan(folder)
    if plan is None or plan.hash is None:
        raise CheckpointError(f"{folder}: its adapters name no base (a checkpoint of this version)")
    check_weights(folder, model.spec)
    own = parallel_checkpoint.open_weights(folder, mapped=False)
    source = own.under(StoredTensors.of(read_tensors(plan, model.spec, folder, "cpu")))
    held = parallel_checkpoint.hold_weights(model)
    parallel_checkpoint.fill_pieces({name: each for name, each in held.items() if name in source}, source)


# ---------------------------------------------------------------- the base


def check_weights(folder: Path, spec: WholeSpec) -> None:
    """Compare names and shapes of a checkpoint's tensors with those of its model. Raises CheckpointError, one line for
    each difference (the first few of each sort)."""
    plan, shapes = read_plan(folder), table(spec, spec.d_model)
    if plan is not None and plan.hash is not None:
        if strange := [name for name in plan.trained if name not in shapes]:
            raise CheckpointError(f"{folder / PLAN}: trained: {quote(strange[0])} is no weight of the model")
        shapes = {name: shapes[name] for name in plan.trained}
    parallel_checkpoint.check_weights(folder, shapes)


def choose_base(weights: str | Path) -> tuple[str, str]:
    """Find the base of a run with adapters. Returns its path and hash. The path is a folder (of a run, the newest
    checkpoint's) or a GGUF file."""
    base = resolve_base(weights)
    return str(base), identify_base(base)


def refuse_to_replace_base(folder: Path, out: Path) -> None:
    """Raise CheckpointError if `out` is the base of the adapters in a checkpoint's folder: replacing its weights would
    leave the adapters without a base."""
    plan = read_plan(folder)
    if plan is None or plan.base is None or not out.exists() or not Path(plan.base).exists():
        return
    if out.samefile(plan.base) or out.samefile(find(plan.base)):
        raise CheckpointError(f"{out}: is the base that the adapters are for (a new folder would do)")


def find_base(plan: Adapters, folder: Path) -> Path:
    """Find the base of a checkpoint's adapters. Raises CheckpointError if its path is missing, or holds another model
    (not checked with `ZOO_NO_VERIFY`)."""
    assert plan.base is not None
    base, where = Path(plan.base), f"{folder / PLAN}: the adapters are for {shorten(plan.base)}, "
    try:
        there = base.exists()
        if there and plan.hash is not None and is_verified() and not is_base(base, plan.hash):
            found = "which has other weights now"
            raise CheckpointError(f"{where}{found} (those that the run began with; --no-verify reads it as it is)")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{where}which cannot be read, found {short(error)} (the model, or a link to it)"
        ) from None
    if not there:
        raise CheckpointError(f"{where}which is not there (the model, or a link to it)")
    return base
