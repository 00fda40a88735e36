# B rows, T tokens, D model width
"""Dropout (Srivastava et al., 2014) and stochastic depth (Huang et al., 2016) of a run: off in eval mode."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from zoo.lazy import F, torch
from zoo.spec import Experts, Linear, Spec, walk

if TYPE_CHECKING:
    from torch import Tensor

Rate = Annotated[float, Field(ge=0, lt=1)]

BRANCHES = ("attention", "ffn")
"""Axes of the components whose outputs join the residual stream."""


class Dropout(Spec, axis="dropout", kind="dropout", default="dropout"):
    """The shares that training drops; what is left is scaled up, so that means stay.

    `attention` drops probabilities after the softmax, `residual` channels of what attention and feed-forward add to
    the stream, `embedding` channels of the first layer's input, `ffn` hidden units. `layers` is the rate of stochastic
    depth: in row b, what attention or feed-forward l of L adds is left out whole with probability layers·l/L.
    """

    attention: Rate = 0.0
    residual: Rate = 0.0
    embedding: Rate = 0.0
    ffn: Rate = 0.0
    layers: Rate = 0.0

    def find_faults(self, spec: Any, compile: bool, fp8: bool) -> list[str]:
        """List the rates that would do nothing in this model, and what they do not go together with."""
        rates = {name: getattr(self, name) for name in ("attention", "residual", "embedding", "ffn", "layers")}
        if not any(rates.values()):
            return ["dropout: drops nothing, all its rates are 0 (null)"]
        faults: list[str] = []
        towers = spec.towers().values()
        blocks = [block for tower in towers for block in tower.blocks.values()]
        if self.attention and all(block.attention.ask("float32") is None for block in blocks):
            faults.append(f"dropout.attention: is {self.attention}, and no layer has probabilities to drop (0)")
        if self.ffn and not any(_is_down(row.path, part) for row, part in walk(spec, spec.d_model)):
            faults.append(f"dropout.ffn: is {self.ffn}, and no layer has a feed-forward (0)")
        if self.layers and any(tower.shared_layers for tower in towers):
            faults.append("dropout.layers: its rate grows with depth, and the layers share their weights (0)")
        if self.layers and compile:
            faults.append("dropout.layers: every layer has a rate of its own, and would compile anew (compile=false)")
        if fp8:
            faults.append("dropout: is not taken in float8 (precision=bf16)")
        return faults

    def apply(self, model: Any) -> None:
        """Let a built model drop these shares whenever it is in training mode."""
        for path, _ in model.towers():
            tower = model.get_submodule(path)
            tower.attention_dropout, tower.embedding_dropout = self.attention, self.embedding
            for number, block in enumerate(tower.blocks, 1):
                self._apply_to_block(block, self.layers * number / len(tower.blocks))

    def _apply_to_block(self, block: Any, skipped: float) -> None:
        for child in block.children():
            if child.spec.axis in BRANCHES and self.residual:
                child.register_forward_hook(partial(_drop_output, self.residual))
            if child.spec.axis in BRANCHES and skipped:
                child.register_forward_hook(partial(_skip_rows, skipped))
        for name, module in block.named_modules():
            if self.ffn and name.split(".")[-1] == "down" and hasattr(module, "weight"):
                module.register_forward_pre_hook(partial(_drop_input, self.ffn))


def _is_down(path: str, part: Any) -> bool:
    return isinstance(part, Linear | Experts) and path.endswith("down")


def _drop_output(rate: float, module: Any, args: Any, output: Tensor) -> Tensor:
    return F.dropout(output, rate, module.training)


def _drop_input(rate: float, module: Any, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return (F.dropout(args[0], rate, module.training), *args[1:])


def _skip_rows(rate: float, module: Any, args: Any, output: Tensor) -> Tensor:
    """Leave out all that a branch gives in some rows: output [B, T, D]."""
    if not module.training:
        return output
    kept = torch.rand(output.shape[0], 1, 1, device=output.device) >= rate
    return output * (kept.to(output.dtype) / (1 - rate))
