"""Names that Hydra keeps private are used in one file, and missed by name when they go; of OmegaConf, Typer and Click
none is used."""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from zoo.compose import hydra_engine

ROOT = Path(__file__).parents[1]
HOMES = {"hydra": "zoo/compose/hydra_engine.py", "omegaconf": "", "typer": "", "click": ""}
"""The one file that may use what a library keeps private; none for the others."""

OF_NODES = {"_get_parent", "_get_full_key", "_get_node", "_value", "_is_interpolation", "_is_none", "_dereference_node"}
"""Private methods of OmegaConf's nodes that are tempting."""

MODULES = ("hydra._internal", "omegaconf._", "omegaconf.base", "omegaconf.grammar_parser", "typer._", "click")
"""What the names of private modules begin with. TyperGroup is of typer.core, which Typer documents."""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def parsed_files() -> dict[str, ast.Module]:
    return {str(path.relative_to(ROOT)): parse(path) for path in sorted((ROOT / "zoo").rglob("*.py"))}


def imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The module and the name of each import, wherever it stands in a file; the name is "" for a whole module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def private_imports(tree: ast.Module) -> set[tuple[str, str]]:
    whole = {(module, name): f"{module}.{name}" for module, name in imports(tree)}
    return {key for key, text in whole.items() if text.startswith(MODULES)}


def test_private_modules_are_imported_in_one_file_a_library() -> None:
    strays = {
        f"{file}: {module} {name}"
        for file, tree in parsed_files().items()
        for module, name in private_imports(tree)
        if file != HOMES[module.partition(".")[0]]
    }
    assert strays == set()


def test_private_methods_of_hydra_and_omegaconf_are_called_in_one_file_a_library() -> None:
    names = {**dict.fromkeys(OF_NODES, "omegaconf"), **dict.fromkeys(hydra_engine.METHODS, "hydra")}
    strays = {
        f"{file}:{node.lineno}: {node.attr}"
        for file, tree in parsed_files().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in names and file != HOMES[names[node.attr]]
    }
    assert strays == set()


def test_every_private_method_called_in_the_one_file_is_listed_there() -> None:
    tree = parse(ROOT / HOMES["hydra"])
    called = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    assert called == set(hydra_engine.METHODS)


@pytest.mark.parametrize(
    ("module", "name"),
    sorted({each for file in HOMES.values() if file for each in private_imports(parse(ROOT / file))}),
    ids=lambda text: text or "whole",
)
def test_a_private_name_is_still_there(module: str, name: str) -> None:
    found = importlib.import_module(module)
    assert not name or hasattr(found, name), f"{module} has no {name} any more"


@pytest.mark.parametrize(("name", "owner"), hydra_engine.METHODS.items())
def test_hydras_classes_still_have_the_private_attribute(name: str, owner: type) -> None:
    assert hasattr(owner, name), f"{owner.__name__} has no {name} any more"
