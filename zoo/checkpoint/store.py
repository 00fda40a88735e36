"""Our checkpoints: a folder with the weights, the architecture that they are of, the tokenizer, and what training needs
to go on. A folder of that name is always whole: it is written under another name, flushed to the disk and renamed.

    RUN/checkpoints/latest               the name of the newest
    RUN/checkpoints/step-000400/
        zoo.yaml  model.safetensors      the model: `load` needs no more
        tokenizer.json …                 its tokenizer, where it has one
        training.json  training.safetensors    of a run: counters; optimizer and random states
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from zoo.disk import replacing, whole
from zoo.errors import CheckpointError, did_you_mean, short
from zoo.grammar import to_dict
from zoo.grammar.saved import FORMAT, check_format, read_spec
from zoo.lazy import torch
from zoo.run.builder import build, pick_device, torch_dtype
from zoo.runs import ARCHITECTURE, CHECKPOINTS, LATEST, WEIGHTS, find, steps
from zoo.spec import table

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

COUNTERS, STATES = "training.json", "training.safetensors"


# ---------------------------------------------------------------- a model


def save_model(model: Any, folder: str | Path, tokenizer: Any = None) -> Path:
    """Writes weights, architecture and tokenizer to `folder`, whole or not at all.

    An older checkpoint there is replaced. Raises CheckpointError when something else is there.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / ARCHITECTURE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: holds something that is no checkpoint of ours (a new folder would do)")
    with whole(folder) as draft:
        write_model(model, draft, tokenizer)
    return folder


def write_model(model: Any, folder: Path, tokenizer: Any = None) -> None:
    """The files of `save_model`, into a folder that is there."""
    from safetensors.torch import save_file

    node = {"format": FORMAT, "model": to_dict(model.spec)}
    text = yaml.safe_dump(node, sort_keys=False, default_flow_style=None, width=120)
    (folder / ARCHITECTURE).write_text(text, encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    if tokenizer is not None:
        tokenizer.save(folder)


def load(path: str | Path, dtype: Any = None, device: str = "cpu") -> nn.Module:
    """The model of a checkpoint, of a run folder's newest one, or of a Hugging Face folder, in eval mode.

    `dtype` is the file's unless given. Raises CheckpointError with a line for each thing that is wrong, before any
    weight is read.
    """
    from zoo.checkpoint import hf

    folder = find(path)
    return load_model(folder, dtype, device) if (folder / ARCHITECTURE).is_file() else hf.load(folder, dtype, device)


def load_model(folder: str | Path, dtype: Any = None, device: str = "cpu") -> nn.Module:
    """The model of one checkpoint folder, in eval mode."""
    from safetensors.torch import load_file

    folder = Path(folder)
    spec = read_spec(folder)
    where = pick_device(device)
    check_tensors(folder / WEIGHTS, table(spec, spec.d_model))
    tensors = load_file(folder / WEIGHTS, device=str(where))
    if dtype is not None:
        tensors = {name: each.to(torch_dtype(dtype)) for name, each in tensors.items()}
    model = build(spec, device="meta")
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def check_tensors(file: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Holds names and shapes in a file's header against those expected. Raises CheckpointError, a line a difference."""
    found = read_shapes(file)
    unexpected = [name for name in found if name not in expected]
    faults = [
        f"{file}: {name} is missing, of shape {list(shape)}{did_you_mean(name, unexpected)}"
        for name, shape in expected.items()
        if name not in found
    ]
    faults += [f"{file}: {name} belongs to no part of the model (leave it out)" for name in unexpected]
    faults += [
        f"{file}: {name} has shape {list(found[name])}, the model's is {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if faults:
        raise CheckpointError(*faults)


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Each tensor's shape, from the header alone. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file (the checkpoint is not whole)") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read, found {short(error)} (a safetensors file)") from error


# ---------------------------------------------------------------- a run


@dataclass
class Resumable:
    """What a run needs beside its weights. `counters` is plain data of the run's own."""

    model: Any
    optimizer: Optimizer
    counters: dict[str, Any]


def save_run(run: Path, step: int, state: Resumable, tokenizer: Any, keep: int) -> Path:
    """Writes the checkpoint of a step, points `latest` at it, then removes all but the `keep` newest."""
    root = run / CHECKPOINTS
    with whole(root / f"step-{step:06}") as draft:
        write_model(state.model, draft, tokenizer)
        write_state(draft, state)
    with replacing(root / LATEST) as draft:
        draft.write_text(f"step-{step:06}\n", encoding="utf-8")
    for old in steps(root)[:-keep]:
        shutil.rmtree(old)
    return root / f"step-{step:06}"


def write_state(folder: Path, state: Resumable) -> None:
    """The optimizer's tensors by parameter name, the random states and the counters."""
    from safetensors.torch import save_file

    tensors = {f"random.{name}": each for name, each in random_states().items()}
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}/{key}"] = torch.as_tensor(value)
    save_file({name: each.contiguous() for name, each in tensors.items()}, folder / STATES)
    (folder / COUNTERS).write_text(json.dumps({"format": FORMAT, **state.counters}, indent=2) + "\n", encoding="utf-8")


def load_run(folder: Path, model: Any, optimizer: Optimizer) -> dict[str, Any]:
    """Puts weights, optimizer and random states back as they were; gives the counters. Raises CheckpointError."""
    from safetensors.torch import load_file

    counters = read_counters(folder)
    check_tensors(folder / WEIGHTS, table(model.spec, model.spec.d_model))
    device = next(model.parameters()).device
    model.load_state_dict(load_file(folder / WEIGHTS, device=str(device)))
    names = {name: parameter for name, parameter in model.named_parameters()}
    read_shapes(folder / STATES)  # for its message
    for name, tensor in load_file(folder / STATES).items():
        kind, _, rest = name.partition(".")
        if kind == "random":
            restore_random(rest, tensor)
        else:
            owner, _, key = rest.rpartition("/")
            restore_optimizer(optimizer, names[owner], key, tensor)
    return counters


def read_counters(folder: Path) -> dict[str, Any]:
    """What a run counted, as its checkpoint has it. Raises CheckpointError."""
    file = folder / COUNTERS
    try:
        counters = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: a model alone, no run goes on from it (a checkpoint of a run)") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read, found {short(error)} (a file that zoo wrote)") from error
    check_format(file, counters.get("format"))
    return counters


def restore_optimizer(optimizer: Optimizer, parameter: Tensor, key: str, value: Tensor) -> None:
    """One tensor of a parameter's state. Step counters are beside the weights when fused, else on the CPU."""
    own = optimizer.state[parameter]
    beside = value.ndim > 0 or any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    own[key] = value.to(parameter.device) if beside else value


def random_states() -> dict[str, Tensor]:
    """torch's generators: what dropout and the like draw from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), **{f"cuda:{index}": state for index, state in enumerate(cuda)}}


def restore_random(device: str, state: Tensor) -> None:
    if device == "cpu":
        torch.set_rng_state(state)
    elif torch.cuda.is_available() and int(device.removeprefix("cuda:")) < torch.cuda.device_count():
        torch.cuda.set_rng_state(state, device)
