"""Save and load low-rank adapters (LoRA) in a checkpoint of ours, next to the adapted weights; export them to peft."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from zoo.checkpoint import hf, parallel_checkpoint
from zoo.checkpoint.conversion import Entry, Transpose
from zoo.checkpoint.gguf import find
from zoo.checkpoint.headers import check_tensors
from zoo.checkpoint.inverse import find_config
from zoo.checkpoint.manifest import MANIFEST, hash_file, hash_text, identify, is_verified
from zoo.checkpoint.mapping import map_tensors
from zoo.checkpoint.stored import StoredTensors, refuse_nonfinite
from zoo.checkpoint.tensor_files import refuse_to_replace, write_tensors
from zoo.disk import replace_folder
from zoo.errors import CheckpointError, short
from zoo.families.described import CONFIG, read_json
from zoo.grammar.saved import read_spec
from zoo.lazy import torch
from zoo.runs import ADAPTERS, ARCHITECTURE
from zoo.spec import table
from zoo.untrusted.json_file import JsonShape
from zoo.untrusted.printable import quote, shorten

if TYPE_CHECKING:
    from torch import Tensor, device, nn

    from zoo.checkpoint.stored import WholeSpec
    from zoo.run.adapters import Adapters

PLAN = "adapter.json"
FILES = (PLAN, ADAPTERS)

STATED = (ARCHITECTURE, CONFIG, "model.safetensors.index.json", "pytorch_model.bin.index.json")
"""The files of a folder that say what its tensors are."""

PEFT = ("adapter_config.json", "adapter_model.safetensors")
"""The files of peft's format."""


class PlanFile(JsonShape):
    """The schema of adapter.json: the fields of `zoo.run.adapters.Adapters`."""

    rank: Annotated[int, Field(ge=1, le=2**20)]
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    paths: list[str]
    trained: list[str]
    base: str | None = None
    hash: str | None = None


# ---------------------------------------------------------------- in a checkpoint of ours


