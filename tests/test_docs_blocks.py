"""The pages as a reader meets them: what a block of a page says to type is typed, in order, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.doc_blocks import NOT_RUN, PAGES, ROOT, Block, read_blocks
from support.doc_folder import fill_folder, run_commands

BLOCKS = {page: read_blocks(page) for page in PAGES}
REASONS = {
    "takes minutes": 5,
    "takes minutes, and needs the other libraries": 1,
    "needs a GPU": 1,
    "needs a cluster": 2,
    "needs a download": 3,
    "needs vLLM": 1,
    "needs vLLM, SGLang": 1,
    "needs vLLM, SGLang, TensorRT-LLM": 1,
    "needs llama.cpp, Ollama": 1,
    "needs llama-cpp-python": 1,  # tests/checkpoint/test_gguf_export.py runs it where that is installed
}
"""Why parts of blocks are not run, and how many have each reason."""

PROGRAMS = ("zoo", "python", "torchrun", "vllm", "pip", "llama-")
BY_HAND = ("docs/extend.md",)
"""Pages whose programs belong in a copy of the sources: tests/test_extending.py runs them."""


def list_blocks(*languages: str) -> list[Block]:
    return [each for blocks in BLOCKS.values() for each in blocks if each.language in languages]


@pytest.mark.quick
def test_what_is_not_run_says_why_and_is_counted():
    found: dict[str, int] = {}
    for block in list_blocks("sh", "python"):
        assert block.body.count(NOT_RUN) <= 1, f"{block.page}:{block.line}"
        found |= {block.reason: found.get(block.reason, 0) + 1} if block.reason else {}
    assert found == REASONS


@pytest.mark.quick
def test_no_command_hides_where_nothing_is_run():
    """Output is shown in a block of no language, with a command of its own behind `$ ` if any."""
    for block in list_blocks(""):
        for line in block.body.splitlines():
            assert not re.match(rf"({'|'.join(PROGRAMS)})[\w-]* [\w-]+[ =]", line), f"{block.page}:{block.line}: {line}"
    for page in PAGES:
        text = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
        assert not re.search(rf"^    ({'|'.join(PROGRAMS)}) .*$", text, re.M), page


@pytest.mark.quick
def test_every_target_of_make_that_a_page_names_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"), re.M)
        assert set(named) <= targets, page


def run_page(page: str, folder: Path) -> None:
    """Run a page's commands and programs in order; programs share their names, as in one session."""
    names: dict = {}
    for block in BLOCKS[page]:
        if block.language == "yaml" and (named := re.match(r"# (\w+\.yaml)\n", block.body)):
            (folder / named[1]).write_text(block.body, encoding="utf-8")
    for block in BLOCKS[page]:
        if block.language == "sh":
            for command in block.commands:
                if command.startswith("zoo ") and "launcher=" not in command:
                    run_commands([command], folder)
                else:
                    run_shell(command, folder)
        elif block.language == "python":
            with contextlib.chdir(folder):
                exec(compile(block.run, f"{page}:{block.line}", "exec"), names)


def run_shell(command: str, folder: Path) -> None:
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": programs, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    typed = re.sub(r"^zoo ", f"{sys.executable} -m zoo ", command)
    done = subprocess.run(
        typed, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


RUN = [
    page
    for page, blocks in BLOCKS.items()
    if page not in BY_HAND and any(b.language in ("sh", "python") for b in blocks)
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    return fill_folder(tmp_path_factory.mktemp("filled"))


def test_what_the_tutorial_draws_and_prices_works(tmp_path):
    blocks = BLOCKS["docs/tutorial.md"]
    (tmp_path / "mine.yaml").write_text(next(each.body for each in blocks if each.language == "yaml"), encoding="utf-8")
    prices = [
        line for each in blocks for line in each.commands if line.startswith(("zoo draw", "zoo stats", "zoo solve"))
    ]
    assert len(prices) >= 6
    run_commands(prices, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", RUN)
def test_what_a_page_says_to_type_works(page, filled, tmp_path):
    folder = shutil.copytree(filled, tmp_path / "folder")
    run_page(page, folder)
