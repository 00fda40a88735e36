"""Define Node: fields of a component that mean something together alone, in a mapping of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, dataclass_transform

from pydantic import ValidationError
from pydantic_core import ArgsKwargs, core_schema

from zoo.spec.faults import make_refusals
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
            cls.word, cls.kinds = word, {name: cls}

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
            if node is fields or len(fields) > 1:
                raise
            items = error.errors(include_url=False)  # of the main field alone: they are at the node's own place
            raise make_refusals(cls, [(tuple(map(str, item["loc"][1:])), item["msg"]) for item in items]) from error

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
