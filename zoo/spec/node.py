"""Define Node: fields of a component that mean something together alone, in a mapping of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, dataclass_transform

from pydantic import ValidationError
from pydantic_core import ArgsKwargs, core_schema

from zoo.errors import did_you_mean
from zoo.spec.faults import make_refusals
from zoo.spec.kinds import Kinds
from zoo.spec.spec import Spec


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Node(Spec):
    """Fields that a component gathers: `class QKNorm(Node, name="qk_norm", word="norm")`.

    It has no kind. A value that is no mapping of its fields stands for its field `word`: `qk_norm: rmsnorm` is
    `qk_norm: {norm: rmsnorm}`, and so is a mapping with a kind, but for the keys that are the node's own.
    """

    word: ClassVar[str] = ""

    def __init_subclass__(cls, *, name: str = "", word: str = "") -> None:
        if name:  # none where pydantic makes a dataclass of a node
            cls.axis = cls.kind = cls.default = name
            cls.word, cls.kinds = word, Kinds("")
            cls.kinds[name] = cls

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        own = super().__get_pydantic_core_schema__(source, handler)
        return core_schema.no_info_before_validator_function(cls._read, own)

    @classmethod
    def _read(cls, node: Any) -> Any:
        """Read a node at its place in a component. What builds one by its fields passes as it is."""
        return node if isinstance(node, ArgsKwargs) else cls.parse(node)

    @classmethod
    def _parse(cls, node: Any) -> Any:
        fields = cls._gather(node)
        try:
            return super()._parse(fields)
        except ValidationError as error:
            if not cls.word:
                raise
            alone = node is not fields and len(fields) == 1  # the main field: its faults are at the node's own place
            items = [(tuple(map(str, item["loc"])), item["msg"]) for item in error.errors(include_url=False)]
            raise make_refusals(cls, [cls._name_fault(loc, text, alone) for loc, text in items]) from error

    @classmethod
    def _name_fault(cls, loc: tuple[str, ...], text: str, alone: bool) -> tuple[tuple[str, ...], str]:
        """Name a fault at the node's place. A key that neither the node nor its main field has is told of both."""
        names = [field.name for field in cls.fields() if field.name != cls.word]
        if len(loc) == 2 and loc[0] == cls.word and "has no such field" in text:
            hint = did_you_mean(loc[1], names) or f" ({cls.kind} has: {', '.join(names)}); {text}"
            return loc[1:], f"neither {cls.kind} nor its {cls.word} has such a field{hint}"
        return (loc[1:] if alone else loc), text

    @classmethod
    def _gather(cls, node: Any) -> Any:
        """Write the mapping of fields that a value stands for."""
        if isinstance(node, cls) or not cls.word or (isinstance(node, Mapping) and "kind" not in node):
            return node
        if not isinstance(node, Mapping):
            return {cls.word: node}
        names = {field.name for field in cls.fields()}
        own = {key: value for key, value in node.items() if key in names}
        return {cls.word: {key: value for key, value in node.items() if key not in names}, **own}
