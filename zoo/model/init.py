"""Initial weights, by the part that each tensor belongs to."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveFloat

from zoo.spec import Buffer, Conv, Experts, Linear, Part, Spec, Weight, tensors


class Init(Spec, axis="init", default="normal"):
    """Draw matrices and tables. Biases start at 0, and other weights at the value that their part states."""

    def deviation(self, part: Part, n_layers: int) -> float:
        """The standard deviation that a part's weight is drawn with."""
        raise NotImplementedError


class Normal(Init, kind="normal"):
    """Normal with one `std`, divided by √(2·n_layers) for matrices that write to the residual stream (Radford et al.,
    2019, GPT-2)."""

    std: PositiveFloat = 0.02
    residual_scaled: bool = True

    def deviation(self, part: Part, n_layers: int) -> float:
        if isinstance(part, Conv):  # as torch's own: with a matrix's deviation a depthwise one would give almost 0
            return (3 * part.width * part.d_in / part.groups) ** -0.5
        linear = part.of if isinstance(part, Experts) else part
        scaled = self.residual_scaled and isinstance(linear, Linear) and linear.residual
        return self.std * ((2 * n_layers) ** -0.5 if scaled else 1.0)


def initialise(model: Any, generator: Any) -> None:
    """Fill every tensor of a built model in place, in the order of `tensors`, from one generator."""
    held = model.state_dict()
    for name, part, leaf in tensors(model.spec, model.d_model):
        parameter = held[name]
        if isinstance(part, Weight | Buffer):
            part.init(parameter) if callable(part.init) else parameter.fill_(part.init)
        elif leaf == "bias":
            parameter.zero_()
        else:
            parameter.normal_(0.0, model.spec.init.deviation(part, model.spec.n_layers), generator=generator)
