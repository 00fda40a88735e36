"""Where a fault of a Spec can be mended: the key of the YAML that its value was stated at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from zoo.grammar import omega
from zoo.grammar.pattern import get_kinds
from zoo.grammar.towers import TowerNode


def locate_faults(error: ValidationError, towers: Mapping[str, TowerNode]) -> list[str]:
    """One line for each fault, at the key where the user can mend it."""
    lines = []
    for item in error.errors(include_url=False):
        path = [str(step) for step in item["loc"]]
        tower = towers.get("") or towers.get(path.pop(0) if path[:1] and path[0] in towers else "")
        if tower is None:
            lines.append(f"{'.'.join(path) or 'model'}: {item['msg']}")
        else:
            lines.append(f"{_locate(path, tower)}: {item['msg']}")
    return lines


def _locate(path: list[str], tower: TowerNode) -> str:
    """The key, counted from the model, at which a value of a tower's plain data was stated."""
    where = ".".join(path) or tower.name
    if path[:1] == ["blocks"] and len(path) > 1:
        where = _follow(tower.scopes[path[1]], ["block", *path[2:]])
        patch = get_kinds(tower.root).get(path[1])
        if isinstance(patch, DictConfig) and OmegaConf.select(patch, where) is not None:
            where = f"layers.{path[1]}.{where}"
    elif path:
        where = _follow(tower.root, path)
    own = tower.name and where and OmegaConf.select(tower.patch, where) is not None
    return f"{tower.prefix if own else ''}{where or 'model'}"


def _follow(scope: DictConfig, path: list[str]) -> str:
    """The path with its interpolations followed: `block.attention.n_heads` is `n_heads` where it says
    `${up:n_heads}`."""
    node: Any = scope
    for index, step in enumerate(path):
        raw = omega.get_raw_child(node, step) if isinstance(node, DictConfig) and step in node else None
        if raw is None:
            break
        text = str(omega.get_raw_value(raw)) if omega.is_interpolation(raw) else ""
        if re.fullmatch(r"\$\{(?:up|or):\s*([\w]+).*\}", text):
            names = re.findall(r"\w+", text)[1:]
            source = next((each for each in names if each in scope), None)
            if source is None:
                break
            return _follow(scope, [source, *path[index + 1 :]])
        node = raw
    return ".".join(path)
