"""Mutate what a file holds: the tree of a JSON or YAML file, the lines of a text, the bytes of anything."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

from .values import Place, Raw, choose_odd, list_attacks, make_deep, repeat


def choose_node(rng: Random, tree: Any) -> tuple[Any, ...]:
    """Choose a place in a tree, walking down from the root: one high up is as likely as all that is below another."""
    path: tuple[Any, ...] = ()
    while isinstance(tree, dict | list) and tree and (not path or rng.random() < 0.7):
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        path, tree = (*path, key), tree[key]
    return path


def mutate_tree(rng: Random, tree: Any, place: Place, names: tuple[str, ...] = ()) -> tuple[Any, str]:
    """Change one to three places of a tree. `names` are keys that may be added. Returns it, and what was done."""
    tree, said = copy.deepcopy(tree), []
    for _ in range(1 + (rng.random() < 0.3) + (rng.random() < 0.1)):
        tree, what = _mutate_once(rng, tree, place, names)
        said.append(what)
    return tree, "; ".join(said)


def _mutate_once(rng: Random, tree: Any, place: Place, names: tuple[str, ...]) -> tuple[Any, str]:
    path = choose_node(rng, tree) if rng.random() < 0.97 else ()
    if not path:
        return choose_odd(rng, place, tree), "root: replaced"
    holder, key = _holder(tree, path), path[-1]
    where, value, roll = ".".join(map(str, path)), holder[key], rng.random()
    if roll < 0.6:
        holder[key] = choose_odd(rng, place, value)
        return tree, f"{where}: {_show(holder[key])}"
    if roll < 0.72:
        del holder[key]
        return tree, f"{where}: deleted"
    if roll < 0.8:
        holder[key] = copy.deepcopy(_get(tree, choose_node(rng, tree)))
        return tree, f"{where}: a copy of another value"
    if isinstance(holder, dict):
        name = rng.choice(
            [*names, *map(str, holder), *("_target_", "defaults", "hydra", "kind", "", "\0", "a.b", "x" * 300)]
        )
        holder[name] = holder.pop(key) if roll < 0.88 else choose_odd(rng, place, value)
        return tree, f"{where}: {name[:40]!r} added beside or in its place: {_show(holder[name])}"
    holder[:] = repeat(holder, rng.choice([0, 2, 100]))
    return tree, f"{where}: its list repeated"


def _holder(tree: Any, path: tuple[Any, ...]) -> Any:
    return _get(tree, path[:-1])


def _get(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _show(value: Any) -> str:
    return ascii(value)[:100]


def _marked(tree: Any, raws: list[str]) -> Any:
    """Put marks in place of Raw values."""
    if isinstance(tree, Raw):
        raws.append(tree.text)
        return f"@@{len(raws) - 1}@@"
    if isinstance(tree, dict):
        return {key: _marked(value, raws) for key, value in tree.items()}
    return [_marked(value, raws) for value in tree] if isinstance(tree, list | tuple) else tree


def _put_raws(text: str, raws: list[str]) -> bytes:
    """Put Raw texts in place of their marks, in one pass over the text."""
    return re.sub(r"""(['"])@@(\d+)@@\1""", lambda mark: raws[int(mark[2])], text).encode("utf-8", "surrogatepass")


def write_json(tree: Any) -> bytes:
    """Write a tree as JSON, Raw values as they are."""
    raws: list[str] = []
    return _put_raws(json.dumps(_marked(tree, raws)), raws)


def write_yaml(tree: Any) -> bytes:
    """Write a tree as YAML, Raw values as they are."""
    raws: list[str] = []
    marked = _marked(tree, raws)
    try:
        text = yaml.safe_dump(marked, sort_keys=False, width=10_000, allow_unicode=True)
    except yaml.YAMLError:  # a value that YAML has no form for
        text = json.dumps(marked)
    return _put_raws(text, raws)


def mutate_bytes(rng: Random, data: bytes) -> tuple[bytes, str]:
    """Cut, flip, insert, repeat or overwrite bytes. Returns them, and what was done."""
    at, size = rng.randrange(len(data) + 1), len(data)
    span = data[at : at + rng.choice([1, 4, 16, 200])]
    odd = rng.choice(
        [b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1b]0;t\x07", b"9" * 5000, b"{", b'"', b"\n\n", b"\r"]
    )
    done: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        f"cut at {at} of {size}": lambda: data[:at],
        f"{len(span)} bytes deleted at {at}": lambda: data[:at] + data[at + len(span) :],
        f"{len(span)} bytes repeated at {at}": lambda: data[:at] + span * rng.choice([2, 50]) + data[at + len(span) :],
        f"{odd[:8]!r} inserted at {at}": lambda: data[:at] + odd + data[at:],
        f"{len(span)} bytes of 0xff at {at}": lambda: data[:at] + b"\xff" * len(span) + data[at + len(span) :],
        "bytes flipped": lambda: _flip(rng, data),
        "zeros for ever": lambda: data + bytes(100_000),
    }
    what = rng.choice([*done, "bytes flipped", "bytes flipped"])
    return done[what](), what


def _flip(rng: Random, data: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice([1, 2, 8])):
        if made:
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def mutate_lines(rng: Random, text: str, place: Place) -> tuple[bytes, str]:
    """Delete, repeat, swap, indent or insert lines. Returns the text, and what was done."""
    lines = text.splitlines()
    at = rng.randrange(len(lines)) if lines else 0
    what = rng.choice(["deleted", "repeated", "indented", "swapped", "inserted", "bomb", "deep"])
    if what == "inserted" or not lines:
        value = rng.choice(list_attacks(place))
        lines.insert(
            at,
            rng.choice(["defaults: ", "hydra: ", "model: ", "- ", "kind: "])
            + write_json(value).decode(errors="replace"),
        )
    elif what == "bomb":
        lines.append("z0: &z0 [x, x]")
        lines += [f"z{n}: &z{n} [{', '.join([f'*z{n - 1}'] * 9)}]" for n in range(1, rng.choice([4, 9, 12]))]
    elif what == "deep":
        lines.append(f"z: {make_deep(rng).text}")
    else:
        other = rng.randrange(len(lines))
        if what == "swapped":
            lines[at], lines[other] = lines[other], lines[at]
        else:
            made = {"deleted": [], "repeated": [lines[at]] * 2, "indented": [" " * rng.choice([1, 2, 4]) + lines[at]]}
            lines[at : at + 1] = made[what]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"), f"line {at + 1}: {what}"


def mutate_file(rng: Random, file: Path, place: Place, names: tuple[str, ...] = ()) -> str:
    """Mutate a file in its place by what it holds: as a tree, as lines, as bytes, or as the link it is replaced with.
    Returns what was done."""
    data, roll = file.read_bytes(), rng.random()
    if roll < 0.04:
        return f"{file.name}: {replace_by_link(rng, file, place)}"
    if file.suffix in (".json", ".yaml", ".yml") and roll < 0.85:
        yamls = file.suffix != ".json"
        if yamls and roll < 0.25:
            made, what = mutate_lines(rng, data.decode(), place)
        else:
            tree, what = mutate_tree(rng, yaml.safe_load(data) if yamls else json.loads(data), place, names)
            made = (write_yaml if yamls else write_json)(tree)
    elif file.suffix == ".jsonl" and roll < 0.8:
        rows = [json.loads(line) for line in data.splitlines()]
        at = rng.randrange(len(rows))
        rows[at], what = mutate_tree(rng, rows[at], place, names)
        made = b"\n".join(write_json(row) for row in rows) + b"\n"
    elif file.suffix == ".safetensors" and roll < 0.7:
        made, what = mutate_header(rng, data, place)
    else:
        made, what = mutate_bytes(rng, data)
    file.write_bytes(made)
    return f"{file.name}: {what}"


def mutate_header(rng: Random, data: bytes, place: Place) -> tuple[bytes, str]:
    """Mutate the JSON at the head of a safetensors file, or the length that precedes it."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if rng.random() < 0.15:
        wrong = rng.choice([0, 1, size - 1, size + 1, 2**20, 2**31, 2**63, 2**64 - 1])
        return wrong.to_bytes(8, "little") + data[8:], f"header of {wrong} bytes"
    names = ("__metadata__", "dtype", "shape", "data_offsets", "F32", "BF16")
    tree, what = mutate_tree(rng, header, place, names)
    text = write_json(tree)
    return len(text).to_bytes(8, "little") + text + data[8 + size :], what


def replace_by_link(rng: Random, file: Path, place: Place) -> str:
    """Put a symbolic link, or a folder, in the place of a file."""
    target = rng.choice([file.name, "missing", ".", "..", str(place.outside / "secret.json"), "../outside/secret.json",
                         "/dev/zero", "/dev/null", str(place.outside / "folder"), "folder"])  # fmt: skip
    file.unlink()
    if target == "folder":
        file.mkdir()
    else:
        os.symlink(target, file)
    return f"a link to {target}"
