"""The lists of walks and of long tests name tests that there are."""

from pathlib import Path

import pytest

from support.walks import LONG, WALKS


@pytest.mark.quick
@pytest.mark.parametrize("file", [*WALKS, *LONG])
def test_every_name_is_that_of_a_test(file):
    (found,) = Path(__file__).parent.rglob(f"{file}.py")
    text = found.read_text(encoding="utf-8")
    for name in [*WALKS.get(file, (0, ""))[1].split(), *LONG.get(file, "").split()]:
        assert f"def {name}(" in text, name
