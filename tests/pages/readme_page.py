"""Writes the pictures of README.md: `python tests/pages readme` records a terminal in docs/pictures/terminal.svg and
draws docs/pictures/llama3-8b.svg. test_readme_page.py holds the recording against what its commands print."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
COLUMNS = 80
RECORDED = {
    "zoo stats llama3-8b": 9,
    "zoo stats -m llama3-8b attention=gqa,mqa,mla position=rope": 6,
    "zoo solve batch llama3-8b --gpu h100 --context 8192": 7,
    "zoo stats llama3-8b attention.n_kv_head=4": 1,
}
"""Commands, and how many lines of each are shown."""

FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace("Fira Code, ", "")
"""rich's picture of a terminal, without the font that it would load from a server."""


def print_lines(command: str) -> list[str]:
    """Run a command and return what it prints, with its colours."""
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "FORCE_COLOR": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", *command.split()]
    done = subprocess.run(words, cwd=PICTURES, env=environment, capture_output=True, text=True, check=False)
    return [line for line in (done.stdout or done.stderr).splitlines() if Text.from_ansi(line).plain.strip()]


def record() -> str:
    """Record the terminal."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for command, shown in RECORDED.items():
        lines = print_lines(command)
        console.print(Text(f"$ {command}", style="bold green"))
        for line in lines[:shown]:
            console.print(Text.from_ansi(line))
        console.print(Text("…", style="dim") if lines[shown:] else "")
    return console.export_svg(title="zoo", code_format=FORMAT, unique_id="zoo")


def main() -> None:
    from zoo.cli import run

    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "terminal.svg").write_text(record(), encoding="utf-8")
    run(["draw", "llama3-8b", "--out", str(PICTURES / "llama3-8b.svg")])
    print(f"written: {PICTURES.name}/", file=sys.stderr)


if __name__ == "__main__":
    main()
