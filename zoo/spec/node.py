"""Define Node: fields of a component that have a meaning only together, grouped in a mapping of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, dataclass_transform

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import ArgsKwargs, core_schema

from zoo.errors import did_you_mean
from zoo.spec.faults import make_refusals
from zoo.spec.kinds import Kinds
from zoo.spec.spec import Spec


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Node(Spec):
    """A group of fields of a component: `class QKNorm(Node, name="qk_norm", word="norm")`. A node has no kind.

    A value that is not a mapping stands for the main field `word`: `qk_norm: rmsnorm` is `qk_norm: {norm: rmsnorm}`. A
    mapping with a kind also stands for the main field, except for keys in it that are the node's own.
    """

    word: ClassVar[str] = ""

    def __init_subclass__(cls, *, name: str = "", word: str = "") -> None:
        if name:  # empty when pydantic makes a dataclass of a node
            cls.axis = cls.kind = cls.default = name
            cls.word, cls.kinds = word, Kinds("")
            cls.kinds[name] = cls

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        own = super().__get_pydantic_core_schema__(source, handler)
        return core_schema.no_info_before_validator_function(cls._read, own)

    @classmethod
    def _read(cls, node: object) -> Any:
        """Read a node in a component's validation. Keyword arguments of a direct construction pass through."""
        return node if isinstance(node, ArgsKwargs) else cls.parse(node)

    @classmethod
    def parse(cls, node: object) -> Any:
        fields = cls._gather(node)
        try:
            return super().parse(fields)
        except ValidationError as error:
            if not cls.word:
                raise
            alone = node is not fields and len(fields) == 1  # only the main field: report faults at the node itself
            items = [(tuple(map(str, item["loc"])), item["msg"]) for item in error.errors(include_url=False)]
            raise make_refusals(cls, [cls._name_fault(loc, text, alone) for loc, text in items]) from error

    @classmethod
    def _name_fault(cls, loc: tuple[str, ...], text: str, alone: bool) -> tuple[tuple[str, ...], str]:
        """Locate a fault in the node. For an unknown key the message names the fields of node and main field."""
        names = [field.name for field in cls.fields() if field.name != cls.word]
        if len(loc) == 2 and loc[0] == cls.word and "has no such field" in text:
            hint = did_you_mean(loc[1], names) or f" ({cls.kind} has: {', '.join(names)}); {text}"
            return loc[1:], f"neither {cls.kind} nor its {cls.word} has such a field{hint}"
        return (loc[1:] if alone else loc), text

    @classmethod
    def _gather(cls, node: object) -> Any:
        """Expand a short form of the node to the mapping of its fields."""
        if isinstance(node, cls) or not cls.word or (isinstance(node, Mapping) and "kind" not in node):
            return node
        if not isinstance(node, Mapping):
            return {cls.word: node}
        names = {field.name for field in cls.fields()}
        own = {key: value for key, value in node.items() if key in names}
        return {cls.word: {key: value for key, value in node.items() if key not in names}, **own}
