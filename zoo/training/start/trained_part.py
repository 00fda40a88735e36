"""Find which part of a model was trained, from the settings of its run or the adapters in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo import runs
from zoo.checkpoint.adapter_files import read_plan
from zoo.checkpoint.finding import find
from zoo.compose.targets import read_yaml
from zoo.grammar.saved import read_spec
from zoo.spec import Buffer, tensors
from zoo.training.start.lora import OWN
from zoo.untrusted.json_file import JsonShape, check_shape


class PartSettings(JsonShape):
    """The keys of a run's config.yaml that select the trained part of the model."""

    lora: dict[str, Any] | None = None
    freeze: list[str] | None = None
    train: list[str] | None = None


def find_trained_part(path: Path) -> dict[str, Any]:
    """Find the settings `lora`, `freeze` and `train` with which the model of a folder (a run, a checkpoint or an
    adapter) was trained; empty for a model that was trained as a whole. Raises CheckpointError for faulty files."""
    folder = find(path)
    if (run := runs.find_run(folder)) is not None:
        config = check_shape(read_yaml(run / runs.CONFIG), PartSettings, str(run / runs.CONFIG))
        return {name: config[name] for name in PartSettings.model_fields if config.get(name)}
    if (plan := read_plan(folder)) is None:
        return {}
    spec = read_spec(folder)
    buffers = {name for name, part, _ in tensors(spec, spec.d_model) if isinstance(part, Buffer)}
    lora = {**{name: getattr(plan, name) for name in OWN}, "on": list(plan.paths), "quantise": plan.quantise}
    return {"lora": lora, "train": [name for name in plan.trained if name not in buffers]}
