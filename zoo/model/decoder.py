"""Decoders: causal towers, which may predict further tokens in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from zoo.errors import ConfigError
from zoo.model.channels import Fault
from zoo.model.context import ForwardContext
from zoo.model.mtp import KIND, MTP, find_mtp_faults
from zoo.model.step import Inputs, Output
from zoo.model.tower import Tower


class Decoder(Tower, kind="decoder"):
    """A causal language model (Radford et al., 2018)."""

    causal: ClassVar[bool | None] = True

    prefix_lm: bool = False
    """Whether the prompt sees itself both ways (Raffel et al., 2020)."""
    mtp: MTP | None = None
    """Multi-token prediction: modules after the layers that predict further tokens in training; null for none."""

    def misfits(self) -> Iterator[Fault]:
        yield from super().misfits()
        yield from find_mtp_faults(self) if self.mtp else ()

    @property
    def served(self) -> Decoder:
        return replace(self, mtp=None) if self.mtp else self

    @property
    def unrolled(self) -> Tower:
        if self.mtp is None:
            return self
        stack = self.mtp.stack(self)
        return replace(self.served, blocks={**self.blocks, **stack.kinds}, pattern=self.pattern + stack.pattern)

    def parts(self, d_model: int) -> dict[str, Any]:
        return {**super().parts(d_model), **({KIND: self.mtp.stack(self)} if self.mtp else {})}

    def run(self, m: Any, inputs: Inputs, context: ForwardContext) -> Output:
        out = Tower.run(self, m, inputs, context)  # by name: pricing runs a copy of each method on shadows
        if self.mtp and m.training and inputs.targets is not None:
            self.mtp.add_loss(self, m, inputs, context, out)
        return out

    def check_inputs(self, inputs: Inputs) -> None:
        super().check_inputs(inputs)
        if inputs.prefix is not None and not self.prefix_lm:
            raise ConfigError("prefix: this decoder sees only what came before (prefix_lm: true would do)")
