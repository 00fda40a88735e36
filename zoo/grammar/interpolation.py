"""Follow the interpolations of a model's plain data.

    ${up:a,b}        the nearest enclosing `a`, else the nearest `b`
    ${or:a,literal}  the nearest enclosing `a`, else the literal
    ${a.b}           the value at that place

`up` looks outwards from the component, so one component file works at a model's root (`zoo stats`), under `model`
(`zoo train`) and inside a kind of layer; an absolute or a relative path would break in one of these places.

OmegaConf composes the interpolations as texts and resolves none of them: it would take six times as long, because it
parses each text with ANTLR at each visit. Only texts that call OmegaConf's own resolvers or Hydra's are resolved by
OmegaConf, before all others (`call_resolvers`).
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.errors import ConfigError

RESOLVERS = ("up", "or")
"""The names of the grammar's interpolations."""

MISSING = "???"
"""OmegaConf's mark of a missing value; a key with it counts as absent."""

MOST = 100_000
"""Maximum interpolations followed while reading one model; packaged models have hundreds. A chain in which each value
has two interpolations of the next would double at each step."""

_INNERMOST = re.compile(r"(?<!\\)\$\{((?:[^${}]|\{[^${}]*\})*)\}")
_FOREIGN = re.compile(r"(?<!\\)\$\{(?!\s*(?:up|or)\s*:)[^${}:]*:(?:[^${}]|\{[^${}]*\})*\}")


def split_interpolation(text: object) -> tuple[list[str], str | None]:
    """Split `${up:a,b}` into the names [a, b], and `${or:a,literal}` into [a] and the literal; [] for anything else."""
    found = _INNERMOST.fullmatch(text) if isinstance(text, str) else None
    resolver, _, asked = (found[1] if found else "").partition(":")
    return _split_arguments(resolver.strip(), asked) if resolver.strip() in RESOLVERS else ([], None)


def _split_arguments(resolver: str, asked: str) -> tuple[list[str], str | None]:
    """Split the arguments of `up` or `or` into names and the literal: all that follows the first comma of `or`."""
    if resolver == "up":
        return [name.strip() for name in asked.split(",")], None
    name, comma, literal = asked.partition(",")
    return [name.strip()], literal.strip() if comma else None


def list_sizes(node: Any) -> dict[str, int]:
    """Map the key of each `${or:key,literal}` in a node to the literal: the key's value in a model that does not state
    it. A key is left out if it has several different literals, or one that is no positive whole number."""
    found: dict[str, set[str]] = {}
    for text in _INNERMOST.findall(str(node)):
        names, literal = split_interpolation(f"${{{text}}}")
        if literal is not None:
            found.setdefault(names[0], set()).add(literal)
    return {name: int(text) for name, (text, *more) in found.items() if not more and text.isdecimal() and int(text)}


def find_foreign(text: str) -> Iterator[str]:
    """Yield the name of each resolver that a text calls, other than the grammar's `up` and `or`. Such resolvers are
    OmegaConf's and Hydra's. Some of them read environment variables, so untrusted files may not call them."""
    opened: list[int | None] = []  # where each open interpolation's name starts; None once its resolver is known
    at = 0
    while at < len(text):
        if text.startswith("${", at):
            at += 2
            opened.append(at)
            continue
        if text[at] == "}" and opened:
            opened.pop()
        elif text[at] == ":" and opened and opened[-1] is not None:
            name = text[opened[-1] : at].strip()
            opened[-1] = None
            if name not in RESOLVERS:
                yield name
        at += 1


def read_literal(text: str) -> Any:
    """Read the literal of `${or:a,literal}` as OmegaConf reads YAML: 1e-3 is a number. The caller may change the
    result, which is a copy."""
    return copy.deepcopy(_parse_literal(text))


@functools.lru_cache(4096)
def _parse_literal(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.create(f"- {text}"))[0]  # type: ignore[index]


