"""Read untrusted YAML within budgets of bytes, depth, digits and values (counted with aliases expanded).

The text is checked event by event before a loader builds a tree from it. Only PyYAML's safe loaders are used, and
OmegaConf's, which derives from a safe loader: no tag can name a Python class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import CheckpointError
from zoo.untrusted.json_file import NESTED, read_bytes
from zoo.untrusted.printable import quote, shorten

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

LARGEST = 4 << 20
"""Maximum bytes of a YAML file."""
NODES = 20_000
"""Maximum number of values in a file for OmegaConf, with aliases expanded. OmegaConf takes seconds for this number; a
model's YAML has hundreds."""
PLAIN_NODES = 400_000
"""Maximum number of values in a file read as plain data, such as the pattern of a model with 100,000 layers."""
DIGITS = 40
"""Maximum number of characters of a number."""

_TYPED = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "bool", "int", "float", "binary")}
"""Refused tags. Their constructors raise errors of many kinds for invalid text, and plain values need no tag."""
INDENTED = ("mapping values are not allowed here", "expected <block end>, but found '<block mapping start>'")
"""PyYAML's messages for a key in another column than its neighbours."""
TWICE = "found duplicate key "
"""Start of the message of OmegaConf's loader for a duplicate key. The key follows."""
_NUMBER = re.compile(r"[-+]?[0-9][0-9a-fA-FxXoO_:.]*")


def read_yaml_text(file: Path, most: int = NODES) -> str:
    """Read the text of a YAML file and check it against the budgets, among them `most` values.

    Raises FileNotFoundError for a missing file, and CheckpointError for a file that exceeds the budgets or is no YAML.
    """
    data = read_bytes(file, LARGEST)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: cannot be read, it is not UTF-8 text") from error
    check_yaml(text, str(file), most)
    return text


def parse_yaml(file: Path) -> Any:
    """Read a YAML file as plain data. Raises FileNotFoundError for a missing file, and CheckpointError for a file that
    exceeds the budgets or is no YAML."""
    try:
        return yaml.load(read_yaml_text(file, PLAIN_NODES), LOADER)
    except (ValueError, TypeError, OverflowError) as error:  # a date or a number that Python cannot hold
        raise CheckpointError(f"{file}: cannot be read as YAML, found {shorten(str(error))}") from error
    except yaml.YAMLError as error:
        raise CheckpointError(describe_yaml_error(str(file), error)) from error


def check_yaml(text: str, place: str, most: int = NODES) -> None:
    """Check that a YAML text parses and stays within the budgets. Raises CheckpointError with the line."""
    sizes: dict[str, int] = {}  # the values in each anchored node, aliases expanded
    open_nodes: list[list[Any]] = [[None, 0]]  # each open container's anchor, and the values in it so far
    nul = None
    try:
        for event in yaml.parse(text, LOADER):
            line = f"{place}:{event.start_mark.line + 1}"
            if isinstance(event, yaml.AliasEvent):
                size = sizes.get(event.anchor, most)  # an alias inside its own anchor would expand without end
            elif isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append([event.anchor, 1])
                if len(open_nodes) > NESTED:
                    raise CheckpointError(f"{line}: is nested more than {NESTED} deep (a flatter file)")
                continue
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, size = open_nodes.pop()
                sizes[anchor] = size
            elif isinstance(event, yaml.ScalarEvent):
                if event.tag in _TYPED and not any(event.implicit):
                    raise CheckpointError(f"{line}: has the tag !!{event.tag.rpartition(':')[2]} (a plain value)")
                if len(event.value) > DIGITS and event.implicit[0] and _NUMBER.fullmatch(event.value):
                    raise CheckpointError(f"{line}: holds a number of {len(event.value):,} digits (at most {DIGITS})")
                nul = event if "\0" in event.value and nul is None else nul
                sizes[event.anchor], size = 1, 1
            else:
                continue
            open_nodes[-1][1] += size
            if open_nodes[-1][1] > most:
                raise CheckpointError(f"{line}: holds more than {most:,} values, aliases expanded (fewer)")
    except yaml.YAMLError as error:
        raise CheckpointError(describe_yaml_error(place, _explain(text, error))) from error
    if nul is not None:  # reported last: `find_key` builds a tree, which is safe only within the budgets
        key = shorten(find_key(text, nul.start_mark.index), 60)
        raise CheckpointError(f"{place}:{nul.start_mark.line + 1}: {key}: {quote(nul.value)} holds a NUL (a text)")


