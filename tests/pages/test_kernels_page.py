"""docs/kernels.md says what the code does; what was measured stands there as it was."""

import re

from pages import kernels_page
from zoo.kernels import KERNELS

WRITTEN = kernels_page.PAGE.read_text(encoding="utf-8")
MEASURED = WRITTEN.split(kernels_page.BEGIN)[1].split(kernels_page.END)[0].strip("\n")


def test_the_page_is_what_its_command_writes_around_the_measurements():
    assert kernels_page.page(MEASURED) == WRITTEN, "docs/kernels.md is old (python tests/pages kernels)"


def test_the_measurements_are_of_every_kernel_and_of_every_case_there_is():
    rows = [
        line.strip("| ").split(" | ") for line in MEASURED.splitlines() if re.match(r"\| (sdpa|flex|eager|flash)", line)
    ]
    assert {row[0] for row in rows} == {*kernels_page.HERE, *kernels_page.kernel_asks.PACKAGE}
    for row in rows:
        done, refused, failed = map(int, row[2:5] if row[0] in kernels_page.HERE else row[1:4])
        cases = len(kernels_page.list_cases()) * (1 if row[0] in kernels_page.HERE else 2)
        assert done + refused == cases
        assert failed == 0


def test_every_kernel_has_a_misuse_and_its_line():
    lines = re.findall(r"^kernel: (\w+) was asked for, but .* would do\)$", WRITTEN, re.MULTILINE)
    assert set(lines) == set(KERNELS) - {"eager"}
