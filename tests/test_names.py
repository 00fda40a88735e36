"""One name means one thing: a class has a name of its own in the whole of zoo."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import zoo

ROOT = Path(zoo.__file__).parent


def test_each_class_has_a_name_of_its_own():
    homes = defaultdict(list)
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(str(file.relative_to(ROOT)))
    assert len(homes) > 900
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
