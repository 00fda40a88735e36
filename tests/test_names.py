"""One name means one thing: a class and a file have names of their own in the whole of zoo."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import zoo

ROOT = Path(zoo.__file__).parent

GENERAL = ("__init__", "base", "settings")
"""Names that many folders have: a package, the base class of its kinds, and the settings of a data set or of a run."""

MIRRORS = ("analysis/explain/", "cli/")
"""Folders that name a file for what is elsewhere: prices that are explained, verbs."""

KINDS = {"bottleneck": {"model/attention/bottleneck.py", "model/block/bottleneck.py"}}
"""Files that are named for a kind that two axes have."""


def test_each_class_has_a_name_of_its_own():
    homes = defaultdict(list)
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(str(file.relative_to(ROOT)))
    assert len(homes) > 900
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_each_file_has_a_name_of_its_own():
    homes = defaultdict(set)
    for file in ROOT.rglob("*.py"):
        place = file.relative_to(ROOT).as_posix()
        if file.stem not in GENERAL and not place.startswith(MIRRORS):
            homes[file.stem].add(place)
    assert len(homes) > 450
    assert {name: files for name, files in homes.items() if len(files) > 1} == KINDS