class Unresolvable(ConfigError):
    """Raised for an interpolation that cannot be resolved. `place` is the key that holds the interpolation."""

    def __init__(self, reason: str, place: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.reason = reason


class MissingName(Unresolvable):
    """Raised for a name that no scope around a component has. `place` is the path of the component ("the model" for the
    root), `key` the path of the field that holds the interpolation. `name` is the last and most general of the names
    looked up: n_heads of `${up:n_kv_heads,n_heads}`."""

    def __init__(self, name: str, place: str, key: str) -> None:
        super().__init__("", place)
        self.name, self.place, self.key, self.faults = name, place, key, [describe_missing_name(name, [place])]


def describe_missing_name(name: str, places: Sequence[str], usual: str = "") -> str:
    """Write one line for a missing name, for all places that look it up. `usual` proposes a value (`_propose`)."""
    places = list(dict.fromkeys(places))
    shown = places if len(places) <= 3 else [*places[:2], f"{len(places) - 2} more"]
    who = f"{', '.join(shown[:-1])} and {shown[-1]} read" if len(shown) > 1 else f"{shown[0]} reads"
    return f"{name}: is missing ({who} it; state it at the model's top level{usual})"


class Scope:
    """A mapping or a list of a model's plain data, with its outer scopes. Reading a value follows interpolations."""

    def __init__(self, node: Any, above: Scope | None = None, key: object = None) -> None:
        self.node, self.above, self.key = node, above, key
        self.root: Scope = above.root if above else self
        self.reads: set[str] = set()
        """The names that interpolations have looked up since `take_reads`. Only the root scope's set is used; the same
        holds for the next two attributes."""
        self.following: list[tuple[int, Any]] = []
        """The places whose interpolations are being followed, to find cycles."""
        self.followed = 0
        """The number of interpolations followed."""

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.node, dict)

    @property
    def keys(self) -> Sequence[Any]:
        return list(self.node) if self.is_mapping else range(len(self.node))

    def locate(self, key: object = None) -> str:
        """Write the dotted path of this node, or of a key in it."""
        if key is None:
            return self.above.locate(self.key) if self.above else ""
        path = self.locate()
        return f"{path}[{key}]" if not self.is_mapping else f"{path}.{key}" if path else str(key)

    def take_reads(self) -> set[str]:
        """Return the names that were looked up since the last call."""
        reads, self.root.reads = self.root.reads, set()
        return reads

    def get(self, key: Any) -> Any:
        """Read the value of a key: a Scope for a mapping or a list, None for a missing key. Raises Unresolvable."""
        value = self.node.get(key) if self.is_mapping else self.node[key]
        return None if value == MISSING else self._open(key, value)

    def read(self, key: object) -> Any:
        """Read the value of a key as plain data. Raises Unresolvable."""
        return to_plain(self.get(key))

    def to_plain(self) -> Any:
        """Convert to plain data, with interpolations followed. Raises Unresolvable."""
        if self.is_mapping:
            return {key: to_plain(self._open(key, value)) for key, value in self.node.items()}
        return [to_plain(self._open(key, value)) for key, value in enumerate(self.node)]

    def _open(self, key: object, value: object) -> Any:
        if isinstance(value, dict | list):
            return Scope(value, self, key)
        return self._follow(key, value) if isinstance(value, str) and "${" in value else value

    def _follow(self, key: object, text: str) -> Any:
        """Follow the interpolations of a text, inner ones first. A text that is one whole interpolation gives its
        value, of any type; in any other text the values are inserted as texts."""
        place = (id(self.node), key)
        if place in self.root.following:
            raise Unresolvable("Recursive interpolation detected", self.locate(key))
        self.root.followed += 1
        if self.root.followed > MOST:
            raise ConfigError(f"{self.locate(key)}: leads through more than {MOST:,} interpolations (fewer)")
        self.root.following.append(place)
        try:
            whole, rest = text, text
            while found := _INNERMOST.search(rest):
                value = self._evaluate(key, found[1].strip())
                if found[0] == rest:
                    return value
                rest = f"{rest[: found.start()]}{to_plain(value)}{rest[found.end() :]}"
        finally:
            self.root.following.pop()
        if "${" in rest.replace("\\${", ""):
            raise Unresolvable(f"holds {whole!r}, no interpolation that can be read (${{up:name}})", self.locate(key))
        return rest.replace("\\${", "${")

    def _evaluate(self, key: object, text: str) -> Any:
        """Evaluate the text between an interpolation's braces."""
        resolver, colon, asked = (each.strip() for each in text.partition(":"))
        if not colon:
            return self._find_path(key, text)
        if resolver not in RESOLVERS:
            raise Unresolvable(f"Unsupported interpolation type {resolver}", self.locate(key))
        names, literal = _split_arguments(resolver, asked)
        if not names[0] or not (literal or resolver == "up"):
            raise Unresolvable(f"${{{text}}} cannot be read (${{up:name}}, or ${{or:name,value}})", self.locate(key))
        found, value = self.find_nearest(names)
        if found:
            return value
        if literal is None:
            raise MissingName(names[-1], self.locate() or "the model", self.locate(key))
        try:
            return read_literal(literal)
        except yaml.YAMLError:
            raise Unresolvable(f"${{{text}}} has a value that is no YAML", self.locate(key)) from None

    def find_nearest(self, names: Sequence[str]) -> tuple[bool, Any]:
        """Look up names outwards, one after another, from the scope around this component. Gives whether one was found,
        and its value. A key does not count if this component stands inside it: `norm` within `norm`, say."""
        for name in names:
            self.root.reads.add(name)
            inner, scope = self, self.above
            while scope is not None:
                if scope.is_mapping and scope.node.get(name, MISSING) != MISSING and inner.key != name:
                    return True, scope.get(name)
                inner, scope = scope, scope.above
        return False, None

    def _find_path(self, key: object, path: str) -> Any:
        """Find a value by its dotted path from the root, or relative to this scope if it starts with dots."""
        names = path.lstrip(".")
        node: Any = self if names != path else self.root
        for _ in range(len(path) - len(names) - 1):
            node = node.above if node else None
        for name in re.sub(r"\[([^\]]*)\]", r".\1", names).split("."):
            index = int(name) if isinstance(node, Scope) and not node.is_mapping and name.isdigit() else name
            if not isinstance(node, Scope) or index not in node.keys:
                raise Unresolvable(f"Interpolation key '{path}' not found", self.locate(key))
            node = node.get(index)
        return node


