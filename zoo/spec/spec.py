"""A Spec lists its parts; everything that is counted, allocated, initialised or saved is read from that list.

A component (an attention, a norm, a feed-forward, a whole model) is one frozen dataclass. Its fields are its
hyperparameters, which are the YAML keys; `parts(d_model)` names its weights and sub-components. No torch here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import core_schema

from zoo.spec.faults import detail, no_such_kind, not_a_node, refusal, unknown_field
from zoo.spec.parts import Group, Part, Sized, Stack


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
            raise refusal(cls, not_a_node(cls, node))
        fields = dict(node)
        choice = cls.kinds.get(fields.pop("kind", cls.default))
        if choice is None:
            raise refusal(cls, no_such_kind(cls, node.get("kind")))
        names = {field.name for field in choice.fields()}
        details = [unknown_field(choice, name, names) for name in fields if name not in names]
        try:
            spec = choice(**{name: value for name, value in fields.items() if name in names})
        except ValidationError as error:
            details += [detail(choice, item) for item in error.errors(include_url=False)]
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

    def forward(self, m: Any, *args: Any, **kwargs: Any) -> Any:
        """The maths. `self` holds numbers, `m` the weights by name; each axis declares its other arguments."""
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
