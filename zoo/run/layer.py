"""Define a model's torch modules: a Layer allocates the parts that its Spec lists, and runs the Spec's forward."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from zoo import kernels, lazy
from zoo import spec as S
from zoo.distributed.seam import WHOLE, WHOLE_ROWS
from zoo.distributed.sharded_tensors import ALL
from zoo.kernels.depthwise import convolve_tokens
from zoo.kernels.grouped_products import grouped_linear
from zoo.model.drops import Dropping
from zoo.model.step import Output

if TYPE_CHECKING:
    from zoo.distributed.group import RankGroup
    from zoo.model.step import Step
    from zoo.model.tower import Topology, Tower
    from zoo.run.recompute import Recompute

lazy.load()
torch.export.register_dataclass(Output)


class Layer(nn.Module):
    """The module of one component: it stores the parts that its Spec lists, under their names, and runs the Spec's
    forward. A part shared with another layer is stored only in that layer.

    `forward` is a property that returns the Spec's own method. So torch.compile caches by component, rather than under
    one code object for all components, and a traceback leads straight to the component's file.
    """

    kernel = "auto"  # the attention kernel's name; read by the tower, which passes it on to its layers
    recompute: "Recompute | None" = None  # tower: how activations are recomputed in the backward pass
    dropping: Dropping | None = None  # tower: dropout in training
    compiles_loss = False  # head: whether its loss is compiled
    deposits_gradients = False  # head: whether its loss adds to `.grad` itself (`zoo.model.loss.deposit`)
    goes_back_twice = False  # head: whether its loss has separate backward passes for inputs and for weights
    seam = WHOLE  # collectives of tensor parallelism
    context = WHOLE_ROWS  # tower: collectives of context parallelism
    expert_group: "RankGroup | None" = None  # mixture: the ranks that its experts are divided among
    divided = False  # whether each rank computes a part of this sub-layer, for all tokens

    def __init__(self, spec: S.Spec, d_model: int, first: "Layer | None" = None) -> None:
        super().__init__()
        self.spec = spec
        self.d_model = d_model
        for name, part in spec.parts(d_model).items():
            if first is not None and isinstance(part, S.Sized) and part.common:
                self.__dict__[name] = getattr(first, name)  # not registered: the kind's first layer owns it
            elif not isinstance(part, S.Reused):
                self._store(name, part, d_model)

    def _store(self, name: str, part: Any, d_model: int) -> None:
        if isinstance(part, S.Weight):
            self.register_parameter(name, nn.Parameter(torch.empty(part.shape)))
        elif isinstance(part, S.Buffer):
            self.register_buffer(name, torch.empty(part.shape, dtype=getattr(torch, part.dtype)))
        else:
            self.add_module(name, make_module(part, d_model))

    @property
    def forward(self) -> Callable[..., Any]:  # type: ignore[override]
        return self._run_divided if self.divided else partial(self.spec.forward, self)

    def _run_divided(self, x: torch.Tensor, step: "Step") -> torch.Tensor:
        """Compute a rank's part of a sub-layer: gather all tokens of x, and sum the output over ranks."""
        return self.seam.reduce(self.spec.forward(self, self.seam.gather(x, step.mask.n_queries), step))  # type: ignore[attr-defined]

    def list_weights(self) -> list[torch.Tensor]:
        """List the weights that the layer reads: its own, and those of other modules (`Borrowed`)."""
        borrowed = [module.weight for module in self.modules() if isinstance(module, Borrowed)]
        return [*self.parameters(), *borrowed]

    def extra_repr(self) -> str:
        return f"{self.spec.axis}={self.spec.kind}"


