"""The blocks of code on the pages of docs/, and what of them is run.

A block of `sh` is commands and one of `python` a program: both run, in the order of the page, in a folder that has the
files that pages name (`doc_folder`). What follows a line `# not run here: REASON` in its block is not run. A block of
`yaml` whose first line is `# NAME.yaml` is that file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
)
NOT_RUN = "# not run here: "


class Block(NamedTuple):
    """A fenced block: its page, the line of its fence, its language and its text."""

    page: str
    line: int
    language: str
    body: str

    @property
    def run(self) -> str:
        """What of the block is run."""
        return self.body.partition(NOT_RUN)[0]

    @property
    def reason(self) -> str:
        """Why the rest is not run; empty if all of it is."""
        return self.body.partition(NOT_RUN)[2].partition("\n")[0]

    @property
    def commands(self) -> list[str]:
        """The commands of what is run, without their comments."""
        lines = re.sub(r"\\\n\s*", "", self.run).splitlines()
        stripped = (re.split(r"\s+#\s|^#\s", line)[0].strip() for line in lines)
        return [line for line in stripped if line]


def read_blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, each.start()) + 1, each[1], each[2]) for each in found]
