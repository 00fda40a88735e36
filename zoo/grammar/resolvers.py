"""Register the interpolations of the grammar, `${up:…}` and `${or:…}`, and record the names that they look up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.errors import ConfigError
from zoo.grammar import omega

RESOLVERS = ("up", "or")
"""The names of the grammar's interpolations."""

_reads: ContextVar[set[str] | None] = ContextVar("reads", default=None)
"""Where the names looked up are recorded. A ContextVar, as each thread that reads a model has its own."""


_kept: ContextVar[bool] = ContextVar("kept", default=False)
"""Whether interpolations stay as they are."""


@contextmanager
def keep_interpolations() -> Iterator[None]:
    """Leave interpolations as they are inside this block. OmegaConf would merge a mapping into what `${up:norm}` stands
    for at that moment, where the resolvers are registered, and put the mapping in its place where they are not."""
    token = _kept.set(True)
    try:
        yield
    finally:
        _kept.reset(token)


class MissingName(ConfigError):
    """No scope around `place` has a name that it reads. Of several that would do the last is the usual one:
    `${up:n_kv_heads,n_heads}`."""

    def __init__(self, name: str, place: str) -> None:
        super().__init__(describe_missing_name(name, [place]))
        self.name, self.place = name, place


def describe_missing_name(name: str, places: Sequence[str]) -> str:
    """Write one line for a name that is missing, whatever number of places read it."""
    places = list(dict.fromkeys(places))
    shown = places if len(places) <= 3 else [*places[:2], f"{len(places) - 2} more"]
    who = f"{', '.join(shown[:-1])} and {shown[-1]} read" if len(shown) > 1 else f"{shown[0]} reads"
    return f"{name}: is missing ({who} it; state it at the model's top level)"


def register_resolvers() -> None:
    """Make OmegaConf know `${up:a,b}`, the nearest enclosing `a`, else `b`; and `${or:a,literal}`, the nearest
    enclosing `a`, else the literal."""
    OmegaConf.register_new_resolver("up", _resolve_up, replace=True, use_cache=False)
    OmegaConf.register_new_resolver("or", _resolve_or, replace=True, use_cache=False)


@contextmanager
def record_reads() -> Iterator[set[str]]:
    """Collect the names that interpolations look up inside this block, in this thread, nested blocks included."""
    names, outer = set(), _reads.get()
    token = _reads.set(names)
    try:
        yield names
    finally:
        _reads.reset(token)
        if outer is not None:
            outer |= names


def _resolve_up(*names: str, _parent_: Any) -> Any:
    for name in names:
        found, value = _find_nearest(name, _parent_)
        if found:
            return value
    raise MissingName(names[-1], omega.get_full_key(_parent_) or "the model")


def _resolve_or(name: str, literal: Any, *, _parent_: Any) -> Any:
    found, value = _find_nearest(name, _parent_)
    return value if found else literal


def _find_nearest(name: str, node: Any) -> tuple[bool, Any]:
    """Look for a key outwards, starting beside the component that asks. Gives whether it is there, and its value. What
    the component is itself a part of does not count."""
    if _kept.get():
        raise LookupError(f"{name}: is not looked up while files are merged")
    reads = _reads.get()
    if reads is not None:
        reads.add(name)
    inner, scope = node, omega.get_parent(node)
    while scope is not None:
        if isinstance(scope, DictConfig) and name in scope and omega.get_raw_child(scope, name) is not inner:
            return True, scope[name]
        inner, scope = scope, omega.get_parent(scope)
    return False, None


def find_unresolvable(root: DictConfig) -> list[str]:
    """Write one line for each interpolation that leads nowhere, and one for each name that is missing."""
    missing: dict[str, list[str]] = {}
    found: dict[str, None] = {}
    for node in _leaves(root):
        try:
            omega.resolve_node(node)
        except OmegaConfBaseException as error:
            place = omega.get_full_key(node) or "the model"
            reason = _reason(error)
            if isinstance(reason, MissingName):
                missing.setdefault(reason.name, []).append(reason.place)
            else:
                found[reason.faults[0] if reason else f"{place}: {str(error).splitlines()[0]}"] = None
    return [*(describe_missing_name(name, places) for name, places in missing.items()), *found]


def _reason(error: BaseException) -> ConfigError | None:
    """Find the fault that one of our resolvers raised, if one did: OmegaConf wraps it in errors of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConfigError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _leaves(node: Any) -> Iterable[Any]:
    """Yield every value and interpolation below a node, those of lists included. `layers` is left out: the named kinds
    of layer resolve in scopes of their own."""
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        child = omega.get_raw_child(node, key)
        if child is None or key == "layers":
            continue
        if omega.is_interpolation(child) or omega.is_null(child) or not OmegaConf.is_config(child):
            yield child
        elif isinstance(child, DictConfig | ListConfig):
            yield from _leaves(child)
