"""The list of walks names tests that there are."""

from pathlib import Path

import pytest

from support.walks import WALKS


@pytest.mark.quick
@pytest.mark.parametrize("file", WALKS)
def test_every_walk_is_a_test_of_many_cases(file):
    (found,) = Path(__file__).parent.rglob(f"{file}.py")
    text = found.read_text(encoding="utf-8")
    for name in WALKS[file][1].split():
        assert f"def {name}(" in text, name
