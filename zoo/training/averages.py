"""Average the weights of a run: exponentially over its updates (EMA), or over its last checkpoints (LAWA)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from zoo.checkpoint.parallel_checkpoint import is_sharded, open_weights
from zoo.checkpoint.stored import StoredTensors
from zoo.checkpoint.tensor_files import TensorReader, read_header
from zoo.distributed.sharded_tensors import ALL, Shares, drop_gathered, own_part
from zoo.errors import CheckpointError
from zoo.lazy import Tensor, torch
from zoo.runs import ADAPTERS, WEIGHTS
from zoo.spec import Spec

if TYPE_CHECKING:
    from torch.nn import Parameter

    from zoo.run.layer import Model

    Tensors = Mapping[str, Tensor]


class EMA(Spec, axis="ema", kind="ema", default="ema"):
    """An exponential moving average of the weights: e ← d·e + (1 − d)·w after each update."""

    decay: Annotated[float, Field(gt=0, lt=1)]
    """The decay d. `ema=0.999` sets only d."""
    warmup: bool = False
    """Whether d is at most (1 + t) / (10 + t) at update t, so that the initial weights are soon forgotten (the rule of
    TensorFlow's ExponentialMovingAverage)."""

    def decay_at(self, step: int) -> float:
        """Return the decay at an update, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay


def _read_decay(value: object) -> Any:
    return {"decay": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


Average = Annotated[EMA, BeforeValidator(_read_decay)]
"""An EMA, or only its decay as a number."""


class MovingAverage:
    """The moving average of a model's trained parameters, by name, in float32 or wider: rounding to 16 bits
    could keep it from changing."""

    def __init__(self, settings: EMA, model: Model) -> None:
        self.settings = settings
        self.weights = {
            name: each.detach().to(torch.promote_types(each.dtype, torch.float32), copy=True)
            for name, each in list_trained(model).items()
        }

    def update(self, model: Model, step: int, skipped: Tensor | None = None) -> None:
        """Update the average with the weights after update `step`, counted from 1, unless `skipped` is 1."""
        now = [own_part(each.detach()) for each in list_trained(model).values()]
        mine = [own_part(each) for each in self.weights.values()]
        take_in = torch.optim.swa_utils.get_ema_multi_avg_fn(self.settings.decay_at(step))
        if skipped is None and all(each.dtype is own.dtype for each, own in zip(now, mine, strict=True)):
            take_in(mine, now, step)
            return
        for each, own in zip(now, mine, strict=True):  # one by one, or float32 copies of all would exist at once
            if skipped is None:
                take_in([own], [each.to(own.dtype)], step)
            else:
                share = (1 - skipped.double()) * (1 - self.settings.decay_at(step))
                own.lerp_(each.to(own.dtype), share.to(own.dtype))

    def restore(self, folder: Path, shares: Shares = ALL) -> None:
        """Read this process's part of the average from a checkpoint. Raises CheckpointError if the checkpoint's weights
        are missing or damaged."""
        found = read_weights(folder)
        for name, each in self.weights.items():
            each.copy_(shares.take_part(name, found[name], each))


def list_trained(model: Model) -> dict[str, Parameter]:
    """List the parameters that train, by name. Averages of other parameters would not differ from them."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def read_weights(folder: Path) -> Tensors:
    """Open the tensors in a checkpoint, including its adapters. Raises CheckpointError if they are missing or
    damaged."""
    if not is_sharded(folder) and not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder / WEIGHTS}: is not there (a checkpoint that this run wrote has it)")
    own = open_weights(folder)
    if not (folder / ADAPTERS).is_file():
        return own
    adapters = read_header(folder / ADAPTERS)
    forms = {name: each.make_empty("meta") for name, each in adapters.items()}
    return StoredTensors(forms, TensorReader(folder, adapters).__getitem__).under(own)


def average_checkpoints(folders: Iterable[Path], model: Model) -> Tensors:
    """Average a model's trained parameters with those of earlier checkpoints (LAWA; Kaddour, 2022), in float64. Raises
    CheckpointError if a checkpoint is missing or damaged."""
    trained = list_trained(model)
    sums = {name: each.detach().double() for name, each in trained.items()}
    count = 1
    for folder in folders:
        found = read_weights(folder)
        for name, total in sums.items():
            total += found[name].to(total.device)
        count += 1
    return {name: (total / count).to(trained[name].dtype) for name, total in sums.items()}


@contextmanager
def use_weights(model: Model, weights: Tensors) -> Iterator[None]:
    """Give a model other weights inside the block, and afterwards its own again, bit for bit."""
    parameters = dict(model.named_parameters())
    held = {name: parameters[name].detach().clone() for name in weights if name in parameters}
    with torch.no_grad():
        for name in held:
            parameters[name].copy_(weights[name])
    drop_gathered(model)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, each in held.items():
                parameters[name].copy_(each)
        drop_gathered(model)