FEW_ROWS = 32
"""Number of rows up to which a bfloat16 product on a CPU is faster as W·xᵀ than as x·Wᵀ: 25% at 2 to 16 rows, 7% at
32."""


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute x·weightᵀ + bias. On a CPU in bfloat16, without gradients and bias, few rows (decoding) use the call that
    reads weights fastest: a matrix-vector product takes 25% less time than `F.linear` of one row. Weights of another
    class than Parameter (quantised, sharded) support only `F.linear`."""
    few = x.dtype is weight.dtype is torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled()
    if few and bias is None and type(weight) is nn.Parameter:
        rows = x.numel() // x.shape[-1]
        if rows == 1:
            return torch.mv(weight, x.reshape(-1)).view(*x.shape[:-1], -1)
        if rows <= FEW_ROWS:
            return torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


class LinearModule(nn.Linear):
    """torch's Linear, computed by `multiply`."""

    adds_bias = True  # False on all but one of the ranks whose outputs are summed

    def reset_parameters(self) -> None:
        """Do nothing: the model's initial values are drawn for all tensors together, or read from a file."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return multiply(input, self.weight, self.bias if self.adds_bias else None)


class StackedLinear(nn.Module):
    """One Linear of every expert (all gates, say), stacked: weight [E, d_out, d_in]."""

    adds_bias = True

    def __init__(self, part: S.Experts) -> None:
        super().__init__()
        shapes = part.shapes()
        self.weight = nn.Parameter(torch.empty(shapes["weight"]))
        self.bias = nn.Parameter(torch.empty(shapes["bias"])) if part.of.bias else None
        self.computing = part.computing

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, expert_of_row: torch.Tensor) -> torch.Tensor:
        """Multiply x [N, d_in] to [N, d_out]. Rows are sorted by expert; expert e's rows end at `offsets[e]` ([E])."""
        bias = self.bias if self.adds_bias else None
        how = {"expert_of_row": expert_of_row, "computing": self.computing}
        return grouped_linear(x, self.weight, offsets, bias=bias, **how)


class Borrowed(nn.Module):
    """A module that uses the weight of another module, its owner."""

    def __init__(self, part: S.Tied) -> None:
        super().__init__()
        self.source = part.to
        self._owner: tuple[nn.Module, ...] = ()  # in a tuple, so that torch does not register the weight twice

    def borrow(self, owner: nn.Module) -> None:
        self._owner = (owner,)

    @property
    def owner(self) -> nn.Module:
        """The module whose weight is used."""
        return self._owner[0]

    @property
    def weight(self) -> torch.Tensor:
        return self.owner.weight  # type: ignore[return-value]


class TiedLinear(Borrowed):
    """A Linear with another module's weight: a head tied to the token embedding."""

    def __init__(self, part: S.Tied) -> None:
        super().__init__(part)
        assert isinstance(part.of, S.Linear)
        self.bias = nn.Parameter(torch.empty(part.of.d_out)) if part.of.bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return multiply(x, self.weight, self.bias)


