"""Write the adapters of a checkpoint in peft's format, with the weights that were trained with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint import hf, store
from zoo.checkpoint.adapter_files import read_plan, read_tensors
from zoo.checkpoint.conversion import Entry, Transpose
from zoo.checkpoint.inverse import find_config
from zoo.checkpoint.mapping import map_tensors
from zoo.checkpoint.peft_reading import MAGNITUDES, PREFIX, SETTINGS, TENSORS, find_published
from zoo.checkpoint.stored import refuse_nonfinite
from zoo.checkpoint.tensor_files import refuse_to_replace, write_tensors
from zoo.disk import replace_folder
from zoo.errors import CheckpointError, FitsNoFamily
from zoo.families.described import CONFIG, write_json
from zoo.families.expression import evaluate_tree
from zoo.grammar.saved import read_spec
from zoo.lazy import Tensor, torch
from zoo.model_hub import name_snapshot

if TYPE_CHECKING:
    from zoo.checkpoint.stored import StoredTensors, WholeSpec
    from zoo.families.body import Body
    from zoo.run.adapters import Adapters

TABLE = "embedding.tokens.weight"
"""Zoo's name of the token embedding's weight."""


def save_for_peft(folder: Path, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write a checkpoint's adapters in peft's format, under the names of the Hugging Face model. Returns the config.

    Linears that the Hugging Face model fuses (GPT-2's c_attn) get one adapter whose rank is the sum of the adapters'
    ranks: the A matrices are stacked, the B matrices form a block diagonal. Modules whose own weights are not the
    base's (a new head, more tokens) are written whole (`modules_to_save`). Raises CheckpointError if there are no
    adapters, for weights that peft cannot hold (`refuse_unknown_to_peft`), and for values that are not finite.
    """
    plan = read_plan(folder)
    if plan is None:
        raise CheckpointError(f"{folder}: has no adapters (a checkpoint of a run with lora=…, or --to hf)")
    spec = read_spec(folder)
    body = _find_body(folder, spec, plan)
    laid = map_tensors(spec, body)
    entries = [each for each in laid if {_path_of(name) for name in each.ours} & {*plan.paths}]
    entries = [each for each in entries if each.ours[0].endswith(".weight")]
    own, _ = store.open_tensors(folder, spec, plan)
    changed = [each for each in laid if {*each.ours} & {*list_changed(plan, own)}]
    refuse_unknown_to_peft(folder, entries, changed)
    if plan.dora:
        refuse_partly_adapted(folder, entries, plan)
    held = read_tensors(plan, spec, folder, "cpu")
    tensors, ranks = {}, {}
    for entry in entries:
        module = entry.theirs[0].removesuffix(".weight")
        a, b = fuse_adapters(entry, held)
        ranks[module] = len(a)
        tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
        if plan.dora:
            tensors[f"{PREFIX}{module}{MAGNITUDES}"] = fuse_magnitudes(entry, held)
    whole = {name: each.contiguous() for entry in changed for name, each in entry.name_theirs(own)}
    if any(TABLE in entry.ours for entry in changed) and getattr(spec.head, "tied", False):
        whole[f"{_find_tied_head(folder, body)}.weight"] = own[TABLE].clone()  # peft ties it to its copy of the table
    tensors |= {f"{PREFIX}{name}": each for name, each in whole.items()}
    config = describe_for_peft(plan, spec, ranks, entries)
    if whole:
        config |= {"modules_to_save": sorted({_path_of(name) for name in whole})}
        config |= {"ensure_weight_tying": getattr(spec.head, "tied", False)}
    refuse_to_replace(out, "adapters", (SETTINGS, TENSORS), source=folder, force=force)
    for name, each in tensors.items():
        refuse_nonfinite(name, each)
    with replace_folder(out) as draft:
        write_json(draft / SETTINGS, config)
        write_tensors(tensors, draft / TENSORS)
    return config


def list_changed(plan: Adapters, own: StoredTensors) -> Iterator[str]:
    """Yield the `trained` weights whose values differ from the base's. If the checkpoint has no hash of its base,
    nothing is read, and all of them are yielded."""
    base = None if plan.hash is None or plan.base is None else store.open_model(plan.base, torch.float32).tensors
    for name in plan.trained:
        there = None if base is None or name not in base else base[name]
        if there is None or there.shape != own[name].shape or not torch.equal(there.to(own[name].dtype), own[name]):
            yield name


