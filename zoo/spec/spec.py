"""Define Spec: a component lists its parts, and everything that is counted, allocated, initialised or saved is read
from that list.

A component (an attention, a norm, a feed-forward, a whole model) is one frozen dataclass. Its fields are its
hyperparameters, which are the YAML keys; `parts(d_model)` names its weights and sub-components. No torch here.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, dataclass_transform

from pydantic import ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.dataclasses import rebuild_dataclass
from pydantic_core import core_schema

from zoo.errors import ConfigError
from zoo.spec.faults import (
    describe_item,
    describe_no_node,
    describe_unknown_field,
    describe_unknown_kind,
    find_booleans_as_numbers,
    find_large_numbers,
    make_refusal,
)
from zoo.spec.kinds import Kinds
from zoo.spec.parts import Group, Part, Sized, Stack, count_kinds

completing = threading.RLock()
"""Held while a class becomes a dataclass or pydantic builds its validator, on first use: a second thread would meet a
half-made class. Code that holds this lock must not import a module: another thread may be importing the same module and
waiting for this lock, because modules make components (defaults of fields) when they are imported."""


class Slot(NamedTuple):
    """The place of a part or sub-component in its owner: its roles, its kind if it is a layer, how many are `stored`
    (layers that share weights are stored once) and how many `used` in one pass. A part `common` to the layers of a kind
    is stored once. `learns` is as in Part."""

    roles: tuple[str, ...]
    kind: str | None = None
    stored: int = 1
    used: int = 1
    common: bool = False
    learns: bool = True


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Spec:
    """A component: frozen hyperparameters, and the weights, caches and costs that follow from them.

    An axis (`class Norm(Spec, axis="norm")`) is a base; a choice (`class RMSNorm(Norm, kind="rmsnorm")`) is a frozen,
    keyword-only pydantic dataclass, registered by its `kind`. A field annotated with an axis takes a mapping whose
    `kind` names one of its choices, or a Spec of that axis.
    """

    axis: ClassVar[str] = ""
    default: ClassVar[str] = ""  # the kind of a YAML node that names none
    kind: ClassVar[str] = ""
    kinds: ClassVar[Kinds] = Kinds("")
    moved: ClassVar[dict[str, str]] = {}  # renamed fields: old name → how to write it now
    joins: ClassVar[tuple[tuple[str, ...], ...]] = ()  # groups of Linears with one input, which one product can compute
    takes: ClassVar[tuple[str, ...]] = ()  # channels that it reads from other layers (`zoo.model.channels`)
    gives: ClassVar[tuple[str, ...]] = ()  # channels that it gives to other layers
    causal: ClassVar[bool | None] = None  # causal only (True), bidirectional only (False), either (None)

    def __init_subclass__(cls, *, axis: str = "", kind: str = "", default: str = "") -> None:
        if axis:
            cls.axis, cls.default, cls.kinds = axis, default, Kinds(cls.__module__)
        if kind:
            cls.kind = kind
            cls.kinds[kind] = cls

    def __new__(cls, *_: Any, **__: Any) -> Spec:
        if not cls.__dict__.get("__pydantic_complete__"):
            with completing:
                cls.complete()  # before Python looks up `__init__`, which this makes
                rebuild_dataclass(cls, raise_errors=False)  # type: ignore[arg-type]
        return super().__new__(cls)

    @classmethod
    def complete(cls) -> None:
        """Make the class and its bases pydantic dataclasses, on first use: this takes most of a millisecond a class,
        and a model uses few kinds."""
        with completing:
            for each in reversed(cls.__mro__):
                if issubclass(each, Spec) and each is not Spec and "__dataclass_fields__" not in each.__dict__:
                    config = ConfigDict(extra="forbid", defer_build=True, allow_inf_nan=False)
                    pydantic_dataclass(each, frozen=True, kw_only=True, config=config)

    @classmethod
    def fields(cls) -> tuple[dataclasses.Field[Any], ...]:
        """List the class's hyperparameters."""
        cls.complete()
        return dataclasses.fields(cls)  # type: ignore[arg-type]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        if cls.kind:
            cls.complete()
            return handler(source)
        return core_schema.no_info_plain_validator_function(cls.parse)

    @classmethod
    def parse(cls, node: object) -> Any:
        """Read the Spec that a YAML node of this axis describes. Raises one ValidationError that lists every fault."""
        if isinstance(node, cls):
            return node
        if not isinstance(node, Mapping):
            raise make_refusal(cls, describe_no_node(cls, node))
        fields = dict(node)
        kind = fields.pop("kind", cls.default)
        if (choice := cls.kinds.get(kind)) is None:
            raise make_refusal(cls, describe_unknown_kind(cls, node.get("kind")))
        names = {field.name for field in choice.fields()}
        details = [describe_unknown_field(choice, name, fields[name]) for name in fields if name not in names]
        wrong = find_booleans_as_numbers(choice, fields)
        if large := find_large_numbers(choice, fields):
            raise ValidationError.from_exception_data(choice.kind, [*details, *wrong, *large])
        items = []
        try:
            spec = choice(**{name: value for name, value in fields.items() if name in names})
            if not (details or wrong):
                return spec
        except ValidationError as error:
            items = [item for item in error.errors(include_url=False) if item["loc"] or not (details or wrong)]
        refused = {item["loc"][:1] for item in items}
        details += [describe_item(choice, item) for item in items]
        details += [each for each in wrong if each.get("loc", ())[:1] not in refused]
        raise ValidationError.from_exception_data(choice.kind, details)

    def parts(self, d_model: int) -> Mapping[str, Part | Spec | Sized | Group | Stack]:
        """List weights and sub-components by name, for a residual stream `d_model` wide."""
        return {}

    def cache(self) -> dict[str, tuple[int, ...]]:
        """List the tensors that one token caches while generating: name → shape."""
        return {}

    def state(self) -> dict[str, tuple[int, ...]]:
        """List the recurrent state kept while generating, of fixed size: name → shape."""
        return {}

    def core_flops(self, pairs: int) -> int:
        """Count the forward FLOPs of matrix products without weights (QKᵀ, PV), for `pairs` visible (query, key)
        pairs."""
        return 0

    def decode_flops(self, pairs: int) -> int:
        """Count the `core_flops` of a decoded token. Components override it if they compute decoding differently
        (absorbed MLA)."""
        return self.core_flops(pairs)

    def state_flops(self) -> int:
        """Count the forward FLOPs of updating and reading a recurrent state, per token."""
        return 0

    def pass_flops(self, d_model: int, new: int, held: int) -> int:
        """Count the forward FLOPs that are not proportional to tokens or pairs, such as those of a table that all
        tokens share, in a pass of `new` tokens after `held` cached ones."""
        return 0

    def constant_flops(self, d_model: int, new: int, pairs: int) -> int:
        """Count the part of `core_flops`, `state_flops` and `pass_flops` that multiplies by a constant (no gradient
        needed), for `new` tokens and `pairs` pairs."""
        return 0

    def forward(self, m: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the component's output. `self` holds numbers, `m` the weights by name; each axis declares its other
        arguments."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def shard(self, ranks: int) -> Spec:
        """Return the part that one of `ranks` tensor-parallel ranks holds: a smaller component of the same kind.

        A component overrides this by functions of zoo/spec/sharding.py: with `split` if it is divided, with
        `hold_whole` if every rank holds it whole. Raises ConfigError if the ranks do not divide the component, or if it
        does not override this method.
        """
        what = f"{self.axis} '{self.kind}' does not say how it splits over {ranks} ranks"
        raise ConfigError(f"tp: {what} (tp=1, or give {type(self).__name__} a `shard`)")

    def children(self, d_model: int) -> Iterator[tuple[str, Part | Sized, Slot]]:
        """Yield everything that `parts` lists, flattened one level: name, part or sized sub-component, and its Slot."""
        for name, part in self.parts(d_model).items():
            if isinstance(part, Spec):
                yield name, Sized(part, d_model), Slot((part.axis,))
            elif isinstance(part, Sized):
                yield name, part, Slot((part.role or part.spec.axis,), common=part.common, learns=part.learns)
            elif isinstance(part, Group):
                for inner, leaf in part.parts.items():
                    yield f"{name}.{inner}", leaf, Slot((part.role, leaf.role), learns=leaf.learns)
            elif isinstance(part, Stack):
                stored, used = count_kinds(part.stored()), count_kinds(part.pattern)
                for kind, spec in part.kinds.items():
                    yield f"{name}.{kind}", Sized(spec, d_model), Slot((), kind, stored[kind], used[kind])
            else:
                yield name, part, Slot((part.role,), learns=part.learns)
