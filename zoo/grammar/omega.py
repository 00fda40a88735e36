"""Use the names that are private to OmegaConf 2.3: all of them are here, each behind a function.

`tests/test_private_names.py` fails by name when OmegaConf drops one, and when another file of zoo uses one.
"""

from __future__ import annotations

import functools
from typing import Any

from omegaconf import _utils, base
from omegaconf.grammar_parser import parse

METHODS = ("_get_parent", "_get_full_key", "_get_node", "_value", "_is_interpolation", "_is_none", "_dereference_node")
"""The private methods of OmegaConf's nodes that the functions below call."""

_parse_once = functools.lru_cache(4096)(parse)


def share_parses() -> None:
    """Parse each interpolation text once in this process.

    OmegaConf parses `${up:n_heads}` with ANTLR each time it visits a node: half the time of reading a Spec. Parse trees
    are never changed, so nodes with the same text can share one.
    """
    base.parse = _utils.parse = _parse_once  # type: ignore[attr-defined, assignment]


def get_parent(node: Any) -> Any:
    """Return the container that holds a node; None for a root."""
    return node._get_parent()


def get_full_key(node: Any) -> str:
    """Return the dotted path of a node from its root; "" for the root itself."""
    return node._get_full_key(None)


def get_raw_child(node: Any, key: Any) -> Any:
    """Return the child node under a key, its interpolation not followed."""
    return node._get_node(key)


def get_raw_value(node: Any) -> Any:
    """Return what a node holds; for an interpolation, its text."""
    return node._value()


def is_interpolation(node: Any) -> bool:
    """Tell whether a node is an interpolation."""
    return node._is_interpolation()


def is_null(node: Any) -> bool:
    """Tell whether a node holds null."""
    return node._is_none()


def resolve_node(node: Any) -> None:
    """Follow a node's interpolation. Raises OmegaConfBaseException where it leads nowhere."""
    node._dereference_node()
