"""README and docs/commands.md as a new user meets them: every command is run, in order, in an empty folder."""

import contextlib
import math
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from support.forked_processes import run_zoo
from zoo.grammar import AXES
from zoo.paths import conf_dir

ROOT = Path(__file__).parents[1]
README, COMMANDS, PYTHON, AXES_PAGE = (
    (ROOT / page).read_text(encoding="utf-8")
    for page in ("README.md", "docs/commands.md", "docs/python.md", "docs/axes.md")
)


def blocks(language: str, page: str = README) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


def commands(page: str) -> list[str]:
    texts = blocks("sh", page)
    lines = [line.split("  #")[0].split(" # ")[0].strip() for block in texts for line in block.splitlines()]
    return [line for line in lines if line]


def zoo(arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    verb = [sys.executable, "-m", "zoo", *shlex.split(arguments)]
    return subprocess.run(verb, cwd=folder, capture_output=True, text=True, check=False, timeout=280)


def run_all(lines: list[str], folder: Path) -> None:
    """Run commands, each in a process that has imported Zoo."""
    assert len(lines) >= 10
    with contextlib.chdir(folder):
        for command in lines:
            ((code, said),) = run_zoo(shlex.split(command.removeprefix("zoo ")))
            assert code == 0 and said.strip(), f"{command}\n{said}"


def starts_processes(command: str) -> bool:
    return "launcher=" in command


@pytest.mark.timeout(600)
def test_every_command_of_the_tour_works_in_an_empty_folder(tmp_path):
    (yaml,) = (block for block in blocks("yaml") if block.startswith("# mine.yaml"))
    (tmp_path / "mine.yaml").write_text(yaml, encoding="utf-8")
    run_all([each for each in commands(README) if not starts_processes(each)], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_several_processes_works_in_an_empty_folder(tmp_path):
    several = [each for each in commands(README) if starts_processes(each)]
    assert several
    for command in several:
        done = zoo(command.removeprefix("zoo "), tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_page_of_commands_works_in_an_empty_folder(tmp_path):
    run_all(commands(COMMANDS), tmp_path)


def test_the_forward_pass_shown_in_python_gives_what_its_comments_say():
    (block,) = (each for each in blocks("python", PYTHON) if "zoo.build(" in each)
    names: dict = {}
    exec(block, names)
    spec, out = names["model"].spec, names["out"]
    assert out.logits.shape == (2, 16, spec.vocab_size) and out.hidden.shape == (2, 16, spec.d_model)
    assert abs(names["loss"].item() - math.log(spec.vocab_size)) < 1  # untrained: near an even guess
    assert all(each.grad is not None for each in names["model"].parameters())
    assert names["written"].shape == (2, 24) and (names["written"][:, :16] == names["ids"]).all()


def test_the_mistakes_shown_print_what_is_shown(tmp_path):
    (shown,) = (block for block in blocks("") if block.startswith("$ zoo"))
    command, *expected = shown.strip().splitlines()
    done = zoo(command.removeprefix("$ zoo "), tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == expected


def test_every_file_and_folder_that_a_page_names_is_there():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for place in re.findall(r"`((?:zoo|tests|conf|docs|recipes)/[\w./*-]*)`", page.read_text(encoding="utf-8")):
            made_by_the_reader = place == "conf/norm/scalenorm.yaml"
            assert made_by_the_reader or list(ROOT.glob(place.rstrip("/"))), f"{page.name}: {place}"


def test_the_rooms_drawn_in_the_design_are_the_layers_that_are_held():
    """The picture in docs/design.md against the contract of import-linter in pyproject.toml, row by row."""
    drawn = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("```")[1]
    rows = [re.match(r" ([\w · ]+?)(?:  |$)", line) for line in drawn.splitlines() if line.strip()]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    held = next(each["layers"] for each in contracts if each["id"] == "layers")
    assert [set(row[1].split(" · ")) for row in rows if row] == [set(row.split(" | ")) for row in held]
    assert {path.stem for path in (ROOT / "zoo").iterdir()} - {"__init__", "__main__", "__pycache__"} == {
        room for row in held for room in row.split(" | ")
    }


def test_the_table_of_axes_names_every_packaged_choice():
    missing = [
        f"{axis}={path.stem}"
        for axis in AXES
        for path in (conf_dir() / axis).glob("*.yaml")
        if path.stem not in AXES_PAGE
    ]
    assert set(missing) <= {"norm=layernorm_plain", "norm=rmsnorm_offset"}  # the table shows these two as fields
