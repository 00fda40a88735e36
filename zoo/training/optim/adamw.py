"""AdamW, with states in the weights' dtype or in 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat

from zoo.errors import ConfigError, short
from zoo.lazy import torch
from zoo.training.optim.base import Beta, Optim, Scale, can_fuse, set_rates, unscaled

if TYPE_CHECKING:
    from torch import device as Device
    from torch.optim import Optimizer


class AdamW(Optim, kind="adamw"):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2017). Norm scales and biases are not decayed."""

    lr: PositiveFloat = 1e-3
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1

    def build(self, model: Any, scale: Scale = unscaled) -> Optimizer:
        groups = self.make_groups(model, scale)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=can_fuse(groups))


class AdamW8bit(Optim, kind="adamw8bit"):
    """AdamW whose moments are codes of 8 bits with a scale for each 256 (Dettmers et al., 2021), as torchao has it.

    Tensors of fewer than 4,096 elements, or no multiple of 256, keep moments in their own dtype. torchao compiles the
    update, once for each shape.
    """

    whole_step: ClassVar[str | None] = "packs its states in 8 bits by itself"
    by_part: ClassVar[bool] = False

    lr: PositiveFloat = 1e-3
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1

    def check_device(self, device: Device) -> None:
        """Raise ConfigError where torchao is missing, or cannot compile its update for this device."""
        parameter = torch.nn.Parameter(torch.zeros(16, 256, device=device))
        optimizer = _import_torchao()([parameter])
        parameter.grad = torch.zeros_like(parameter)
        try:
            optimizer.step()
        except (RuntimeError, NotImplementedError, OSError) as error:
            reason = f"cannot run on {device}, found {short(error)}"
            raise ConfigError(f"optim: adamw8bit {reason} (optim=adamw would do)") from error

    def build(self, model: Any, scale: Scale = unscaled) -> Optimizer:
        groups = self.make_groups(model, scale)
        optimizer = _import_torchao()(groups, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=0.0)
        _make_states(optimizer)
        return optimizer


def _import_torchao() -> Any:
    try:
        from torchao.optim import AdamW8bit as Quantised
    except ImportError as error:
        needs = f"needs torchao, found {short(error)}"
        raise ConfigError(f"optim: adamw8bit {needs} (pip install torchao, or optim=adamw)") from error
    return Quantised


def _make_states(optimizer: Any) -> None:
    """Let torchao make its states before the first step, so that a checkpoint can be read into them: a step at rate 0
    with gradients of 0, which changes no weight."""
    set_rates(optimizer, 0.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for state in optimizer.state.values():
        state["step"].zero_()
