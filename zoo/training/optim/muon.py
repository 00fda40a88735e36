"""Muon for the matrices inside layers, AdamW for all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from zoo.lazy import torch
from zoo.run.dtypes import is_slow
from zoo.spec import SpecRow, is_hidden_matrix
from zoo.training.optim.base import Beta, Optim, Scale, can_fuse, unscaled

if TYPE_CHECKING:
    from torch import device as Device
    from torch.optim import Optimizer


class Muon(Optim, kind="muon"):
    """Momentum whose matrices are orthogonalised by Newton-Schulz iterations (Jordan et al., 2024).

    It steps the matrices of products inside layers, those of experts one by one. Embeddings, heads, norms, biases,
    convolutions and whatever else is a vector go by AdamW, with `betas` and `eps`. The update of an [A, B] matrix is
    scaled by 0.2·√max(A, B), which gives it the RMS of AdamW's, so that AdamW's `lr` and `weight_decay` stand (Liu et
    al., 2025). `dtype` is that of the iterations: auto takes bf16 where it is as fast as float32. A matrix of which
    each process has a part is gathered; every process orthogonalises all of it, and steps its own part.
    """

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

    def mark(self, row: SpecRow | None, leaf: str) -> dict[str, Any]:
        hidden = row is not None and row.part is not None and is_hidden_matrix(row.kind, row.part, leaf)
        return {"orthogonalise": hidden}

    def describe(self, device: Device) -> str | None:
        dtype = "float32" if self.choose_dtype(device) is torch.float32 else "bfloat16"
        why = ", the faster here" if self.dtype == "auto" else ""
        return f"muon: orthogonalises in {dtype}{why}"

    def choose_dtype(self, device: Device) -> torch.dtype:
        """Choose the dtype of the iterations on a device."""
        if self.dtype == "auto":
            return torch.float32 if is_slow(torch.bfloat16, device, training=True) else torch.bfloat16
        return torch.float32 if self.dtype == "fp32" else torch.bfloat16

    def build(self, model: Any, scale: Scale = unscaled) -> Optimizer:
        from zoo.training.optim.rules import Muon as Rule

        groups = self.make_groups(model, scale)
        return Rule(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            iterations=self.iterations,
            dtype=self.choose_dtype(next(model.parameters()).device),
            betas=self.betas,
            eps=self.eps,
            fused=can_fuse(groups),
        )
