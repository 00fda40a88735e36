"""README as a new user meets it: every command is run, in order, in an empty folder. And what pages say of the tree."""

import math
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from support.doc_blocks import read_blocks
from support.doc_folder import run_commands
from zoo.grammar import AXES
from zoo.paths import conf_dir

ROOT = Path(__file__).parents[1]
README = read_blocks("README.md")
AXES_PAGE = (ROOT / "docs" / "axes.md").read_text(encoding="utf-8")


def zoo(arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    verb = [sys.executable, "-m", "zoo", *shlex.split(arguments)]
    return subprocess.run(verb, cwd=folder, capture_output=True, text=True, check=False, timeout=280)


@pytest.mark.timeout(600)
def test_every_command_of_the_tour_works_in_an_empty_folder(tmp_path):
    (yaml,) = (each.body for each in README if each.body.startswith("# mine.yaml"))
    (tmp_path / "mine.yaml").write_text(yaml, encoding="utf-8")
    tour = [line for each in README if each.language == "sh" for line in each.commands if "launcher=" not in line]
    assert len(tour) >= 10
    run_commands(tour, tmp_path)


def test_the_forward_pass_shown_in_python_gives_what_its_comments_say():
    (block,) = (each for each in read_blocks("docs/python.md") if "zoo.build(" in each.body)
    names: dict = {}
    exec(block.body, names)
    spec, out = names["model"].spec, names["out"]
    assert out.logits.shape == (2, 16, spec.vocab_size) and out.hidden.shape == (2, 16, spec.d_model)
    assert abs(names["loss"].item() - math.log(spec.vocab_size)) < 1  # untrained: near an even guess
    assert all(each.grad is not None for each in names["model"].parameters())
    assert names["written"].shape == (2, 24) and (names["written"][:, :16] == names["ids"]).all()


def test_the_mistakes_shown_print_what_is_shown(tmp_path):
    (shown,) = (each.body for each in README if each.body.startswith("$ zoo"))
    command, *expected = shown.strip().splitlines()
    done = zoo(command.removeprefix("$ zoo "), tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == expected


def test_every_file_and_folder_that_a_page_names_is_there():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for place in re.findall(r"`((?:zoo|tests|conf|docs|recipes)/[\w./*-]*)`", page.read_text(encoding="utf-8")):
            made_by_the_reader = any(each in place for each in ("scalenorm", "token_average", "echo"))
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
