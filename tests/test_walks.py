"""The list of walks names tests that there are."""

from pathlib import Path

import pytest
from walks import WALKS


@pytest.mark.quick
@pytest.mark.parametrize("file", WALKS)
def test_every_walk_is_a_test_of_many_cases(file):
    text = Path(__file__).with_name(f"{file}.py").read_text(encoding="utf-8")
    for name in WALKS[file][1].split():
        assert f"def {name}(" in text, name
