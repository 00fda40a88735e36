"""A Spec lists its parts; everything that is counted, allocated, initialised or saved is read from that list.

A component (an attention, a norm, a feed-forward, a whole model) is one frozen dataclass. Its fields are its
hyperparameters, which are the YAML keys; `parts(d_model)` names its weights and sub-components. No torch here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from zoo.errors import did_you_mean

# ---------------------------------------------------------------- parts: what holds weights


@dataclasses.dataclass(frozen=True)
class Part:
    """One weight, or the few that belong together, of a component."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Each tensor's name below this part, and its shape."""
        raise NotImplementedError

    def decays(self, leaf: str) -> bool:
        """Whether weight decay pulls this tensor: matrices and tables, never scales and biases."""
        return leaf == "weight"

    @property
    def params(self) -> int:
        """Parameters held."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    @property
    def active(self) -> int:
        """Parameters that one token meets."""
        return self.params

    @property
    def flops(self) -> int:
        """FLOPs of one token's forward pass through it: two for each multiply-add of a matrix product."""
        return 0


@dataclasses.dataclass(frozen=True)
class Weight(Part):
    """A bare tensor, such as a norm's scale. It starts from `init`: a value, or what fills a tensor in place."""

    shape: tuple[int, ...]
    init: float | Callable[[Any], Any] = 0.0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"": self.shape}


@dataclasses.dataclass(frozen=True)
class Buffer(Part):
    """A tensor that is saved and never trained, so that it is no parameter. It starts from `init`, as a Weight."""

    shape: tuple[int, ...]
    init: float | Callable[[Any], Any] = 0.0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"": self.shape}

    @property
    def params(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class Linear(Part):
    """A matrix product. `residual` marks one that writes to the residual stream (its initial values are scaled by
    depth), `precise` one that is never taken in float8, as what follows makes much of its rounding, and `bare` one
    whose weight the forward also reads by itself, so that a quantised one would not do."""

    d_in: int
    d_out: int
    bias: bool = False
    residual: bool = False
    precise: bool = False
    bare: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        bias = {"bias": (self.d_out,)} if self.bias else {}
        return {"weight": (self.d_out, self.d_in), **bias}

    @property
    def flops(self) -> int:
        return 2 * self.d_in * self.d_out


@dataclasses.dataclass(frozen=True)
class Conv(Part):
    """A convolution along the tokens, `width` of them: weight [d_out, d_in / groups, width]. `groups` = d_in = d_out
    is a depthwise one."""

    d_in: int
    d_out: int
    width: int
    groups: int = 1
    bias: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        bias = {"bias": (self.d_out,)} if self.bias else {}
        return {"weight": (self.d_out, self.d_in // self.groups, self.width), **bias}

    @property
    def flops(self) -> int:
        return 2 * self.d_out * (self.d_in // self.groups) * self.width


@dataclasses.dataclass(frozen=True)
class Embedding(Part):
    """A table of vectors. A look-up is no product: it costs no FLOPs, and one token meets one row of it."""

    count: int
    width: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.count, self.width)}


@dataclasses.dataclass(frozen=True)
class Experts(Part):
    """`count` copies of a Linear, stacked; a token passes through `active_count` of them."""

    of: Linear
    count: int
    active_count: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: (self.count, *shape) for name, shape in self.of.shapes().items()}

    @property
    def active(self) -> int:
        return self.of.params * self.active_count

    @property
    def flops(self) -> int:
        return self.of.flops * self.active_count


@dataclasses.dataclass(frozen=True)
class Tied(Part):
    """A matrix product or a look-up with another part's weight: no parameters of its own, all of the FLOPs.

    `to` is that part's path from the nearest enclosing model that has it: a decoder inside an encoder-decoder finds its
    own `embedding.tokens` first.
    """

    to: str
    of: Linear | Embedding

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"bias": (self.of.d_out,)} if isinstance(self.of, Linear) and self.of.bias else {}

    @property
    def flops(self) -> int:
        return self.of.flops


@dataclasses.dataclass(frozen=True)
class Sized:
    """A sub-component built at another width than its owner's."""

    spec: Spec
    d_model: int


