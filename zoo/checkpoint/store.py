"""Save and load our own checkpoints: safetensors, the architecture as YAML, and what training needs to resume.

A checkpoint's folder is always whole: it is written under another name, flushed to the disk and renamed.

    RUN/checkpoints/latest               the name of the newest checkpoint
    RUN/checkpoints/step-000400/
        zoo.yaml  model.safetensors      the model: `load` needs no more
        tokenizer.json …                 its tokenizer, where it has one
        adapter.json adapter.safetensors  of a run with low-rank adapters: these, beside weights without them
        training.json                  of a run: its counters
        training.safetensors           of a run: states of the optimizer and of the random generators
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from zoo.checkpoint import adapters
from zoo.checkpoint.files import BESIDE, read_header, refuse_to_replace, write_tensors
from zoo.checkpoint.headers import check_tensors
from zoo.disk import remove_drafts, remove_folder, replace_folder, write_text
from zoo.errors import CheckpointError, short
from zoo.grammar import to_dict
from zoo.grammar.saved import FORMAT, check_format, read_spec
from zoo.lazy import torch
from zoo.run.builder import build, pick_device, resolve_dtype
from zoo.runs import ARCHITECTURE, CHECKPOINTS, LATEST, WEIGHTS, find, steps
from zoo.spec import table

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

COUNTERS, STATES = "training.json", "training.safetensors"


# ---------------------------------------------------------------- a model


def save_model(model: Any, folder: str | Path, tokenizer: Any = None) -> Path:
    """Write weights, architecture and tokenizer to `folder`, atomically.

    Replaces an older checkpoint there. Raises CheckpointError when something else is there.
    """
    folder = Path(folder)
    refuse_to_replace(folder, "a model of ours", (ARCHITECTURE, WEIGHTS, *adapters.FILES, *BESIDE))
    with replace_folder(folder) as draft:
        write_model(model, draft, tokenizer)
    return folder


def write_model(model: Any, folder: Path, tokenizer: Any = None) -> None:
    """Write the files of `save_model` into an existing folder."""
    node = {"format": FORMAT, "model": to_dict(model.spec)}
    text = yaml.safe_dump(node, sort_keys=False, default_flow_style=None, width=120)
    (folder / ARCHITECTURE).write_text(text, encoding="utf-8")
    write_tensors(adapters.write(model, folder), folder / WEIGHTS)
    if tokenizer is not None:
        tokenizer.save(folder)


def load(path: str | Path, dtype: Any = None, device: str = "cpu") -> nn.Module:
    """Load the model of a checkpoint, of a run's newest one, or of a Hugging Face folder, in eval mode.

    `dtype` is the file's unless given. Raises CheckpointError with a line for each fault, before any weight is read.
    """
    from zoo.checkpoint import hf

    folder = find(path)
    return load_model(folder, dtype, device) if (folder / ARCHITECTURE).is_file() else hf.load(folder, dtype, device)


def load_spec(path: str | Path) -> Any:
    """Load the architecture of what `load` takes; no weight is read. Raises CheckpointError."""
    from zoo.checkpoint import hf

    folder = find(path)
    return read_spec(folder) if (folder / ARCHITECTURE).is_file() else hf.compose_spec(hf.open_folder(folder)[0].body)


def load_model(folder: str | Path, dtype: Any = None, device: str = "cpu") -> nn.Module:
    """Load the model of one of our checkpoint folders, in eval mode. Adapters are merged into its weights."""
    from safetensors.torch import load_file

    folder = Path(folder)
    spec = read_spec(folder)
    where = pick_device(device)
    check_tensors(folder / WEIGHTS, table(spec, spec.d_model))
    tensors = load_file(folder / WEIGHTS, device=str(where))
    if dtype is not None:
        tensors = {name: each.to(resolve_dtype(dtype)) for name, each in tensors.items()}
    model = build(spec, device="meta")
    model.load_state_dict(tensors, assign=True)
    adapters.merge(model, folder)
    return model.eval()


# ---------------------------------------------------------------- a run


@dataclass
class Resumable:
    """What a run resumes from. `counters` is plain data, which the run defines."""

    model: Any
    optimizer: Optimizer
    counters: dict[str, Any]


def save_run(run: Path, step: int, state: Resumable, tokenizer: Any, keep: int) -> Path:
    """Write the checkpoint of a step, point `latest` at it, then delete all but the `keep` newest.

    The one just written always stays. Those of later steps, which a run has when it was set back to an earlier one,
    stay until the run comes past them.
    """
    root = run / CHECKPOINTS
    folder = root / f"step-{step:06}"
    with replace_folder(folder) as draft:
        write_model(state.model, draft, tokenizer)
        write_state(draft, state)
    write_text(root / LATEST, f"{folder.name}\n")
    remove_drafts(root, "step-*")  # of checkpoints that a killed process was writing or deleting
    there = steps(root)
    earlier = there[: there.index(folder)]
    for old in earlier[: len(earlier) - min(max(keep - 1, 0), len(earlier))]:
        remove_folder(old)
    return folder


def write_state(folder: Path, state: Resumable) -> None:
    """Write the optimizer's tensors by parameter name, the states of the random generators and the counters."""
    tensors = {f"random.{name}": each for name, each in read_random_states().items()}
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}/{key}"] = torch.as_tensor(value)
    write_tensors(tensors, folder / STATES)
    write_counters(folder, state.counters)


