"""Imports for type checkers alone go one way too, as `lint-imports` holds of all others."""

import tomllib
from pathlib import Path

import pytest

grimp = pytest.importorskip("grimp")

UPWARDS = {
    ("zoo.model.step", "zoo.cache.cache"),
}
"""Type-only imports of something that stands higher, which are to become fewer."""


def test_type_only_imports_go_one_way():
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(each["layers"] for each in settings["contracts"] if each["id"] == "layers")
    rank = {name.strip(): place for place, layer in enumerate(layers) for name in layer.split("|")}
    graph = grimp.build_graph("zoo", exclude_type_checking_imports=False, cache_dir=None)
    found = set()
    for module in graph.modules:
        own = module.split(".")[1:2]
        for other in graph.find_modules_directly_imported_by(module):
            above = other.split(".")[1:2]
            if own and above and own != above and own[0] in rank and rank[above[0]] <= rank[own[0]]:
                found.add((module, other))
    assert found <= UPWARDS
