"""From a model's YAML node to its Spec."""

from zoo.grammar.reading import (
    AXES,
    BOTH,
    DIMS,
    OWN,
    STRUCTURE,
    TOWERS,
    from_dict,
    register_resolvers,
    to_body,
    to_dict,
    to_spec,
    to_tree,
)

__all__ = [
    "AXES",
    "BOTH",
    "DIMS",
    "OWN",
    "STRUCTURE",
    "TOWERS",
    "from_dict",
    "register_resolvers",
    "to_body",
    "to_dict",
    "to_spec",
    "to_tree",
]
