"""Initial weights, by the part that each tensor belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Container
from typing import Any

from pydantic import PositiveFloat

from zoo.lazy import torch
from zoo.spec import Buffer, Conv, Experts, Linear, Spec, SpecRow, Weight, is_hidden_matrix, placed_tensors


class Init(Spec, axis="init", default="normal"):
    """Draw matrices and tables. Biases start at 0, other weights as their part states."""

    def deviation(self, row: SpecRow, n_layers: float) -> float:
        """Compute the standard deviation of a part's weight in a model of `n_layers` layers."""
        raise NotImplementedError


class Normal(Init, kind="normal"):
    """Normal with one standard deviation, or a smaller one for matrices that write to the residual stream (Radford et
    al., 2019, GPT-2)."""

    std: PositiveFloat = 0.02
    """Standard deviation of matrices and tables. Convolutions have torch's default instead."""
    residual_scaled: bool = True
    """Whether the deviation is divided by √(2·n_layers) for matrices that write to the residual stream."""

    def deviation(self, row: SpecRow, n_layers: float) -> float:
        part = row.part
        if isinstance(part, Conv):  # as torch's own: with a matrix's deviation a depthwise one would give almost 0
            return (3 * part.width * part.d_in / part.groups) ** -0.5
        linear = part.of if isinstance(part, Experts) else part
        scaled = self.residual_scaled and isinstance(linear, Linear) and linear.residual
        return self.std * ((2 * n_layers) ** -0.5 if scaled else 1.0)


class ScaledInit(Init, kind="scaled"):
    """Standard deviations of a narrower and shallower base model, transferred to this model (Yang et al., 2022, table
    8). Deviations of matrices inside layers are divided by √wider, those of matrices with few outputs (routers) by
    `wider`."""

    of: Init = Normal()
    """Initial weights of the base model."""
    wider: PositiveFloat
    """Width of this model ÷ width of the base model."""
    deeper: PositiveFloat = 1.0
    """Depth of this model ÷ depth of the base model."""

    def deviation(self, row: SpecRow, n_layers: float) -> float:
        base = self.of.deviation(row, n_layers / self.deeper)
        if has_few_outputs(row):
            return base / self.wider
        assert row.part is not None
        return base / self.wider**0.5 if is_hidden_matrix(row.kind, row.part, "weight") else base


def has_few_outputs(row: SpecRow) -> bool:
    """Whether a matrix inside a layer has an output width that does not grow with the model's width: a router's, or
    1."""
    linear = row.part.of if isinstance(row.part, Experts) else row.part
    return row.kind is not None and isinstance(linear, Linear) and ("router" in row.roles or linear.d_out == 1)


def initialise(model: Any, seed: int, names: Container[str] | None = None) -> None:
    """Fill every tensor of a built model in place, or only the tensors with the given names.

    Each tensor is drawn separately, from the seed and its name, so models with the same seed agree in the tensors that
    they share. A CPU and a GPU draw different numbers. Processes that share a model draw whole tensors and keep their
    parts.
    """
    held = model.state_dict()
    generator = torch.Generator(next(iter(held.values())).device)
    for where, tower in model.whole.towers().items():
        for name, row, leaf in placed_tensors(tower, tower.d_model, where):
            if name not in held or (names is not None and name not in names):  # one may be on another pipeline stage
                continue
            parameter, part = held[name], row.part
            whole = parameter
            if model.shares.splits(name, parameter):
                shape = part.shapes()[leaf]  # type: ignore[union-attr]
                whole = torch.empty(shape, dtype=parameter.dtype, device=generator.device)
            stated = part.init if isinstance(part, Weight | Buffer) else 0.0 if leaf == "bias" else None
            if callable(stated):
                stated(whole)
            elif isinstance(stated, float | int):
                whole.fill_(stated)
            else:
                generator.manual_seed(mix_seed(seed, name))
                deviation = stated.std if stated else model.whole.init.deviation(row, model.whole.n_layers)
                whole.normal_(0.0, deviation, generator=generator)
            if whole is not parameter:
                parameter.copy_(model.shares.take_part(name, whole, parameter))


def mix_seed(seed: int, name: str) -> int:
    """Mix a seed and a tensor's name into 64 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest())
