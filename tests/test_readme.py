"""README as a new user meets it: every command of its tour is run, in order, in an empty folder."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.grammar import AXES
from zoo.paths import conf_dir

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


def commands() -> list[str]:
    lines = [line.split("  #")[0].split(" # ")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


def zoo(arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    verb = [sys.executable, "-m", "zoo", *shlex.split(arguments)]
    return subprocess.run(verb, cwd=folder, capture_output=True, text=True, check=False, timeout=280)


@pytest.mark.timeout(600)
def test_every_command_of_the_tour_works_in_an_empty_folder(tmp_path):
    (yaml,) = (block for block in blocks("yaml") if block.startswith("# mine.yaml"))
    (tmp_path / "mine.yaml").write_text(yaml, encoding="utf-8")
    assert len(commands()) >= 10
    for command in commands():
        done = zoo(command.removeprefix("zoo "), tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert (done.stdout + done.stderr).strip(), command


def test_the_mistakes_shown_print_what_is_shown(tmp_path):
    (shown,) = (block for block in blocks("") if block.startswith("$ zoo"))
    command, *expected = shown.strip().splitlines()
    done = zoo(command.removeprefix("$ zoo "), tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == expected


def test_the_table_of_axes_names_every_packaged_choice():
    table = README.split("## The axes")[1]
    missing = [
        f"{axis}={path.stem}" for axis in AXES for path in (conf_dir() / axis).glob("*.yaml") if path.stem not in table
    ]
    assert set(missing) <= {"norm=layernorm_plain", "norm=rmsnorm_offset"}  # the table shows these two as fields
