"""The optimizers, by kind. The updates that torch lacks are in `update_rules` and `orthogonal`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from zoo.errors import ConfigError, short
from zoo.lazy import torch
from zoo.run.fastest_dtype import is_slow
from zoo.training.optim.base import Beta, Optim, can_fuse

if TYPE_CHECKING:
    from torch.optim import Optimizer

LEAST = 1e-16
"""Adafactor's lower bound on mean squared gradients. torch's default, float32's epsilon, exceeds the mean squared
gradients of a large model. The bound's square is used too, and must not be 0 in float32."""


class Adafactor(Optim, kind="adafactor"):
    """Adafactor: second moments as products of row and column means, and no first moment (Shazeer and Stern, 2018).

    Steps are relative: min(`lr`, 1/√t) times the tensor's RMS, or `min_rms` if that is larger. An update is scaled down
    to an RMS of at most `clip_rms`. β₂ at step t is 1 − t^`beta2_decay`. Weight decay is decoupled.
    """

    by_element: ClassVar[bool] = False
    by_part: ClassVar[bool] = False

    lr: PositiveFloat = 1e-2
    beta2_decay: Annotated[float, Field(lt=0)] = -0.8
    min_rms: PositiveFloat = 1e-3
    clip_rms: PositiveFloat = 1.0
    weight_decay: NonNegativeFloat = 0.0

    def make_rule(self, groups: list[dict[str, Any]], device: torch.device) -> Optimizer:
        from zoo.training.optim.update_rules import AdafactorOptimizer as Rule

        bounds = {"eps": LEAST, "min_rms": self.min_rms, "clip_rms": self.clip_rms}
        return Rule(groups, lr=self.lr, beta2_decay=self.beta2_decay, **bounds)