def to_plain(value: Any) -> Any:
    """Convert a value from `Scope.get` to plain data."""
    return value.to_plain() if isinstance(value, Scope) else value


def resolve(body: dict[Any, Any]) -> dict[Any, Any]:
    """Copy the plain data of a model, or of a training config without its model, with its interpolations followed. The
    data must have passed the gate, as for `call_resolvers`. Raises Unresolvable."""
    return Scope(call_resolvers(body)).to_plain()


def call_resolvers(body: dict[Any, Any]) -> dict[Any, Any]:
    """Copy plain data with each interpolation that calls a resolver of OmegaConf's or of Hydra's, such as
    `${oc.env:D_FF}`, replaced by its value. The data must have passed the gate (`zoo.compose.gate`), because resolvers
    may read environment variables. Raises Unresolvable."""
    if not _FOREIGN.search(str(body)):
        return body
    try:
        return _call_below(body, OmegaConf.create(body))
    except OmegaConfBaseException as error:
        raise Unresolvable(str(error).splitlines()[0], error.full_key or "the model") from error


def _call_below(node: Any, config: Any) -> Any:
    keys = node if isinstance(node, dict) else range(len(node))
    made = {key: _call(node[key], config, key) for key in keys}
    return made if isinstance(node, dict) else [*made.values()]


def _call(value: Any, config: Any, key: Any) -> Any:
    """Call the resolvers in a value at a key of OmegaConf's node, inner ones first. Interpolations in their results are
    not followed, because a result may be the text of an environment variable."""
    if isinstance(value, dict | list):
        return _call_below(value, config[key])
    while isinstance(value, str) and (found := _FOREIGN.search(value)):
        config[key] = found[0]
        given = config[key]
        given = given.replace("${", "\\${") if isinstance(given, str) else given
        whole = OmegaConf.to_container(given) if OmegaConf.is_config(given) else given
        value = whole if found[0] == value else f"{value[: found.start()]}{whole}{value[found.end() :]}"
    return value


def settle(scope: Scope) -> Any:
    """Convert to plain data, with interpolations of numbers and words followed. Interpolations of components, and
    unresolvable ones, stay as texts."""
    found = {key: _settle(scope, key) for key in scope.keys}
    return found if scope.is_mapping else [*found.values()]


def _settle(scope: Scope, key: Any) -> Any:
    value = scope.node[key]
    if isinstance(value, dict | list):
        return settle(Scope(value, scope, key))
    try:
        found = scope.get(key) if isinstance(value, str) and "${" in value else value
    except Unresolvable:
        return value
    return value if isinstance(found, Scope) else found


def find_unresolvable(root: Scope) -> list[str]:
    """Write one line for each missing name and for each interpolation that cannot be resolved."""
    missing: dict[str, list[str]] = {}
    found: dict[str, None] = {}
    for scope, key in _list_texts(root):
        try:
            scope.get(key)
        except MissingName as error:
            missing.setdefault(error.name, []).append(error.place)
        except Unresolvable as error:
            found[f"{scope.locate(key)}: {error.reason}"] = None
    return [*(describe_missing_name(name, places, _propose(name, root)) for name, places in missing.items()), *found]


def _propose(name: str, root: Scope) -> str:
    """Propose the usual value of a missing dimension, as a line of a file and as an override; "" if there is none."""
    width, heads = root.node.get("d_model"), root.node.get("n_heads")
    if name != "head_dim" or not (type(width) is type(heads) is int and heads > 0 and width % heads == 0):
        return ""
    usual = width // heads
    return f": head_dim: {usual}, which is d_model / n_heads, or head_dim={usual}"


def _list_texts(scope: Scope) -> Iterator[tuple[Scope, Any]]:
    """Yield the place of every interpolation below a node, lists included. `layers` is left out: the kinds of layer are
    resolved in scopes of their own."""
    for key in scope.keys:
        value = scope.node[key]
        if isinstance(value, dict | list) and key != "layers":
            yield from _list_texts(Scope(value, scope, key))
        elif isinstance(value, str) and "${" in value and key != "layers":
            yield scope, key