def _explain(text: str, error: yaml.YAMLError) -> yaml.YAMLError:
    """Return the same error from PyYAML's own parser, whose message says what was found and expected; libyaml's does
    not. Nesting errors are returned as they are: PyYAML's time grows with the square of the depth."""
    if "nesting" in str(error):
        return error
    try:
        for _ in yaml.parse(text, yaml.SafeLoader):
            pass
    except yaml.YAMLError as explained:
        return explained
    return error


def describe_yaml_error(place: str, error: yaml.YAMLError) -> str:
    """Describe a PyYAML error on one line, with its line and column in the file."""
    mark = getattr(error, "problem_mark", None)
    if found := _describe_layout(error, mark):
        line, text = found
        return f"{place}:{line}: not YAML, {text}"
    problem = str(getattr(error, "problem", None) or error)
    if mark and problem.startswith(TWICE):
        return f"{place}:{mark.line + 1}: {shorten(problem.removeprefix(TWICE))}: is stated twice (leave one out)"
    where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    return f"{place}{where}: not YAML, {shorten(problem)}"


def _describe_layout(error: Any, mark: Any) -> tuple[int, str] | None:
    """Describe the most common mistakes, a wrong indentation or a missing space after a colon, with the line. None for
    other errors, and for libyaml's, which do not contain the text."""
    if mark is None or mark.buffer is None:
        return None
    lines = mark.buffer.rstrip("\0").splitlines()
    if error.problem == "could not find expected ':'" and error.context_mark is not None:
        line = error.context_mark.line
        return line + 1, f"{shorten(lines[line].strip(), 60)!r} is no key and value (a space after the colon)"
    if str(error.problem).startswith("found character '\\t'"):
        return mark.line + 1, f"line {mark.line + 1} is indented with a tab (spaces would do)"
    if error.problem not in INDENTED or mark.line >= len(lines):
        return None
    above = next((at for at in range(mark.line - 1, -1, -1) if lines[at].split("#")[0].strip()), None)
    depth, before = (len(each) - len(each.lstrip(" ")) for each in (lines[mark.line], lines[above or 0]))
    if above is None or depth == before:
        twice = error.problem == INDENTED[0] and lines[mark.line].count(": ") > 1
        return (mark.line + 1, "a second ': ' in one line (quotes around a text that has one)") if twice else None
    how = f"indented {'further' if depth > before else 'less'} than line {above + 1}"
    return mark.line + 1, f"line {mark.line + 1} is {how} (keys of one mapping stand in one column)"


# ---------------------------------------------------------------- the keys of a text within the budgets


def list_lines(text: str) -> dict[str, int]:
    """Map the dotted keys of a text to their lines, from 1. An entry of a list has its index: `pattern.0`."""
    return {".".join(path): stated.start_mark.line + 1 for path, stated, _ in _walk(yaml.compose(text, LOADER), ())}


def find_key(text: str, index: int) -> str:
    """Return the dotted path of the key or value that starts at character `index` of the text; "" if there is none."""
    found = (path for path, *nodes in _walk(yaml.compose(text, LOADER), ()) if index in _begin(nodes))
    return ".".join(next(found, ()))


def _begin(nodes: list[yaml.Node]) -> list[int]:
    return [node.start_mark.index for node in nodes]


def _walk(node: yaml.Node | None, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield each item below a node, at any depth: path, node of the key, node of the value."""
    for name, stated, value in _list_items(node):
        yield (*path, name), stated, value
        yield from _walk(value, (*path, name))


def _list_items(node: yaml.Node | None) -> Iterator[tuple[str, Any, Any]]:
    """Yield each item of a mapping or list: its name (a key or an index), the node of the key (for a list, the entry),
    and the node of the value. Items merged by `<<` are included."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "<<":
                for each in value.value if isinstance(value, yaml.SequenceNode) else (value,):
                    yield from _list_items(each)
            else:
                yield str(key.value), key, value
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield str(index), value, value
