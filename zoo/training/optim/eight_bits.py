"""AdamW with 8-bit moments, as in torchao, whose updates the device itself can skip."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import disable_cache_limit
from torchao.optim.quant_utils import dequant_with_qmap, quantize_8bit_with_qmap, scale_tensor
from torchao.optim.subclass_8bit import OptimState8bit

from zoo.costs.states import BLOCK, SMALL
from zoo.distributed.sharded_tensors import own_part
from zoo.training.optim.update_rules import Groups, TensorRule

Moment = tuple[Tensor, ...]
"""The plain tensors of a moment: (codes, scales, table of values) for 8 bits, (values,) otherwise."""


class EightBitAdamW(TensorRule):
    """AdamW whose moments have 8 bits and a scale for each 256 values (Dettmers et al., 2021).

    States and updates are bit-identical to those of torchao's AdamW8bit, which cannot skip an update on the device.
    """

    def __init__(self, groups: Groups, **options: Any) -> None:
        super().__init__(groups, **options)
        for group in self.param_groups:  # a checkpoint is read into states that are there
            for parameter in group["params"]:
                self.state[parameter] = self.begin(group, parameter)

    def begin(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        own = own_part(parameter.detach())
        step = torch.zeros((), dtype=torch.float32, device=own.device)
        if own.numel() < SMALL or own.numel() % BLOCK:
            return {"step": step, "exp_avg": torch.zeros_like(own), "exp_avg_sq": torch.zeros_like(own)}
        zeros = partial(OptimState8bit.zeros, own.shape, block_size=BLOCK, device=own.device, dtype=own.dtype)
        return {"step": step, "exp_avg": zeros(signed=True), "exp_avg_sq": zeros(signed=False)}

    def step_one(self, group: dict[str, Any], weight: Tensor, gradient: Tensor, state: dict[str, Any]) -> None:
        skipped = torch.zeros((), dtype=torch.bool, device=weight.device) if self._skipped is None else self._skipped
        step = state["step"].to(weight.device)  # a checkpoint's is on the CPU
        state["step"] = torch.where(skipped, step, step + 1)
        mean, square = list_tensors(state["exp_avg"]), list_tensors(state["exp_avg_sq"])
        rate = torch.tensor(group["lr"], dtype=torch.float32)  # a number would be a constant of the compiled update
        constants = {"betas": group["betas"], "eps": group["eps"], "decay": group["weight_decay"]}
        with disable_cache_limit():  # one for each shape
            update_tensor(weight.detach(), gradient, step + 1, mean, square, rate, skipped, **constants)


def list_tensors(moment: Tensor) -> Moment:
    """List the plain tensors of a moment."""
    return (moment.codes, moment.scale, moment.qmap) if isinstance(moment, OptimState8bit) else (moment,)


@torch.compile(fullgraph=True, dynamic=False)
def update_tensor(
    weight: Tensor,
    gradient: Tensor,
    step: Tensor,
    mean: Moment,
    square: Moment,
    rate: Tensor,
    skipped: Tensor,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> None:
    """Update a tensor and its moments in place, in float32, unless the update is `skipped`."""
    (first, second), value, gradient = betas, weight.float(), gradient.float()
    value = value - rate * decay * value
    m, v = read_moment(mean).lerp(gradient, 1 - first), read_moment(square).lerp(gradient.square(), 1 - second)
    root = v.sqrt() / (1 - second**step).sqrt() + eps
    value = value - rate * (m / (1 - first**step)) / root
    found = (value, *pack_moment(m, mean), *pack_moment(v, square))
    for old, new in zip((weight, *mean[:2], *square[:2]), found, strict=True):  # the tables stay
        old.copy_(torch.where(skipped, old, new.to(old.dtype)))


def read_moment(moment: Moment) -> Tensor:
    """Compute a moment's values in float32."""
    if len(moment) == 1:
        return moment[0].float()
    codes, scale, table = moment
    return dequant_with_qmap(codes, table, scale)


def pack_moment(value: Tensor, moment: Moment) -> Moment:
    """Pack new values in the form of `moment`: as codes and scales, or as plain values."""
    if len(moment) == 1:
        return (value,)
    scaled, scale = scale_tensor(value, BLOCK)
    return quantize_8bit_with_qmap(scaled, moment[2]), scale