def write(model: nn.Module, folder: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write a model's adapters, if it has any, into a folder. Returns the other tensors that a checkpoint has: without
    adapters all of the model's; with them those that are not the base's.

    `weights` (averages, say) replace the model's tensors of the same names.
    """
    plan: Adapters | None = getattr(model, "adapters", None)
    tensors = {**model.state_dict(), **weights}
    if plan is None:
        return tensors
    from zoo.run.adapters import split_adapters

    own, adapters = split_adapters(tensors)
    (folder / PLAN).write_text(json.dumps(dataclasses.asdict(plan), indent=2) + "\n", encoding="utf-8")
    write_tensors(adapters, folder / ADAPTERS)
    return own if plan.hash is None else {name: own[name] for name in plan.trained}


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
    """Read the tensors of a checkpoint's adapters, and note in the model which base they are for. Raises
    CheckpointError unless the model has the same adapters."""
    plan, own = read_plan(folder), getattr(model, "adapters", None)
    if _describe(plan) != _describe(own):
        raise CheckpointError(f"{folder / PLAN}: its adapters are not the run's (as they were when the run began)")
    model.adapters = plan
    return {} if plan is None else _read_tensors(plan, model.spec, folder, next(model.parameters()).device)


def _describe(plan: Adapters | None) -> Adapters | None:
    return plan and dataclasses.replace(plan, trained=(), base=None, hash=None)


def merge(stored: StoredTensors, spec: WholeSpec, plan: Adapters, folder: Path) -> StoredTensors:
    """Merge a checkpoint's adapters into its model's weights. A weight is merged when it is read."""
    from zoo.run.adapters import INSIDE, merge_adapter

    held = _read_tensors(plan, spec, folder, "cpu")
    adapted = {f"{path}.weight": path for path in plan.paths}

    def read(name: str) -> Tensor:
        if (path := adapted.get(name)) is None:
            return stored[name]
        return merge_adapter(stored[name], plan, held[f"{path}{INSIDE}a"], held[f"{path}{INSIDE}b"])

    return StoredTensors(stored.forms, read)


def _read_tensors(plan: Adapters, spec: WholeSpec, folder: Path, device: device | str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from zoo.run.adapters import list_adapter_shapes

    shapes = table(spec, spec.d_model)
    strange = [path for path in plan.paths if len(shapes.get(f"{path}.weight", ())) < 2]
    if strange:
        raise CheckpointError(f"{folder / PLAN}: paths: {quote(strange[0])} is no product of the model")
    check_tensors(folder / ADAPTERS, list_adapter_shapes(plan, shapes))
    try:
        return load_file(folder / ADAPTERS, device=str(device))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / ADAPTERS}: cannot be read, found {short(error)} (a whole file)") from error


# ---------------------------------------------------------------- the base


def check_weights(folder: Path, spec: WholeSpec) -> None:
    """Compare names and shapes of the tensors in a checkpoint with those that it should have. Raises CheckpointError,
    one line for each difference (the first few of each sort)."""
    plan, shapes = read_plan(folder), table(spec, spec.d_model)
    if plan is not None and plan.hash is not None:
        if strange := [name for name in plan.trained if name not in shapes]:
            raise CheckpointError(f"{folder / PLAN}: trained: {quote(strange[0])} is no weight of the model")
        shapes = {name: shapes[name] for name in plan.trained}
    parallel_checkpoint.check_weights(folder, shapes)


def choose_base(weights: str | Path) -> tuple[str, str]:
    """Find the model that a run with adapters starts from: its folder (of a run, the newest checkpoint), or its GGUF
    file; and its hash."""
    path = Path(weights).expanduser()
    base = (path if path.is_file() else find(path)).absolute()
    return str(base), identify_base(base)


def identify_base(path: Path) -> str:
    """Hash what a model's weights are computed from: a GGUF file, a checkpoint by its manifest, or the architecture and
    tensor files of a folder; other files there may change. Raises OSError."""
    if path.is_file():
        return hash_file(path)
    if (path / MANIFEST).is_file():
        return identify(path)
    read = (each for each in sorted(path.iterdir()) if each.name in STATED or each.suffix in (".safetensors", ".bin"))
    return hash_text(json.dumps({each.name: hash_file(each) for each in read if each.is_file()}))


def find_base(plan: Adapters, folder: Path) -> Path:
    """Find the model that a checkpoint's adapters are for. Raises CheckpointError if it is not where it was, or is
    another (`ZOO_NO_VERIFY` leaves that out)."""
    assert plan.base is not None
    base, where = Path(plan.base), f"{folder / PLAN}: the adapters are for {shorten(plan.base)}, "
    try:
        there = base.exists()
        if there and is_verified() and identify_base(base) != plan.hash:
            found = "which has other weights now"
            raise CheckpointError(f"{where}{found} (those that the run began with; --no-verify reads it as it is)")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{where}which cannot be read, found {short(error)} (the model, or a link to it)"
        ) from None
    if not there:
        raise CheckpointError(f"{where}which is not there (the model, or a link to it)")
    return base


# ---------------------------------------------------------------- for peft


def save_for_peft(folder: Path, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write a checkpoint's adapters in peft's format, under the names of the Hugging Face model. Returns the config.

    Linears that the Hugging Face model fuses (GPT-2's c_attn) get one adapter whose rank is the sum of the adapters'
    ranks: the A matrices are stacked, the B matrices form a block diagonal. Raises CheckpointError if there are no
    adapters, if other weights were trained too, for adapters that peft has no layer for, and for values not finite.
    """
    plan = read_plan(folder)
    if plan is None:
        raise CheckpointError(f"{folder}: has no adapters (a checkpoint of a run with lora=…, or --to hf)")
    if plan.trained:
        first, *others = plan.trained
        found = f"found {first}{f' and {len(others)} more' if others else ''} trained beside them"
        raise CheckpointError(f"{folder}: adapters alone would not be the model, {found} (--to hf merges all)")
    spec = read_spec(folder)
    body = find_config(spec, _open_base(plan))[1]
    entries = [each for each in map_tensors(spec, body) if {_path_of(name) for name in each.ours} & {*plan.paths}]
    entries = [each for each in entries if each.ours[0].endswith(".weight")]
    refuse_unknown_to_peft(folder, entries)
    held = _read_tensors(plan, spec, folder, "cpu")
    tensors, ranks = {}, {}
    for entry in entries:
        module = entry.theirs[0].removesuffix(".weight")
        a, b = fuse_adapters(entry, held)
        ranks[module] = len(a)
        tensors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
    config = describe_for_peft(plan, ranks, any(isinstance(step, Transpose) for e in entries for step in e.steps))
    refuse_to_replace(out, "adapters", PEFT, source=folder, force=force)
    for name, each in tensors.items():
        refuse_nonfinite(name, each)
    with replace_folder(out) as draft:
        (draft / PEFT[0]).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_tensors(tensors, draft / PEFT[1])
    return config


def _open_base(plan: Adapters) -> hf.HFSource | None:
    """Open the Hugging Face folder that the adapted weights came from, for its tensor names; None if it is gone."""
    if plan.base is None or not (Path(plan.base) / "config.json").is_file():
        return None
    return hf.open_folder(Path(plan.base))[0]


def _path_of(name: str) -> str:
    return name.rpartition(".")[0]


def refuse_unknown_to_peft(folder: Path, entries: Sequence[Entry]) -> None:
    """Raise CheckpointError for adapted weights that peft's LoRA has no layer for: stacked experts, a line each, and
    transposed weights mixed with others."""
    faults = [
        f"{folder}: {name} is adapted, and peft adapts no stacked experts (--to hf merges all)"
        for entry in entries
        if entry.experts or entry.stacked
        for name in entry.ours
    ]
    turned = {any(isinstance(step, Transpose) for step in entry.steps) for entry in entries}
    if len(turned) > 1:
        faults.append(f"{folder}: some of the adapted weights are transposed there, and peft takes all or none so")
    if faults:
        raise CheckpointError(*faults)


def fuse_adapters(entry: Entry, held: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Join the adapters of an entry's Linears into A [R, d_in] and B [d_out, R]; R is the sum of the adapters'
    ranks."""
    paths = [_path_of(name) for name in entry.ours]
    found = {path: (held[f"{path}.lora.a"], held[f"{path}.lora.b"]) for path in paths if f"{path}.lora.a" in held}
    total, start, columns = sum(len(a) for a, _ in found.values()), 0, []
    for path, shape in zip(paths, entry.shapes, strict=True):
        column = torch.zeros(shape[0], total)
        if path in found:
            rank = len(found[path][0])
            column[:, start : start + rank] = found[path][1]
            start += rank
        columns.append(column)
    for step in reversed(entry.steps):
        columns = columns if isinstance(step, Transpose) else step.write(columns, entry)
    return torch.cat([a for a, _ in found.values()]), columns[0].contiguous()


def describe_for_peft(plan: Adapters, ranks: Mapping[str, int], transposed: bool) -> dict[str, Any]:
    """Make peft's adapter_config.json."""
    larger = {module: rank for module, rank in ranks.items() if rank != plan.rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": plan.base,
        "inference_mode": True,
        "r": plan.rank,
        "lora_alpha": plan.alpha,
        "lora_dropout": plan.dropout,
        "target_modules": sorted(ranks),
        "rank_pattern": larger,
        "alpha_pattern": {module: plan.scale * rank for module, rank in larger.items()},
        "bias": "none",
        "fan_in_fan_out": transposed,
        "use_rslora": False,
    }