def write_counters(folder: Path, counters: Mapping[str, Any]) -> None:
    """Write a run's counters into a checkpoint, or replace those that are there."""
    write_text(folder / COUNTERS, json.dumps({"format": FORMAT, **counters}, indent=2) + "\n")


def load_run(folder: Path, model: Any, optimizer: Optimizer) -> dict[str, Any]:
    """Restore weights, optimizer and random generators from a checkpoint; return its counters. Raises
    CheckpointError."""
    from safetensors.torch import load_file

    counters = read_counters(folder)
    check_tensors(folder / WEIGHTS, table(model.spec, model.spec.d_model))
    device = next(model.parameters()).device
    own = load_file(folder / WEIGHTS, device=str(device))
    model.load_state_dict({**own, **adapters.read(model, folder)})
    names = {name: parameter for name, parameter in model.named_parameters()}
    read_header(folder / STATES)  # raises where the file is broken
    for name, tensor in load_file(folder / STATES).items():
        kind, _, rest = name.partition(".")
        if kind == "random":
            restore_random(rest, tensor)
        else:
            owner, _, key = rest.rpartition("/")
            restore_optimizer(optimizer, names[owner], key, tensor)
    return counters


def read_counters(folder: Path) -> dict[str, Any]:
    """Read the counters of a run's checkpoint. Raises CheckpointError."""
    file = folder / COUNTERS
    try:
        counters = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: a model alone, no run goes on from it (a checkpoint of a run)") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read, found {short(error)} (a file that zoo wrote)") from error
    if not isinstance(counters, dict):
        raise CheckpointError(f"{file}: holds no counters, found {type(counters).__name__} (a file that zoo wrote)")
    check_format(file, counters.get("format"))
    return counters


def restore_optimizer(optimizer: Optimizer, parameter: Tensor, key: str, value: Tensor) -> None:
    """Set one tensor of a parameter's optimizer state. A fused optimizer has its step counters on the device, any
    other on the CPU."""
    own = optimizer.state[parameter]
    beside = value.ndim > 0 or any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    own[key] = value.to(parameter.device) if beside else value


def read_random_states() -> dict[str, Tensor]:
    """Read the states of torch's random generators, by device: dropout and the like draw from them."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), **{f"cuda:{index}": state for index, state in enumerate(cuda)}}


def restore_random(device: str, state: Tensor) -> None:
    """Set the state of a device's random generator, where the device is there."""
    if device == "cpu":
        torch.set_rng_state(state)
    elif torch.cuda.is_available() and int(device.removeprefix("cuda:")) < torch.cuda.device_count():
        torch.cuda.set_rng_state(state, device)