def _find_tied_head(folder: Path, body: Body) -> str:
    """Find the Hugging Face model's head that is tied to its table. Raises CheckpointError if its family names none."""
    row = next((body.keys[name] for name in ("head.out", "head.out.weight") if body.keys.get(name)), None)
    theirs = None if row is None else evaluate_tree(row, body.fields)
    if theirs is None:
        found = "the token table is trained, and the head that is tied to it has no name in the family's map"
        raise CheckpointError(f"{folder}: {found} (--to hf merges all)")
    return theirs.replace("~", body.prefix).removesuffix(".weight")


def _find_body(folder: Path, spec: WholeSpec, plan: Adapters) -> Body:
    """Find the Hugging Face model whose tensor names are written: of the class of the adapters' base or, if that has no
    folder or does not fit, of the first class that describes the Spec."""
    if plan.base is not None and (Path(plan.base) / CONFIG).is_file():
        with suppress(FitsNoFamily):
            return find_config(spec, hf.open_folder(Path(plan.base))[0])[1]
    return find_published(spec, folder, "--to hf merges the adapters, for the classes of zoo.hf")


def _path_of(name: str) -> str:
    return name.rpartition(".")[0]


def refuse_unknown_to_peft(folder: Path, entries: Sequence[Entry], changed: Sequence[Entry]) -> None:
    """Raise CheckpointError, with a line for each weight that peft's LoRA cannot hold. These are adapters of stacked
    experts, adapters of a module whose weights are only partly transposed, and `changed` weights that are adapted too,
    or that are not the weight or bias of a module."""
    faults = [
        f"{folder}: {name} is adapted, and peft adapts no stacked experts (--to hf merges all)"
        for entry in entries
        if entry.experts or entry.stacked
        for name in entry.ours
    ]
    faults += [
        f"{folder}: {name} is {what}, and peft saves whole modules that are not adapted (--to hf merges all)"
        for entry in changed
        for name in entry.ours
        for what in (["adapted and trained"] if entry in entries else [] if _is_leaf(entry) else ["no module's own"])
    ]
    turned = {any(isinstance(step, Transpose) for step in entry.steps) for entry in entries}
    if len(turned) > 1:
        faults.append(f"{folder}: some of the adapted weights are transposed there, and peft takes all or none so")
    if faults:
        raise CheckpointError(*faults)


def refuse_partly_adapted(folder: Path, entries: Sequence[Entry], plan: Adapters) -> None:
    """Raise CheckpointError if a module of the Hugging Face model fuses Linears with and without magnitudes (DoRA)."""
    for entry in entries:
        if without := [name for name in entry.ours if _path_of(name) not in plan.paths]:
            found = f"{without[0]} has no magnitudes, and is one matrix there with those that have"
            raise CheckpointError(f"{folder}: {found} (--to hf merges all)")


def _is_leaf(entry: Entry) -> bool:
    return all(name.endswith((".weight", ".bias")) for name in entry.theirs)


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


def fuse_magnitudes(entry: Entry, held: Mapping[str, Tensor]) -> Tensor:
    """Join the magnitudes of an entry's Linears, all of which are adapted."""
    columns = [held[f"{_path_of(name)}.lora.m"].unsqueeze(1) for name in entry.ours]
    for step in reversed(entry.steps):
        columns = columns if isinstance(step, Transpose) else step.write(columns, entry)
    return columns[0].squeeze(1).contiguous()


def name_task(spec: WholeSpec) -> str | None:
    """Name a model's task by its head, as peft's `TaskType`; None for a head that peft has no class for."""
    *encoders, last = spec.towers().values()
    if last.head.kind == "none":
        return "FEATURE_EXTRACTION"
    if last.head.predicts_tokens:
        return "SEQ_2_SEQ_LM" if encoders else "CAUSAL_LM" if last.causal else None
    return {"sequence": "SEQ_CLS", "regression": "SEQ_CLS", "token": "TOKEN_CLS"}.get(last.head.kind)


def describe_for_peft(
    plan: Adapters, spec: WholeSpec, ranks: Mapping[str, int], entries: Sequence[Entry]
) -> dict[str, Any]:
    """Make peft's adapter_config.json."""
    larger = {module: rank for module, rank in ranks.items() if rank != plan.rank}
    base, revision = (plan.base and name_snapshot(Path(plan.base))) or (plan.base, None)
    return {
        "peft_type": "LORA",
        "task_type": name_task(spec),
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": plan.rank,
        "lora_alpha": plan.alpha,
        "lora_dropout": plan.dropout,
        "target_modules": sorted(ranks),
        "rank_pattern": larger,
        "alpha_pattern": {module: plan.scale * rank for module, rank in larger.items()},
        "bias": "none",
        "fan_in_fan_out": any(isinstance(step, Transpose) for each in entries for step in each.steps),
        "use_rslora": False,
        "use_dora": plan.dora,
    }