class TiedEmbedding(Borrowed):
    """An embedding with another module's table: a decoder's embedding tied to its encoder's."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.weight)


class ConvModule(nn.Module):
    """A convolution along tokens, without padding: x [B, T, d_in] to [B, T − (width − 1)·dilation, d_out]."""

    def __init__(self, part: S.Conv) -> None:
        super().__init__()
        shapes = part.shapes()
        self.groups, self.dilation = part.groups, part.dilation
        self.weight = nn.Parameter(torch.empty(shapes["weight"]))
        self.bias = nn.Parameter(torch.empty(shapes["bias"])) if part.bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return convolve_tokens(x, self.weight, self.bias, self.groups, self.dilation)


class Layers(nn.ModuleList):
    """Layers in order, each named by its number in the whole model. A pipeline stage has only some of the numbers."""

    def __init__(self, modules: Iterable[tuple[int, nn.Module]]) -> None:
        super().__init__()
        for number, module in modules:
            self.add_module(str(number), module)
        self.some = [*self._modules] != [str(number) for number in range(len(self))]

    def __getitem__(self, index: Any) -> Any:
        return list(self._modules.values())[index] if self.some else super().__getitem__(index)


def make_module(part: Any, d_model: int) -> nn.Module:
    """Make the module that stores a part; its tensors are not initialised."""
    match part:
        case S.Linear():
            return LinearModule(part.d_in, part.d_out, bias=part.bias)
        case S.Embedding():
            table = torch.empty(part.count, part.width)  # the draw of `nn.Embedding` would import torch._dynamo: 1 s
            return nn.Embedding.from_pretrained(table, freeze=False)
        case S.Experts():
            return StackedLinear(part)
        case S.Conv():
            return ConvModule(part)
        case S.Tied():
            return TiedLinear(part) if isinstance(part.of, S.Linear) else TiedEmbedding(part)
        case S.Sized():
            return Layer(part.spec, part.d_model)
        case S.Stack():
            return Layers(_make_layers(part, d_model))
        case S.Group():
            return nn.ModuleDict({name: make_module(inner, d_model) for name, inner in part.parts.items()})
        case S.Spec():
            return Layer(part, d_model)
    raise TypeError(f"{part!r} is no part")


def _make_layers(stack: S.Stack, d_model: int) -> Iterator[tuple[int, Layer]]:
    """Make the layers of a stack, each with its number. Layers of one kind share the first one's common parts."""
    first: dict[str, Layer] = {}
    for number, kind in stack.numbered():
        layer = Layer(stack.kinds[kind], d_model, first.get(kind))
        first.setdefault(kind, layer)
        yield number, layer


def list_common(layer: nn.Module) -> list[nn.Module]:
    """List the modules of a layer that all layers of its kind share."""
    parts = layer.spec.parts(layer.d_model) if isinstance(layer, Layer) else {}
    return [layer.get_submodule(name) for name in layer._modules if getattr(parts[name], "common", False)]


def lend_weights(model: nn.Module) -> None:
    """Point each module that reads another's weight to the module that has this weight now."""
    modules = dict(model.named_modules())
    ties = {name: module.source if isinstance(module, Borrowed) else None for name, module in modules.items()}
    for name, module in modules.items():
        if isinstance(module, Borrowed):
            module.borrow(modules[S.owner_of(name, ties)])


class Model(Layer):
    """A whole model: the outermost Layer. It resolves ties and finds the kernels available on its device."""

    spec: "Topology"
    shares = ALL  # which part of each tensor this process holds

    def __init__(self, spec: "Topology") -> None:
        super().__init__(spec, spec.d_model)
        self.whole = spec  # the Spec of the whole model, which differs if this model is one rank's part
        lend_weights(self)
        self._find_kernels()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)
        self._find_kernels()
        return moved

    def _find_kernels(self) -> None:
        """Find the kernels available on the model's device. Done here, not at import (touching CUDA would break a later
        fork) and not in forward (Dynamo cannot trace the package search)."""
        kernels.machine_of(next(self.parameters()).device)

    @property
    def kernel(self) -> str:  # type: ignore[override]
        """The name of the attention kernel of all towers; `auto` takes the first kernel that does not refuse."""
        return self.__dict__.get("_kernel", "auto")

    @kernel.setter
    def kernel(self, name: str) -> None:
        self.__dict__["_kernel"] = name
        for module in self.modules():
            if module is not self and isinstance(module, Layer) and module.spec.axis == "topology":
                module.kernel = name

    def head_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute the logits [..., V] of hidden states [..., D] after the final norm."""
        path, tower = next((name, tower) for name, tower in self.towers() if tower.head.kind != "none")
        logits = self.get_submodule(f"{path}.head" if path else "head")(hidden)
        return self.seam.join_logits(logits, tower.vocab_size) if tower.head.predicts_tokens else logits

    def towers(self) -> list[tuple[str, "Tower"]]:
        """List the module path and Spec of each stack of layers."""
        return list(self.spec.towers().items())


def list_shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every tensor of a built model, by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
