"""The only place that makes torch modules: storage for what a Spec lists, and nothing else."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from zoo import lazy
from zoo import spec as S
from zoo.kernels.grouped import grouped_linear
from zoo.step import Output

lazy.load()
torch.export.register_dataclass(Output)


class Layer(nn.Module):
    """A component at work: holds exactly the parts its Spec lists, under their names, and runs the Spec's forward.

    `forward` is a property that hands out the Spec's own method, so that torch.compile caches by component rather than
    under one code object shared by all of them, and a traceback goes straight to the component's file.
    """

    def __init__(self, spec: S.Spec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.d_model = d_model
        for name, part in spec.parts(d_model).items():
            self._store(name, part, d_model)

    def _store(self, name: str, part: Any, d_model: int) -> None:
        if isinstance(part, S.Weight):
            self.register_parameter(name, nn.Parameter(torch.empty(part.shape)))
        else:
            self.add_module(name, module_of(part, d_model))

    @property
    def forward(self) -> Callable[..., Any]:  # type: ignore[override]
        return partial(self.spec.forward, self)

    def extra_repr(self) -> str:
        return f"{self.spec.axis}={self.spec.kind}"


FEW_ROWS = 32
"""Rows up to which a bfloat16 product on a CPU is faster with the weight on the left: 25% at 2 to 16, 7% at 32."""


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x·weightᵀ + bias; a decoding step's few rows in bfloat16 on a CPU by the call that reads weights fastest.

    There a matrix-vector product takes 25% less time than `F.linear` of one row. Weights of another class than
    Parameter (quantised, sharded) answer to `F.linear` alone.
    """
    few = x.dtype is weight.dtype is torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled()
    if few and bias is None and type(weight) is nn.Parameter:
        rows = x.numel() // x.shape[-1]
        if rows == 1:
            return torch.mv(weight, x.reshape(-1)).view(*x.shape[:-1], -1)
        if rows <= FEW_ROWS:
            return torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """torch's own, by `product`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.weight, self.bias)


class StackedLinear(nn.Module):
    """The same Linear of every expert: weight [E, d_out, d_in], as the experts' own weights stacked."""

    def __init__(self, part: S.Experts) -> None:
        super().__init__()
        shapes = part.shapes()
        self.weight = nn.Parameter(torch.empty(shapes["weight"]))
        self.bias = nn.Parameter(torch.empty(shapes["bias"])) if part.of.bias else None

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, expert_of_row: torch.Tensor) -> torch.Tensor:
        """x [N, d_in], its rows sorted by expert; `offsets` [E] where each expert's rows end. Gives [N, d_out]."""
        return grouped_linear(x, self.weight, offsets, bias=self.bias, expert_of_row=expert_of_row)


class TiedLinear(nn.Module):
    """A product with a weight that another module owns (the token embedding's, as a head)."""

    def __init__(self, part: S.Tied) -> None:
        super().__init__()
        self.source = part.to
        self.bias = nn.Parameter(torch.empty(part.of.d_out)) if part.of.bias else None
        self._owner: tuple[nn.Module, ...] = ()  # in a tuple, so that torch does not register the weight twice

    def tie(self, root: nn.Module) -> None:
        self._owner = (root.get_submodule(self.source),)

    @property
    def weight(self) -> torch.Tensor:
        return self._owner[0].weight  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.weight, self.bias)


def module_of(part: Any, d_model: int) -> nn.Module:
    """The module that stores a part; tensors are not initialised."""
    match part:
        case S.Linear():
            return nn.utils.skip_init(Linear, part.d_in, part.d_out, bias=part.bias, device=_device())
        case S.Embedding():
            return nn.utils.skip_init(nn.Embedding, part.count, part.width, device=_device())
        case S.Experts():
            return StackedLinear(part)
        case S.Tied():
            return TiedLinear(part)
        case S.Sized():
            return Layer(part.spec, part.d_model)
        case S.Stack():
            return nn.ModuleList(Layer(part.kinds[kind], d_model) for kind in part.pattern)
        case S.Group():
            return nn.ModuleDict({name: module_of(inner, d_model) for name, inner in part.parts.items()})
        case S.Spec():
            return Layer(part, d_model)
    raise TypeError(f"{part!r} is no part")


def _device() -> torch.device:
    return torch.empty(0).device  # that of the surrounding `with torch.device(...)`


class Model(Layer):
    """A whole model: a Layer with what only the outermost one needs."""

    def __init__(self, spec: Any) -> None:
        super().__init__(spec, spec.d_model)
        self.kernel = "auto"
        for module in self.modules():
            if isinstance(module, TiedLinear):
                module.tie(self)

    def head_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of hidden states [..., D] after the final norm."""
        return self.get_submodule("head")(hidden)

    def decay_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameters that weight decay pulls (matrices and tables) and those it must leave (norm scales, biases)."""
        decays = {name: part.decays(leaf) for name, part, leaf in S.tensors(self.spec, self.d_model)}
        pulled, left = [], []
        for name, parameter in self.named_parameters():
            (pulled if decays[name] else left).append(parameter)
        groups = [{"params": pulled, "weight_decay": weight_decay}, {"params": left, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]


def shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every tensor a built model holds."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
