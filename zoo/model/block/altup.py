# B batch, T tokens, S streams, D model width
"""Alternating updates: a layer that computes one of several residual streams, and predicts the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge
from pydantic import NonNegativeInt, PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.block.sublayers import Sandwich, SubLayer, SubLayers
from zoo.model.layer_input import LayerInputs
from zoo.spec import Linear, Weight, refuse_ranks

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class AltUp(Sandwich, kind="altup"):
    """Predict every stream from all streams, run the layer on one stream, and correct all streams by the error of its
    prediction (Baykal et al., 2023, AltUp): x̂ = x + P·x, y = sandwich(x̂ₐ), x = x̂ + (1 + c)·(y − x̂ₐ), where a is the
    `active` stream.

    The coefficients P [S, S] and c [S] are linear in tanh(norm(·)·W / D), P of the active stream xₐ and c of y (Gemma
    3n, 2025). `layer_input` reads the active stream, and adds to the streams after the first.
    """

    n_streams: Annotated[int, Ge(2)] = 4
    """Number of residual streams, S, equal to the `count` of the model's `streams`."""
    active: NonNegativeInt = 0
    """Index of the stream that the layer computes, from 0 on."""
    correct_scale: bool = True
    """Whether the active stream is multiplied by a learned vector before `layer_input` reads it."""
    laurel_rank: PositiveInt | None = None
    """Rank R of a second path for attention's input n: n + norm(n·A·B), with A [D, R], is added to the stream, and the
    sum is divided by √2 (Menghani et al., 2024, LAuReL; Gemma 3n, 2025)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.active >= self.n_streams:
            raise ValueError(f"active={self.active} is none of n_streams={self.n_streams} (0 to {self.n_streams - 1})")
        if self.correct_scale and self.layer_input is None:
            raise ValueError("correct_scale scales what layer_input reads, and there is none (false, or give one)")
        if self.out_scale:
            raise ValueError("out_scale multiplies one stream, and here are several (leave it out)")

    @property
    def streams(self) -> int:  # type: ignore[override]
        return self.n_streams

    def parts(self, d_model: int) -> dict[str, Any]:
        count = self.n_streams
        return {
            **super().parts(d_model),
            "router_norm": self.norm,
            "router": Linear(d_model, count, uses=2),
            "predict": Linear(count, count * count),
            "correct": Linear(count, count),
            **({"correct_scale": Weight((d_model,))} if self.correct_scale else {}),
            **self._list_laurel(d_model),
        }

    def _list_laurel(self, d_model: int) -> dict[str, Any]:
        if self.laurel_rank is None:
            return {}
        return {
            "laurel_down": Linear(d_model, self.laurel_rank),
            "laurel_up": Linear(self.laurel_rank, d_model, residual=True),
            "laurel_norm": self.norm,
        }

    shard = refuse_ranks("the streams of an 'altup' block are not divided over ranks")

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        coefficients = m.predict(self._route(m, x[:, :, self.active])).unflatten(-1, (self.n_streams, -1))  # B T S S
        predicted = x  # B T S D
        for stream in range(self.n_streams):
            predicted = torch.addcmul(predicted, coefficients[..., stream, None], x[:, :, stream, None])
        active = predicted[:, :, self.active]
        y = SubLayers.forward(self, m, active, step)  # B T D
        corrections = m.correct(self._route(m, y)) + 1.0  # B T S
        corrected = torch.addcmul(predicted, corrections[..., None], (y - active)[:, :, None])
        if self.layer_input is None:
            return corrected
        read = corrected[:, :, self.active]
        added = m.layer_input(read * m.correct_scale if self.correct_scale else read, step.read(LayerInputs.name))
        return torch.cat((corrected[:, :, :1], corrected[:, :, 1:] + added[:, :, None]), 2)

    def join(self, each: SubLayer, m: Weights, x: Tensor, y: Tensor, read: Tensor) -> Tensor:
        x = super().join(each, m, x, y, read)
        if each.name != "attention" or self.laurel_rank is None:
            return x
        return (x + read + m.laurel_norm(m.laurel_up(m.laurel_down(read)))) * 2.0**-0.5

    def _route(self, m: Weights, x: Tensor) -> Tensor:
        """Compute the router's output for each stream from vectors x [B, T, D]: [B, T, S] in −1 to 1."""
        return torch.tanh(m.router(m.router_norm(x) * (1.0 / x.shape[-1])).float()).to(x.dtype)