class AdamW(Optim, kind="adamw"):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2017). Norm scales and biases are not decayed."""

    lr: PositiveFloat = 1e-3
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1

    def make_rule(self, groups: list[dict[str, Any]], device: torch.device) -> Optimizer:
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=can_fuse(groups))


class AdamW8bit(AdamW, kind="adamw8bit"):
    """AdamW with moments of 8 bits and a scale for each 256 values (Dettmers et al., 2021), packed by torchao.

    Tensors with fewer than 4,096 elements, or not a multiple of 256, have moments in their own dtype. The update is
    compiled once for each shape.
    """

    whole_step: ClassVar[str | None] = "packs its states in 8 bits by itself"
    by_part: ClassVar[bool] = False

    def check_device(self, device: torch.device) -> None:
        """Raise ConfigError if torchao is missing, or cannot compile its update for this device."""
        parameter = torch.nn.Parameter(torch.zeros(16, 256, device=device))
        optimizer = self.make_rule([{"params": [parameter]}], device)
        parameter.grad = torch.zeros_like(parameter)
        try:
            optimizer.step()
        except (RuntimeError, NotImplementedError, OSError) as error:
            reason = f"cannot run on {device}, found {short(error)}"
            raise ConfigError(f"optim: adamw8bit {reason} (optim=adamw would do)") from error

    def make_rule(self, groups: list[dict[str, Any]], device: torch.device) -> Optimizer:
        try:
            from zoo.training.optim.eight_bits import EightBitAdamW
        except ImportError as error:
            needs = f"needs torchao, found {short(error)}"
            raise ConfigError(f"optim: adamw8bit {needs} (pip install torchao, or optim=adamw)") from error
        return EightBitAdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)


class Muon(Optim, kind="muon"):
    """Momentum, orthogonalised by Newton-Schulz iterations for matrices (Jordan et al., 2024).

    Muon steps the weight matrices inside layers, each expert's by itself. AdamW, with `betas` and `eps`, steps
    embeddings, heads, norms, biases, convolutions and all other vectors. The update of an [A, B] matrix is scaled by
    0.2·√max(A, B), which gives it the RMS of AdamW's update, so that AdamW's `lr` and `weight_decay` can be kept (Liu
    et al., 2025). `dtype` is the dtype of the iterations: auto takes bf16 where it is as fast as float32. The processes
    that hold a matrix or parts of it share the work: each orthogonalises some of the matrices.
    """

    by_matrix: ClassVar[bool] = True
    by_part: ClassVar[bool] = False
    gathers: ClassVar[bool] = True

    lr: PositiveFloat = 1e-3
    momentum: Beta = 0.95
    nesterov: bool = True
    iterations: PositiveInt = 5
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1

    def describe(self, device: torch.device) -> str | None:
        dtype = "float32" if self.choose_dtype(device) is torch.float32 else "bfloat16"
        why = ", the faster here" if self.dtype == "auto" else ""
        return f"{self.kind}: orthogonalises in {dtype}{why}"

    def choose_dtype(self, device: torch.device) -> torch.dtype:
        """Choose the dtype of the Newton-Schulz iterations on a device."""
        if self.dtype == "auto":
            return torch.float32 if is_slow(torch.bfloat16, device, training=True) else torch.bfloat16
        return torch.float32 if self.dtype == "fp32" else torch.bfloat16

    def make_rule(self, groups: list[dict[str, Any]], device: torch.device) -> Optimizer:
        from zoo.training.optim.orthogonal import MuonOptimizer

        return MuonOptimizer(groups, dtype=self.choose_dtype(device), fused=can_fuse(groups), **self.options())

    def options(self) -> dict[str, Any]:
        """Return the hyperparameters of the update rule, by name."""
        names = ("lr", "momentum", "nesterov", "iterations", "betas", "eps")
        return {name: getattr(self, name) for name in names}


class NorMuon(Muon, kind="normuon"):
    """Muon with the rows of each update, the neurons, divided by the root of their second moments (Li et al., 2025).

    `beta2` is the decay of a row's mean square. The update's RMS is 0.2, as AdamW's. Other settings are Muon's.
    """

    beta2: Beta = 0.95

    def make_rule(self, groups: list[dict[str, Any]], device: torch.device) -> Optimizer:
        from zoo.training.optim.orthogonal import NorMuonOptimizer as Rule

        options = {**self.options(), "beta2": self.beta2}
        return Rule(groups, dtype=self.choose_dtype(device), fused=can_fuse(groups), **options)


class SOAP(Optim, kind="soap"):
    """Adam in the slowly changing eigenbasis of Shampoo's preconditioner (Vyas et al., 2024).

    SOAP steps the weight matrices inside layers, each expert's by itself. AdamW, with `betas` and `eps`, steps all
    other tensors; the paper rotates the short side of embeddings and heads too. Every `precondition_frequency` steps
    the bases follow the preconditioners, whose decay is `shampoo_beta`. A side longer than `max_precondition_dim` is
    not rotated. The first step changes no matrix.
    """

    by_matrix: ClassVar[bool] = True
    by_element: ClassVar[bool] = False
    by_part: ClassVar[bool] = False
    whole_step: ClassVar[str | None] = "keeps bases of a tensor's sides, which are not cut or rounded with it"

    lr: PositiveFloat = 3e-3
    betas: tuple[Beta, Beta] = (0.95, 0.95)
    shampoo_beta: Beta = 0.95
    precondition_frequency: PositiveInt = 10
    max_precondition_dim: PositiveInt = 10_000
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1

    def make_rule(self, groups: list[dict[str, Any]], device: torch.device) -> Optimizer:
        from zoo.training.optim.eigenbasis import SOAPOptimizer as Rule

        names = ("lr", "betas", "eps", "shampoo_beta", "precondition_frequency", "max_precondition_dim")
        return Rule(groups, fused=can_fuse(groups), **{name: getattr(self, name) for name in names})


class ScheduleFree(Optim, kind="schedule_free"):
    """Schedule-free AdamW (Defazio et al., 2024): gradients are taken at y = (1 − β₁)·z + β₁·x, the step is applied to
    z, and the average x of all z, weighted by the squared rate, is evaluated and saved.

    `schedule` must be constant, with or without warm-up: the average replaces a decay.
    """

    averages: ClassVar[bool] = True

    lr: PositiveFloat = 2.5e-3
    betas: tuple[Annotated[float, Field(gt=0, lt=1)], Beta] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1

    def make_rule(self, groups: list[dict[str, Any]], device: torch.device) -> Optimizer:
        from zoo.training.optim.update_rules import ScheduleFreeAdamW

        return ScheduleFreeAdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)


class Lion(Optim, kind="lion"):
    """Lion: steps by the sign of an interpolation of momentum and gradient, with decoupled weight decay (Chen et al.,
    2023).

    Its steps are larger than AdamW's at the same rate: the paper divides `lr` by 3 to 10, and multiplies `weight_decay`
    by the same factor.
    """

    lr: PositiveFloat = 1e-4
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: NonNegativeFloat = 1.0

    def make_rule(self, groups: list[dict[str, Any]], device: torch.device) -> Optimizer:
        from zoo.training.optim.update_rules import LionOptimizer as Rule

        return Rule(groups, lr=self.lr, betas=self.betas)


class SGD(Optim, kind="sgd"):
    """Gradient descent with momentum (Polyak, 1964), or Nesterov's (1983). Weight decay is added to the gradient, not
    decoupled, as in torch."""

    lr: PositiveFloat = 0.1
    momentum: Beta = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            found = "nesterov looks ahead along the momentum, which is 0"
            raise ValueError(f"{found} (momentum above 0, or nesterov: false)")

    def make_rule(self, groups: list[dict[str, Any]], device: torch.device) -> Optimizer:
        from zoo.training.optim.update_rules import SGDOptimizer as Rule

        return Rule(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)
