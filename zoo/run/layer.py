"""The only place that makes torch modules: storage for what a Spec lists, and nothing else."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from zoo import kernels, lazy
from zoo import spec as S
from zoo.kernels.grouped import grouped_linear
from zoo.model.step import Output

lazy.load()
torch.export.register_dataclass(Output)


class Layer(nn.Module):
    """A component at work: holds exactly the parts its Spec lists, under their names, and runs the Spec's forward.

    `forward` is a property that hands out the Spec's own method, so that torch.compile caches by component rather than
    under one code object shared by all of them, and a traceback goes straight to the component's file.
    """

    kernel = "auto"  # what attention is computed by; read where a model begins

    def __init__(self, spec: S.Spec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.d_model = d_model
        for name, part in spec.parts(d_model).items():
            self._store(name, part, d_model)

    def _store(self, name: str, part: Any, d_model: int) -> None:
        if isinstance(part, S.Weight):
            self.register_parameter(name, nn.Parameter(torch.empty(part.shape)))
        elif isinstance(part, S.Buffer):
            self.register_buffer(name, torch.empty(part.shape, dtype=torch.float32))
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


class Borrowed(nn.Module):
    """A module at work with a weight that another module owns."""

    def __init__(self, part: S.Tied) -> None:
        super().__init__()
        self.source = part.to
        self._owner: tuple[nn.Module, ...] = ()  # in a tuple, so that torch does not register the weight twice

    def borrow(self, owner: nn.Module) -> None:
        self._owner = (owner,)

    @property
    def weight(self) -> torch.Tensor:
        return self._owner[0].weight  # type: ignore[return-value]


class TiedLinear(Borrowed):
    """A product with the token embedding's weight, as a head."""

    def __init__(self, part: S.Tied) -> None:
        super().__init__(part)
        assert isinstance(part.of, S.Linear)
        self.bias = nn.Parameter(torch.empty(part.of.d_out)) if part.of.bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.weight, self.bias)


class TiedEmbedding(Borrowed):
    """A look-up in another embedding's table, such as a decoder's in its encoder's."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.weight)


class Conv(nn.Module):
    """A convolution along the tokens: x [B, T, d_in], already padded by what each output reads beside its own token, to
    [B, T − width + 1, d_out]."""

    def __init__(self, part: S.Conv) -> None:
        super().__init__()
        shapes = part.shapes()
        self.groups = part.groups
        self.weight = nn.Parameter(torch.empty(shapes["weight"]))
        self.bias = nn.Parameter(torch.empty(shapes["bias"])) if part.bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x.transpose(1, 2), self.weight, self.bias, groups=self.groups).transpose(1, 2)


def module_of(part: Any, d_model: int) -> nn.Module:
    """The module that stores a part; tensors are not initialised."""
    match part:
        case S.Linear():
            return nn.utils.skip_init(Linear, part.d_in, part.d_out, bias=part.bias, device=_device())
        case S.Embedding():
            return nn.utils.skip_init(nn.Embedding, part.count, part.width, device=_device())
        case S.Experts():
            return StackedLinear(part)
        case S.Conv():
            return Conv(part)
        case S.Tied():
            return TiedLinear(part) if isinstance(part.of, S.Linear) else TiedEmbedding(part)
        case S.Sized():
            return Layer(part.spec, part.d_model)
        case S.Stack():
            return nn.ModuleList(Layer(part.kinds[kind], d_model) for kind in part.stored())
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
        modules = dict(self.named_modules())
        ties = {name: module.source if isinstance(module, Borrowed) else None for name, module in modules.items()}
        for name, module in modules.items():
            if isinstance(module, Borrowed):
                module.borrow(modules[S.owner_of(name, ties)])
        self._look()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)
        self._look()
        return moved

    def _look(self) -> None:
        """Sees what kernels there are where the model is now: what torch.compile traces must not search for packages,
        nor must an import touch a device, as a process that then forks could use it no more."""
        kernels.machine_of(next(self.parameters()).device)

    @property
    def kernel(self) -> str:  # type: ignore[override]
        """What attention is computed by in all of its towers; auto takes the first kernel that can."""
        return self.__dict__.get("_kernel", "auto")

    @kernel.setter
    def kernel(self, name: str) -> None:
        self.__dict__["_kernel"] = name
        for module in self.modules():
            if module is not self and isinstance(module, Layer) and module.spec.axis == "topology":
                module.kernel = name

    def head_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of hidden states [..., D] after the final norm."""
        path = next(name for name, tower in self.towers() if tower.head.kind != "none")
        return self.get_submodule(f"{path}.head" if path else "head")(hidden)

    def towers(self) -> list[tuple[str, Any]]:
        """The stacks of layers: where each one's module is, and its Spec."""
        return list(self.spec.towers().items())  # type: ignore[attr-defined]

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