@dataclasses.dataclass(frozen=True)
class Group:
    """Parts under one name."""

    parts: Mapping[str, Part]


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers in order, by name of their kind. Equal layers are one object, and are counted once.

    In a `shared` one all layers of a kind have the same weights too (ALBERT).
    """

    kinds: Mapping[str, Spec]
    pattern: tuple[str, ...]
    shared: bool = False

    def stored(self) -> tuple[str, ...]:
        """The kind of each layer that has weights of its own."""
        return tuple(dict.fromkeys(self.pattern)) if self.shared else self.pattern

    def index(self, layer: int) -> int:
        """Where the weights of a layer are among those stored."""
        return self.stored().index(self.pattern[layer]) if self.shared else layer


# ---------------------------------------------------------------- Spec


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Spec:
    """A component: frozen numbers, and what follows from them.

    An axis (`class Norm(Spec, axis="norm")`) is a base; a choice (`class RMSNorm(Norm, kind="rmsnorm")`) is a frozen,
    keyword-only pydantic dataclass, registered by its `kind`. A field annotated with an axis takes a mapping whose
    `kind` names one of its choices, or a Spec of that axis.
    """

    axis: ClassVar[str] = ""
    default: ClassVar[str] = ""  # the kind of a node that names none
    kind: ClassVar[str] = ""
    kinds: ClassVar[dict[str, type[Spec]]] = {}
    causal: ClassVar[bool | None] = None  # the only way it can look: back (True), both ways (False); None for either

    def __init_subclass__(cls, *, axis: str = "", kind: str = "", default: str = "") -> None:
        if axis:
            cls.axis, cls.default, cls.kinds = axis, default, {}
        if kind:
            cls.kind = kind
            cls.kinds[kind] = cls

    def __new__(cls, *_: Any, **__: Any) -> Spec:
        cls.complete()  # before Python looks for the `__init__` that comes of it
        return super().__new__(cls)

    @classmethod
    def complete(cls) -> None:
        """Makes the class, and what it is based on, the dataclass that it is.

        That takes most of a millisecond, and one model uses few of the kinds there are: it waits for the first use.
        """
        for each in reversed(cls.__mro__):
            if issubclass(each, Spec) and each is not Spec and "__dataclass_fields__" not in each.__dict__:
                config = ConfigDict(extra="forbid", defer_build=True)
                pydantic_dataclass(each, frozen=True, kw_only=True, config=config)

    @classmethod
    def fields(cls) -> tuple[dataclasses.Field[Any], ...]:
        """Its hyperparameters."""
        cls.complete()
        return dataclasses.fields(cls)  # type: ignore[arg-type]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        if cls.kind:
            cls.complete()
            return handler(source)
        return core_schema.no_info_plain_validator_function(cls.parse)

    @classmethod
    def parse(cls, node: Any) -> Any:
        """The Spec that a YAML node of this axis describes. Raises one ValidationError that holds every fault."""
        if isinstance(node, cls):
            return node
        if not isinstance(node, Mapping):
            raise _refusal(cls, _not_a_node(cls, node))
        fields = dict(node)
        choice = cls.kinds.get(fields.pop("kind", cls.default))
        if choice is None:
            raise _refusal(cls, _no_such_kind(cls, node.get("kind")))
        names = {field.name for field in choice.fields()}
        details = [_unknown_field(choice, name, names) for name in fields if name not in names]
        try:
            spec = choice(**{name: value for name, value in fields.items() if name in names})
        except ValidationError as error:
            details += [_detail(choice, item) for item in error.errors(include_url=False)]
        if details:
            raise ValidationError.from_exception_data(choice.kind, details)
        return spec

    def parts(self, d_model: int) -> Mapping[str, Part | Spec | Sized | Group | Stack]:
        """Weights and sub-components by name, for a residual stream `d_model` wide."""
        return {}

    def cache(self) -> dict[str, tuple[int, ...]]:
        """What this component keeps of each token while generating: tensors by name, and each one's shape."""
        return {}

    def state(self) -> dict[str, tuple[int, ...]]:
        """What it keeps of all earlier tokens together while generating, however many: tensors by name, and shapes."""
        return {}

    def core_flops(self, pairs: int) -> int:
        """Forward FLOPs that no weight explains, for `pairs` visible (query, key) pairs."""
        return 0

    def decode_flops(self, pairs: int) -> int:
        """The same for a token that is decoded, where that takes another way."""
        return self.core_flops(pairs)

    def state_flops(self) -> int:
        """Forward FLOPs of a token that neither a weight nor a pair explains: moving and reading a state."""
        return 0

    def pass_flops(self, d_model: int, new: int, held: int) -> int:
        """Forward FLOPs of `new` tokens after `held` that are neither a token's nor a pair's: work on a shared
        table."""
        return 0

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        """The maths: `self` is numbers, `m` is weights, `step` is the moment."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def children(self, d_model: int, used: bool = False) -> Iterator[tuple[str, Part | Sized, int]]:
        """Everything `parts` lists, flattened one level: name, part or sized sub-component, and how often it is stored
        (or `used` in one pass: shared layers are stored once)."""
        for name, part in self.parts(d_model).items():
            if isinstance(part, Spec):
                yield name, Sized(part, d_model), 1
            elif isinstance(part, Group):
                for inner, leaf in part.parts.items():
                    yield f"{name}.{inner}", leaf, 1
            elif isinstance(part, Stack):
                pattern = part.pattern if used else part.stored()
                for kind, spec in part.kinds.items():
                    yield f"{name}.{kind}", Sized(spec, d_model), pattern.count(kind)
            else:
                yield name, part, 1


def _fault(template: str, /, **values: Any) -> PydanticCustomError:
    return PydanticCustomError("zoo", template, values)  # type: ignore[arg-type]


def _refusal(axis: type[Spec], fault: PydanticCustomError) -> ValidationError:
    """A fault of a node as a whole. Within another node's validation it takes its place among that one's."""
    return ValidationError.from_exception_data(axis.axis, [{"type": fault, "loc": (), "input": None}])


def _not_a_node(axis: type[Spec], node: Any) -> PydanticCustomError:
    options = ", ".join(sorted(axis.kinds))
    if node is None:
        return _fault("is missing (one of: {options})", options=options)
    return _fault("is {found}, not a mapping with a 'kind' (one of: {options})", found=repr(node), options=options)


def _no_such_kind(axis: type[Spec], kind: Any) -> PydanticCustomError:
    options = ", ".join(sorted(axis.kinds))
    if kind is None:
        return _fault("has no 'kind' (one of: {options})", options=options)
    hint = did_you_mean(str(kind), axis.kinds)
    text = "kind {kind} is not a choice of {axis}{hint} (one of: {options})"
    return _fault(text, kind=repr(kind), axis=axis.axis, hint=hint, options=options)


def _unknown_field(choice: type[Spec], name: str, names: set[str]) -> InitErrorDetails:
    hint = did_you_mean(name, names) or f" (it has: {', '.join(sorted(names)) or 'none'})"
    text = "{axis} '{kind}' has no such field{hint}"
    return {"type": _fault(text, axis=choice.axis, kind=choice.kind, hint=hint), "loc": (name,), "input": None}


def _detail(choice: type[Spec], item: Any) -> InitErrorDetails:
    return {"type": _fault("{text}", text=_message(choice, item)), "loc": item["loc"], "input": None}


def _message(choice: type[Spec], item: Any) -> str:
    if item["type"] == "zoo":
        return item["msg"]
    if item["type"].startswith("missing"):
        return f"is missing; {choice.axis} '{choice.kind}' needs it"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    return f"{item['msg'][0].lower()}{item['msg'][1:]}, found {item['input']!r}"


def walk(
    spec: Spec, d_model: int, path: str = "", copies: int = 1, *, used: bool = False
) -> Iterator[tuple[str, Spec, Part, int]]:
    """Every part below `spec`: its path (a layer goes by its kind), the component that owns it, and how often it is
    stored (or `used` in one pass)."""
    for name, child, times in spec.children(d_model, used):
        inner = f"{path}.{name}" if path else name
        if isinstance(child, Sized):
            yield from walk(child.spec, child.d_model, inner, copies * times, used=used)
        else:
            yield inner, spec, child, copies * times


def components(spec: Spec, d_model: int, path: str = "", copies: int = 1) -> Iterator[tuple[str, Spec, int]]:
    """Every component from `spec` down, with its path and how often one pass goes through it."""
    yield path, spec, copies
    for name, child, times in spec.children(d_model, used=True):
        if isinstance(child, Sized):
            inner = f"{path}.{name}" if path else name
            yield from components(child.spec, child.d_model, inner, copies * times)


def tensors(spec: Spec, d_model: int, prefix: str = "") -> Iterator[tuple[str, Part, str]]:
    """Every tensor, layer by layer: its name as in a built model's `state_dict`, its part, and its name within the
    part."""
    for name, part in spec.parts(d_model).items():
        path = prefix + name
        if isinstance(part, Stack):
            for index, kind in enumerate(part.stored()):
                yield from tensors(part.kinds[kind], d_model, f"{path}.{index}.")
        elif isinstance(part, Group):
            for inner, leaf in part.parts.items():
                yield from _leaves(leaf, f"{path}.{inner}")
        elif isinstance(part, Part):
            yield from _leaves(part, path)
        else:
            sub = part if isinstance(part, Sized) else Sized(part, d_model)
            yield from tensors(sub.spec, sub.d_model, f"{path}.")


def _leaves(part: Part, path: str) -> Iterator[tuple[str, Part, str]]:
    for leaf in part.shapes():
        yield (f"{path}.{leaf}" if leaf else path), part, leaf


def table(spec: Spec, d_model: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, exactly as a built model's `state_dict` has them."""
    return {name: part.shapes()[leaf] for name, part, leaf in tensors(spec, d_model)}
